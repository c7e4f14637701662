"""Token weights where the DiT reads the language model's states."""

from __future__ import annotations

from statistics import mean

import torch
from PIL import Image

from g2tr_core.embedded import SAMPLE
from g2tr_core.generation.settings import Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm.internvlu.dit import DiTConditioning
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.internvlu.positions import rotation

QUICK = Sampling(4)


@torch.inference_mode()
def test_equal_states_at_one_place_are_one_that_weighs_as_much(tiny: InternVLU) -> None:
    """Five states, the third of which stands for four."""
    dit, config = tiny.network.generation_decoder.decoder, tiny.config
    states = torch.randn(5, config.condition_size)
    many = torch.tensor([0, 1, 2, 2, 2, 2, 3, 4])
    patches, places = torch.randn(1, 4, config.patch_channels), torch.randint(0, 9, (4 + 5, 3)).float()

    def velocity(of: torch.Tensor, log_weight: torch.Tensor | None) -> torch.Tensor:
        turn = rotation(torch.cat((places[:4], places[4:][of])), config.dit_rope_axes)
        branch = DiTConditioning(torch.zeros(0, config.dit_size), dit.embed_context(states[of]), turn, log_weight)
        return dit(patches, torch.tensor([500.0]), [branch])

    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 4, 1, 1]).log()
    expected, one = velocity(many, None), torch.arange(5)
    torch.testing.assert_close(velocity(one, weight), expected, atol=1e-5, rtol=1e-5)
    assert (velocity(one, None) - expected).abs().max() > 1e-4


def test_weights_bring_an_edit_nearer_to_that_with_all_tokens(tiny: InternVLU) -> None:
    """A mean over pictures and methods: the places of the states are not those of all tokens."""
    distances: dict[bool, list[float]] = {True: [], False: []}
    for turned in range(3):
        picture = Image.open(SAMPLE.picture).convert("RGB").resize((448, 448)).transpose(Image.Transpose(turned))
        encoded = tiny.encode(picture)
        full = tiny.edit(tiny.read(encoded, purpose="edit"), "Red.", QUICK, size=(64, 64)).latent
        for method in ("g2tr", "spread"):
            for weighs, found in distances.items():
                reading = tiny.read(encoded, Reduction(0.25, 1, method=method, token_weights=weighs), purpose="edit")
                edited = tiny.edit(reading, "Red.", QUICK, size=(64, 64)).latent
                found.append(float((edited - full).norm()))
    assert mean(distances[True]) < 0.9 * mean(distances[False])
