"""Readings of InternVL-U are reused, reductions shorten them, and nothing bleeds from one to the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from g2tr_core.embedded import PHOTO
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm.internvlu import prefix as prefix_module
from g2tr_core.umm.internvlu.anchors import pool_to_visual
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.internvlu.prompts import SYSTEM, render

HALF = Reduction(keep_ratio=0.5, min_tokens=1)
QUICK = Sampling(steps=3, guidance=Guidance(4.5, 2.0))
SHORT = Decoding(max_tokens=5)
OTHER = Image.new("RGB", (90, 60), "navy")


class Counting:
    """Counts how often the encoders and the language model's prefill run."""

    def __init__(self, model: InternVLU, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vit = self.vae = self.rows = 0
        vlm, vae = model.network.vlm, model.vae
        prefill, encode, features = vlm.prefill, vae.encode, vlm.visual_features

        def counted_prefill(context, embedded, **others):
            self.rows += len(embedded)
            return prefill(context, embedded, **others)

        def counted_encode(pixels):
            self.vae += 1
            return encode(pixels)

        def counted_features(tile):
            self.vit += 1
            return features(tile)

        monkeypatch.setattr(vlm, "prefill", counted_prefill)
        monkeypatch.setattr(vae, "encode", counted_encode)
        monkeypatch.setattr(vlm, "visual_features", counted_features)

    def since(self) -> tuple[int, int, int]:
        counts, self.vit, self.vae, self.rows = (self.vit, self.vae, self.rows), 0, 0, 0
        return counts


@pytest.fixture
def counting(tiny: InternVLU, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(tiny, monkeypatch)


def own_rows(model: InternVLU, text: str, *, opens_image: bool = False) -> int:
    """Tokens behind the last picture of a prompt."""
    ids = model.words.ids(
        render(SYSTEM["edit" if opens_image else "answer"], f"<image>\n{text}", [1], opens_image=opens_image)
    )
    return ids[::-1].index(model.words.end)


def test_a_second_question_costs_its_own_text(tiny: InternVLU, counting: Counting) -> None:
    reading = tiny.read(PHOTO, HALF)
    vit, vae, rows = counting.since()
    assert (vit, vae) == (1, 1) and rows == len(reading.prefixes["answer"].ids)
    first = tiny.answer(reading, "What is this?", decoding=SHORT)
    assert counting.since() == (0, 0, own_rows(tiny, "What is this?"))
    tiny.answer(reading, "And the colour of the cup?", decoding=SHORT)
    assert counting.since() == (0, 0, own_rows(tiny, "And the colour of the cup?"))
    assert tiny.answer(reading, "What is this?", decoding=SHORT).text == first.text


def test_a_second_instruction_or_seed_costs_its_own_text(tiny: InternVLU, counting: Counting) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    assert counting.since()[:2] == (1, 1), "the latent is encoded once, for anchors and dit"
    red = tiny.edit(reading, "Make it red.", QUICK)
    assert counting.since() == (0, 0, own_rows(tiny, "Make it red.", opens_image=True))
    blue = tiny.edit(reading, "Make it blue.", QUICK)
    assert counting.since() == (0, 0, own_rows(tiny, "Make it blue.", opens_image=True))
    seeded = tiny.edit(reading, "Make it red.", replace(QUICK, seed=5))
    assert not torch.equal(red.pixels, blue.pixels) and not torch.equal(red.pixels, seeded.pixels)
    assert torch.equal(tiny.edit(reading, "Make it red.", QUICK).pixels, red.pixels)


def test_thinking_starts_from_the_same_reading(tiny: InternVLU, counting: Counting) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    counting.since()
    plain = tiny.edit(reading, "Make it red.", QUICK)
    counting.since()
    thought = tiny.edit(reading, "Make it red.", QUICK, think=SHORT)
    assert thought.thinking and not plain.thinking and not torch.equal(plain.pixels, thought.pixels)
    assert counting.since() == (0, 0, own_rows(tiny, "Make it red.", opens_image=True) + 5)


def test_the_whole_thought_reaches_the_dit(tiny: InternVLU, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code drops one or two tokens, and fails where the end comes first."""
    written: list[int] = []
    monkeypatch.setattr(prefix_module, "decode", lambda *rest: [list(written)])
    reading, seen = tiny.read(PHOTO, purpose="edit"), []
    condition = tiny.condition

    def noted(*arguments):
        conditioned = condition(*arguments)
        seen.append(len(conditioned.branches.contexts[0].context))
        return conditioned

    monkeypatch.setattr(tiny, "condition", noted)
    unthinking = tiny.edit(reading, "Red.", QUICK)
    ended_at_once = tiny.edit(reading, "Red.", QUICK, think=SHORT)
    written += [227, 266, 64]
    tiny.edit(reading, "Red.", QUICK, think=SHORT)
    assert [count - seen[0] for count in seen] == [0, 0, 3]
    torch.testing.assert_close(unthinking.latent, ended_at_once.latent, atol=1e-4, rtol=0)


def test_continuing_a_prefix_equals_reading_the_whole_prompt(tiny: InternVLU) -> None:
    reading = tiny.read([PHOTO, OTHER], HALF, purpose="edit")
    behind = tiny.edit(reading, "Swap them.", QUICK)
    fresh = tiny.read([PHOTO, OTHER], HALF)
    fresh.prefixes["edit"] = replace(reading.prefixes["edit"], ids=(-1,))  # fits nothing: every row runs apart
    torch.testing.assert_close(tiny.edit(fresh, "Swap them.", QUICK).latent, behind.latent, atol=1e-4, rtol=0)


def test_one_picture_does_not_depend_on_another(tiny: InternVLU) -> None:
    """Bit for bit, whatever was read before or beside it, and in whichever order."""
    alone = tiny.read(PHOTO, HALF, purpose="edit")
    made, answer = tiny.edit(alone, "Red.", QUICK), tiny.answer(alone, "What?", decoding=SHORT)
    readings = [tiny.read(picture, HALF, purpose="edit") for picture in (OTHER, PHOTO, OTHER)]
    edits = [tiny.edit(reading, "Red.", QUICK) for reading in readings]
    assert torch.equal(edits[1].latent, made.latent)
    assert tiny.answer(readings[1], "What?", decoding=SHORT).text == answer.text
    together = tiny.read([OTHER, PHOTO], HALF, purpose="edit")
    assert torch.equal(together.reduced[1].features, alone.reduced[0].features)
    assert torch.equal(together.reduced[1].keep, alone.reduced[0].keep)
    assert torch.equal(together.encoding.pictures[1].latent, alone.encoding.pictures[0].latent)


def test_every_row_sees_the_same_visual_tokens(tiny: InternVLU) -> None:
    """The published code lets tokens of one guidance row merge into another's."""
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    no_text, nothing = reading.unguided
    shared = len(reading.prefixes["edit"].ids) - tiny.words.turn_of_user(reading.prefixes["edit"].ids)
    full = reading.prefixes["edit"].states[-shared:]
    assert torch.equal(no_text.states[:shared], full)
    assert sum(no_text.visual) == 32 and not any(nothing.visual) and not nothing.latents


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("reduction", [None, HALF])
def test_several_pictures_can_be_edited(tiny: InternVLU, count: int, reduction: Reduction | None) -> None:
    reading = tiny.read([PHOTO, OTHER, PHOTO][:count], reduction, purpose="edit")
    made = tiny.edit(reading, "Put them side by side.", QUICK)
    assert made.pixels.isfinite().all() and made.image.size == reading.size
    assert len(reading.unguided[0].latents) == count
    swapped = tiny.read([OTHER, PHOTO, PHOTO][:count], reduction, purpose="edit")
    size = reading.size
    assert not torch.equal(
        tiny.edit(swapped, "Put them side by side.", QUICK, size=size).latent,
        tiny.edit(reading, "Put them side by side.", QUICK, size=size).latent,
    )


def test_texts_and_placeholders_say_where_pictures_belong(tiny: InternVLU) -> None:
    reading = tiny.read([PHOTO, "is the first,", OTHER, "is the second."], HALF, purpose="edit")
    plain = tiny.read([PHOTO, OTHER], HALF, purpose="edit")
    swap = tiny.edit(plain, "Swap them.", QUICK)
    assert not torch.equal(tiny.edit(reading, "Swap them.", QUICK).pixels, swap.pixels)
    placed = tiny.edit(plain, "Swap <image> and <image>.", QUICK)
    assert not torch.equal(placed.pixels, swap.pixels)
    in_front = tiny.edit(plain, "<image>\n<image>\nSwap them.", QUICK)
    assert torch.equal(in_front.pixels, swap.pixels)


def test_a_reduction_shortens_every_branch(tiny: InternVLU) -> None:
    whole, half = (tiny.read(PHOTO, reduction, purpose="edit") for reduction in (None, HALF))
    for before, after in zip(whole.unguided, half.unguided, strict=True):
        assert len(before.states) - len(after.states) == (32 if before.latents else 0)
    note = tiny.edit(half, "Red.", QUICK).report.notes[0]
    assert "states instead of" in note
    assert half.prefixes["edit"].prefix.length == whole.prefixes["edit"].prefix.length - 32


@pytest.mark.parametrize("pool", [1, 2, 3, 8, 100])
def test_every_cell_has_a_token(pool: int) -> None:
    for sides in ((4, 4), (12, 16), (64, 128), (5, 3)):
        channels, cells = pool_to_visual(torch.randn(16, *sides), (8, 8), pool)
        assert cells == (-(-8 // pool), -(-8 // pool)) and channels.shape == (cells[0] * cells[1], 16)
    latent = torch.randn(16, 32, 32)
    channels, cells = pool_to_visual(latent, (8, 8), 2)
    torch.testing.assert_close(channels[5], latent[:, 8:16, 8:16].mean((1, 2)))


def test_kept_tokens_stand_where_they_were_or_as_published(tiny: InternVLU, checkpoint: Path) -> None:
    published = InternVLU.load(checkpoint, dtype=torch.float32, kept_positions="text")
    for reduction, same in ((None, True), (HALF, False)):
        pictures = [m.edit(m.read(PHOTO, reduction, purpose="edit"), "Red.", QUICK).latent for m in (tiny, published)]
        assert torch.equal(*pictures) == same
