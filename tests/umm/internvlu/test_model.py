"""InternVL-U as its users have it: it generates, answers, reports, stops when told to, and refuses with advice."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import G2TRError, ImageError, SettingsError
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


@pytest.mark.parametrize("text_scale", [1.0, 4.5])
def test_guidance_one_by_one_paints_the_same(tiny: InternVLU, text_scale: float) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    pictures = [
        tiny.edit(reading, "Red.", Sampling(3, guidance=Guidance(text_scale), batch_guidance=batched)).latent
        for batched in (True, False)
    ]
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize("stage", ["read", "decode", "denoise", "think"])
def test_a_cancelled_run_leaves_the_reading_as_it_was(tiny: InternVLU, stage: str) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(name: str, done: int, total: int, preview: torch.Tensor | None = None) -> None:
        if name == stage:
            raise Cancelled

    reading = tiny.read(PHOTO, HALF, purpose="edit", think=True)
    before = tiny.edit(reading, "Red.", QUICK, think=SHORT), tiny.answer(reading, "What?", decoding=SHORT)
    with pytest.raises(Cancelled):
        tiny.read(PHOTO, HALF, progress=cancel)
        tiny.answer(reading, "What?", decoding=SHORT, progress=cancel)
        tiny.edit(reading, "Blue.", QUICK, think=SHORT, progress=cancel)
    after = tiny.edit(reading, "Red.", QUICK, think=SHORT), tiny.answer(reading, "What?", decoding=SHORT)
    assert torch.equal(before[0].pixels, after[0].pixels) and before[1].text == after[1].text


def test_progress_reports_every_step_with_a_preview(tiny: InternVLU) -> None:
    seen = []
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    sampling = Sampling(steps=4, guidance=Guidance(4.5, 2.0))
    made = tiny.edit(reading, "Red.", sampling, progress=lambda *step: seen.append(step))
    assert [(stage, done, total) for stage, done, total, _ in seen] == [("denoise", i, 4) for i in (1, 2, 3, 4)]
    assert seen[-1][3].shape == made.latent.shape
    torch.testing.assert_close(seen[-1][3], made.latent, atol=1e-4, rtol=1e-4)


def test_sizes(tiny: InternVLU) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    width, height = reading.size
    assert tiny.edit(reading, "Red.", QUICK).pixels.shape == (height, width, 3)
    odd = tiny.edit(reading, "Red.", QUICK, size=(50, 100))
    assert odd.pixels.shape == (100, 50, 3) and odd.latent.shape == (16, 12, 6), "resized to what was asked for"
    made = tiny.imagine("A cup.", QUICK, size=(64, 32))
    assert made.pixels.shape == (32, 64, 3) and made.image.size == (64, 32)
    assert made.pixels.min() >= 0 and made.pixels.max() <= 1


def test_a_seed_is_a_picture(tiny: InternVLU) -> None:
    pictures = [tiny.imagine("A cup.", replace(QUICK, seed=s), size=(32, 32)).pixels for s in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])


def test_an_answer_can_be_sampled(tiny: InternVLU) -> None:
    reading = tiny.read(PHOTO, HALF)
    texts = [
        tiny.answer(reading, "What?", decoding=Decoding(max_tokens=12, temperature=2.0, seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


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
    ("call", "kind", "names"),
    [
        (lambda m, r: m.read([]), SettingsError, "inputs"),
        (lambda m, r: m.read(["only text"]), SettingsError, "inputs"),
        (lambda m, r: m.read([PHOTO, "<IMG_CONTEXT>"]), SettingsError, "inputs"),
        (lambda m, r: m.read(Path("nowhere.png")), ImageError, "nowhere.png"),
        (lambda m, r: m.read(torch.zeros(3)), ImageError, ""),
        (lambda m, r: m.read([3]), ImageError, ""),
        (lambda m, r: m.read(PHOTO, purpose="draw"), SettingsError, "purpose"),
        (lambda m, r: m.read(PHOTO, think=True), SettingsError, "think"),
        (lambda m, r: m.read(PHOTO, HALF, priority=[]), SettingsError, "priority"),
        (lambda m, r: m.read(PHOTO, HALF, priority=[torch.zeros(2, 2, 2)]), SettingsError, "priority"),
        (lambda m, r: m.answer(r, None), SettingsError, "question"),
        (lambda m, r: m.answer(r, "What?", think=True), SettingsError, "think"),
        (lambda m, r: m.answer(r, "<img>"), SettingsError, "question"),
        (lambda m, r: m.answer(r, "<image> or <image>"), SettingsError, "2 <image>"),
        (lambda m, r: m.edit(r, 5), SettingsError, "instruction"),
        (lambda m, r: m.edit(r, "Red.", size=(8, 64)), SettingsError, "width"),
        (lambda m, r: m.edit(r, "Red.", size=(64, 4096)), SettingsError, "height"),
        (lambda m, r: m.edit(r, "Red.", size="64x64"), SettingsError, "size"),
        (lambda m, r: m.edit(r, "Red.", size=(64.5, 64)), SettingsError, "size"),
        (lambda m, r: m.edit(r, "Red.", QUICK, noise=torch.zeros(3, 64)), SettingsError, "noise"),
        (lambda m, r: m.imagine(["A cup."]), SettingsError, "prompt"),
        (lambda m, r: m.imagine("<image>"), SettingsError, "<image>"),
        (lambda m, r: m.imagine("A cup.", size=(0, 64)), SettingsError, "size"),
    ],
)
def test_bad_calls_are_refused_with_advice(tiny: InternVLU, call, kind: type[G2TRError], names: str) -> None:
    with pytest.raises(kind) as caught:
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
