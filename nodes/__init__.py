"""The nodes of the pack, in the order in which a graph uses them."""

from __future__ import annotations

from .answer import Ask
from .compare import Compare
from .conditioning import Conditioning
from .edit import Edit
from .folder import CaptionFolder
from .guider import Guider
from .imagine import Imagine
from .load import LoadModel
from .lora import LoadLoRA
from .noise import Noise
from .options import Options
from .read import Read
from .reduce import ReductionNode
from .report import ReportNode
from .sample import SampleScene
from .to_core import ToCore
from .token_map import TokenMap

NODES = [
    *(LoadModel, SampleScene, ReductionNode, Read, Ask, Edit, Imagine, Options, TokenMap, ReportNode, Compare),
    CaptionFolder,
    *(ToCore, LoadLoRA, Conditioning, Guider, Noise),  # for ComfyUI's own samplers
]
