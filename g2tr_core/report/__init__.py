"""What a result cost: tokens, bytes, operations and milliseconds, with and without the reduction."""

from .cost import Block, Change, DecoderCost
from .report import Report
from .timing import Stopwatch

__all__ = ["Block", "Change", "DecoderCost", "Report", "Stopwatch"]
