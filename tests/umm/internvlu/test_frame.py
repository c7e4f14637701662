"""The autoencoder of one frame does what diffusers' does, without its convolutions over time and its kept features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from g2tr_core.umm.internvlu.frame import FrameAutoencoder
from g2tr_core.umm.internvlu.vae import Autoencoder
from tests.live_bytes import LiveBytes

BASE = 8
PIXELS, LATENT = (1, 3, 1, 64, 48), (1, 16, 1, 8, 6)
Network = AutoencoderKLQwenImage

WAYS: list[Any] = [
    pytest.param(PIXELS, lambda kl, x: kl.encode(x).latent_dist.parameters, id="encode"),
    pytest.param(PIXELS, lambda kl, x: kl.tiled_encode(x), id="tiled-encode"),
    pytest.param(LATENT, lambda kl, x: kl.decode(x).sample, id="decode"),
    pytest.param(LATENT, lambda kl, x: kl.tiled_decode(x).sample, id="tiled-decode"),
]


@pytest.fixture(scope="module")
def networks() -> tuple[Network, FrameAutoencoder]:
    """Diffusers' and ours with the same random weights; tiles of 32 pixels, 24 apart."""
    torch.manual_seed(0)
    theirs, ours = Network(base_dim=BASE), FrameAutoencoder(BASE)
    ours.load_state_dict(theirs.state_dict())
    for network in (theirs, ours):
        network.requires_grad_(False).eval()
        network.tile_sample_min_height = network.tile_sample_min_width = 32
        network.tile_sample_stride_height = network.tile_sample_stride_width = 24
    return theirs, ours


@pytest.fixture
def vae() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(BASE).requires_grad_(False).eval()


@pytest.mark.parametrize(("shape", "run"), WAYS)
def test_as_diffusers_has_it(
    networks: tuple[Network, FrameAutoencoder], shape: tuple[int, ...], run: Callable[[Any, Tensor], Tensor]
) -> None:
    theirs, ours = networks
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = run(theirs, given)
    assert expected.std() > 1e-3
    torch.testing.assert_close(run(ours, given), expected, atol=1e-5, rtol=1e-5)


def test_weights_may_move_and_change_type(networks: tuple[Network, FrameAutoencoder]) -> None:
    ours = networks[1]
    given = torch.randn(PIXELS, generator=torch.Generator().manual_seed(1))
    before = ours.encode(given).latent_dist.mode()
    moved = FrameAutoencoder(BASE).to("meta")
    moved.load_state_dict({name: tensor.bfloat16() for name, tensor in ours.state_dict().items()}, assign=True)
    after = moved.encode(given.bfloat16()).latent_dist.mode()
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after.float(), before, atol=0.05 * float(before.abs().max()), rtol=0)


def test_nothing_is_convolved_over_time(vae: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "conv3d")
    assert vae.decode(vae.encode(torch.zeros(3, 32, 16))).shape == (3, 32, 16)


def test_no_features_stay(vae: Autoencoder) -> None:
    with LiveBytes() as live:
        vae.encode(torch.zeros(3, 32, 16))
        vae.decode(torch.zeros(16, 4, 2))
    assert live.peak > 0 and live.now == 0


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_no_features_stay_where_memory_ran_out(vae: Autoencoder, part: str) -> None:
    def nothing_left(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    getattr(vae.kl, part).conv_out.register_forward_pre_hook(nothing_left)
    run, given = (vae.encode, (3, 32, 16)) if part == "encoder" else (vae.decode, (16, 4, 2))
    with LiveBytes() as live:
        with pytest.raises(torch.OutOfMemoryError):
            run(torch.zeros(given))
        assert live.peak > 0 and live.now == 0
