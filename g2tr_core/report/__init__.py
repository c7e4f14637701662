"""What a result cost: tokens, bytes, operations and milliseconds, with and without the reduction."""

from .cost import Change, DecoderCost, PrefilledBlock, StepCost
from .report import Report
from .timing import Stopwatch

__all__ = ["Change", "DecoderCost", "PrefilledBlock", "Report", "StepCost", "Stopwatch"]
