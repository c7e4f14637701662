"""InternVL-U as its users have it: it generates, answers, reports, stops when told to, and refuses with advice."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import G2TRError, SettingsError
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.internvlu.prompts import SYSTEM, render

HALF = Reduction(keep_ratio=0.5, min_tokens=1)
QUICK = Sampling(steps=3, guidance=Guidance(4.5, 2.0))
SHORT = Decoding(max_tokens=5)
OTHER = Image.new("RGB", (90, 60), "navy")


def own_rows(model: InternVLU, text: str, *, opens_image: bool = False) -> int:
    """Tokens behind the last picture of a prompt."""
    ids = model.words.ids(
        render(SYSTEM["edit" if opens_image else "answer"], f"<image>\n{text}", [1], opens_image=opens_image)
    )
    return ids[::-1].index(model.words.end)


def test_guidance_acts_in_its_interval_only(tiny: InternVLU) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    off = tiny.edit(reading, "Red.", Sampling(3, guidance=Guidance(1.0, 2.0))).latent
    never = tiny.edit(reading, "Red.", Sampling(3, guidance=Guidance(4.5, 2.0, interval=(0.0, 0.0)))).latent
    assert torch.equal(off, never)
    assert not torch.equal(off, tiny.edit(reading, "Red.", QUICK).latent)


def test_another_models_renormalisation_is_told(tiny: InternVLU) -> None:
    guidance = Guidance(4.5, 2.0, renorm="global")
    notes = tiny.imagine("A cup.", Sampling(3, guidance=guidance), size=(32, 32)).report.notes
    assert len(notes) == 1 and "renorm" in notes[0]


def test_sizes(tiny: InternVLU) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    width, height = reading.size
    assert tiny.edit(reading, "Red.", QUICK).pixels.shape == (height, width, 3)
    odd = tiny.edit(reading, "Red.", QUICK, size=(50, 100))
    assert odd.pixels.shape == (100, 50, 3) and odd.latent.shape == (16, 12, 6), "resized to what was asked for"
    made = tiny.imagine("A cup.", QUICK, size=(64, 32))
    assert made.pixels.shape == (32, 64, 3) and made.image.size == (64, 32)
    assert made.pixels.min() >= 0 and made.pixels.max() <= 1


def test_an_answer_can_be_sampled(tiny: InternVLU) -> None:
    reading = tiny.read(PHOTO, HALF)
    texts = [
        tiny.answer(reading, "What?", decoding=Decoding(max_tokens=12, temperature=2.0, seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_reports_count_token_weights(tiny: InternVLU, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g2tr_core.umm.contract.weight_channels", lambda *_: 8)
    plain, weighted = (tiny.read(PHOTO, Reduction(0.5, 1, token_weights=weigh)).report for weigh in (False, True))
    assert plain.prefill_flops.before == weighted.prefill_flops.before
    assert plain.prefill_flops.after < weighted.prefill_flops.after
    assert any("Token weights add" in note for note in weighted.notes)


def test_reports_add_up(tiny: InternVLU) -> None:
    reading = tiny.read(PHOTO, HALF)
    answer = tiny.answer(reading, "What is this?", decoding=SHORT)
    tokens, kv = answer.report.visual_tokens, answer.report.kv_bytes
    assert (tokens.before, tokens.after) == (64, 32)
    rows = len(reading.prefixes["answer"].ids) + own_rows(tiny, "What is this?")
    assert kv.after == rows * tiny.cost.kv_bytes and kv.before == (rows + 32) * tiny.cost.kv_bytes
    assert answer.report.prefill_flops.factor > 1.3
    assert set(reading.report.ms) == {"prepare", "vit", "vae_encode", "reduction", "prefill"}
    assert set(answer.report.ms) == {"prefill", "decode"}
    made = tiny.edit(reading, "Red.", QUICK)
    assert set(made.report.ms) == {"prefill", "denoise", "vae_decode"}


def test_token_views_show_the_tile(tiny: InternVLU) -> None:
    reading = tiny.read([PHOTO, OTHER], HALF)
    for view in reading.token_views():
        assert view.grid == (8, 8) and view.image.size == (224, 224) and len(view.keep) == 32
        assert set(view.assignment.tolist()) == set(view.keep.tolist()) and view.scores is not None
    assert tiny.read(PHOTO).token_views()[0].scores is None


def test_importance_protects_tokens(tiny: InternVLU) -> None:
    mask = torch.zeros(8, 8)
    mask[:2] = 1
    reading = tiny.read(PHOTO, HALF, priority=[mask])
    assert set(range(16)) <= set(reading.reduced[0].keep.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny: InternVLU, checkpoint: Path, dtype: torch.dtype) -> None:
    half = InternVLU.load(checkpoint, dtype=dtype)
    ours, reference = half.read(PHOTO, HALF, purpose="edit"), tiny.read(PHOTO, HALF, purpose="edit")
    same = set(ours.reduced[0].keep.tolist()) & set(reference.reduced[0].keep.tolist())
    assert len(same) > 0.8 * len(reference.reduced[0].keep)
    latents = [m.edit(r, "Red.", QUICK).latent.flatten() for m, r in ((half, ours), (tiny, reference))]
    # As published, the timestep is rounded too: in bf16 999 becomes 1000.
    assert torch.corrcoef(torch.stack(latents))[0, 1] > 0.95


def test_flops_are_those_of_the_formula_at_full_size(tiny: InternVLU) -> None:
    from g2tr_core.report import DecoderCost
    from g2tr_core.umm.internvlu.config import InternVLUConfig

    model = copy(tiny)
    model.config = InternVLUConfig()
    weights = 2048 * (2 * 2048 + 2 * 1024 + 3 * 6144)
    assert model.cost == DecoderCost(28, weights, 16 * 128, 2 * 8 * 128 * 4)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda m, r: m.read(PHOTO, think=True), "think"),
        (lambda m, r: m.answer(r, "What?", think=True), "think"),
        (lambda m, r: m.answer(r, "<image> or <image>"), "2 <image>"),
        (lambda m, r: m.imagine("<image>"), "<image>"),
    ],
)
def test_placeholders_and_thinking_that_it_does_not_know_are_refused(tiny: InternVLU, call, names: str) -> None:
    with pytest.raises(SettingsError) as caught:
        call(tiny, tiny.read(PHOTO, HALF))
    assert names in str(caught.value) and caught.value.fix


def test_numbers_that_overflow_are_an_error_not_a_black_picture(checkpoint: Path) -> None:
    broken = InternVLU.load(checkpoint, dtype=torch.float32)
    out = broken.network.generation_decoder.decoder.proj_out
    out.weight = torch.nn.Parameter(torch.full_like(out.weight, torch.nan), requires_grad=False)
    with pytest.raises(G2TRError, match="not-a-number"):
        broken.imagine("A cup.", QUICK, size=(32, 32))
    head = broken.network.vlm.language_model.lm_head
    head.weight = torch.nn.Parameter(torch.full_like(head.weight, torch.inf), requires_grad=False)
    with pytest.raises(G2TRError, match="not-a-number"):
        broken.answer(broken.read(PHOTO), "What?", decoding=SHORT)


def test_running_out_of_memory_is_advice(tiny: InternVLU, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    reading = tiny.read(PHOTO, HALF, purpose="edit")
    monkeypatch.setattr(tiny.vae, "decode", full)
    with pytest.raises(G2TRError, match="keep_ratio") as caught:
        tiny.edit(reading, "Red.", QUICK)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    monkeypatch.undo()
    assert tiny.edit(reading, "Red.", QUICK).pixels.isfinite().all()


def test_what_is_made_follows_the_device(tiny: InternVLU) -> None:
    """A memory manager may change it at any time."""
    moved = copy(tiny)
    moved.device = torch.device("meta")
    assert moved.blank().visual.device.type == "meta"
    assert tiny.blank().visual.device.type == "cpu"
