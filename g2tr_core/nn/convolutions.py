"""An autoencoder's convolutions as processors compute them best.

Channels lie side by side in memory: otherwise each convolution rearranges its picture twice. Where a CPU has no
products in 16 bits, they are made in fp32 (see `products`).
"""

from __future__ import annotations

import torch
from torch import nn

from . import products

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def prepare(network: nn.Module) -> None:
    """Rearrange the kernels of a network whose weights are loaded, and take the layers of `products`.

    Values, names and shapes stay. Kernels in fp32 are left alone: their products would be summed in another order,
    which takes a latent to 4e-5 of the recorded one, where 3e-5 is allowed.
    """
    for parameter in network.parameters():
        if parameter.ndim in FORMATS and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.ndim])
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            module.__class__ = products.Conv2d
