"""Selections that nobody should use: rivals and controls that show what the latent signal is worth.

- `random`, `norm`: what costs next to nothing.
- `flipped`, `shuffled-anchors`: the paper's selection with its signal turned round or torn from its place. What they
  reach, the cells alone reach.

`Reduction` takes these names; nodes and command line do not offer them.
"""

from __future__ import annotations

from typing import Literal

from ...contract import Selector
from . import flipped, norm, random, shuffled

Control = Literal["flipped", "shuffled-anchors", "random", "norm"]

CONTROLS: dict[str, Selector] = {
    "flipped": flipped.select,
    "shuffled-anchors": shuffled.select,
    "random": random.select,
    "norm": norm.select,
}
