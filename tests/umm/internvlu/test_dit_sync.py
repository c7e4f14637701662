"""The DiT's steps read nothing from the host: a copy to the device would make the host wait for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g2tr_core.umm.internvlu.config import InternVLUConfig
from g2tr_core.umm.internvlu.dit import DiTConditioning, InternVLUDenoiser, time_frequencies
from g2tr_core.umm.internvlu.network import InternVLUNetwork
from g2tr_core.umm.internvlu.positions import rotation

META = torch.device("meta")
CONFIG = replace(InternVLUConfig(), layers=1, vit_layers=1, dit_layers=1, vocab_size=1000)


class DevicesSeen(TorchDispatchMode):
    """Which devices the operators inside take tensors from or make them on."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.devices |= {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        return result


def test_a_step_stays_on_the_device() -> None:
    """On the meta device, where reading a number back is an error."""
    dit = InternVLUNetwork(CONFIG, range(10), device=META).eval().generation_decoder.decoder
    pictures, context = (torch.empty(rows, CONFIG.dit_size, device=META) for rows in (4, 3))
    turn = rotation(torch.zeros(11, 3, device=META), CONFIG.dit_rope_axes)
    denoiser = InternVLUDenoiser(dit, CONFIG.latent_patch, torch.float32)
    noisy = torch.empty(3, CONFIG.latent_channels, 4, 4, device=META)
    step = noisy, torch.empty(1, device=META), [DiTConditioning(pictures, context, turn)] * 3
    with torch.no_grad():
        denoiser.forward(*step)
        with DevicesSeen() as seen:
            denoiser.forward(*step)
    assert seen.devices == {"meta"}


def test_the_frequencies_are_made_once_a_device() -> None:
    assert time_frequencies(META) is time_frequencies(torch.device("meta"))
    assert time_frequencies(META) is not time_frequencies(torch.device("cpu"))
