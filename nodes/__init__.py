"""The nodes of the pack, in the order in which a graph uses them."""

from __future__ import annotations

from .answer import Ask
from .compare import Compare
from .edit import Edit
from .imagine import Imagine
from .load import LoadModel
from .options import Options
from .read import Read
from .reduce import ReductionNode
from .report import ReportNode
from .sample import SampleScene
from .token_map import TokenMap

NODES = [LoadModel, SampleScene, ReductionNode, Read, Ask, Edit, Imagine, Options, TokenMap, ReportNode, Compare]
