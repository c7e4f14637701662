"""BAGEL as its users have it: readings are reused, runs can be cancelled, nothing bleeds from one to the next."""

from __future__ import annotations

from copy import copy

import pytest
import torch
from PIL import Image

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import G2TRError
from g2tr_core.generation.settings import Decoding, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load
from g2tr_core.umm.bagel.model import Bagel
from tests.goldens import BAGEL_TINY
from tests.umm.bagel.conftest import SMALL

HALF = Reduction(keep_ratio=0.5, min_tokens=1)
QUICK = Sampling(steps=3)
SHORT = Decoding(max_tokens=5)


class Counting:
    """Counts how often the encoders and the decoder's prefill run."""

    def __init__(self, model: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vit = self.vae = self.rows = 0
        decoder, vae, network = model.network.language_model.model, model.vae, model.network
        prefill, encode, features = decoder.prefill, vae.encode, network.visual_features

        def counted_prefill(prefix, blocks, **options):
            self.rows += sum(block.rows for block in blocks)
            return prefill(prefix, blocks, **options)

        def counted_encode(pixels):
            self.vae += 1
            return encode(pixels)

        def counted_features(patches, positions):
            self.vit += 1
            return features(patches, positions)

        monkeypatch.setattr(decoder, "prefill", counted_prefill)
        monkeypatch.setattr(vae, "encode", counted_encode)
        monkeypatch.setattr(network, "visual_features", counted_features)

    def since(self) -> tuple[int, int, int]:
        counts, self.vit, self.vae, self.rows = (self.vit, self.vae, self.rows), 0, 0, 0
        return counts


@pytest.fixture
def counting(tiny: Bagel, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(tiny, monkeypatch)


def text_rows(model: Bagel, text: str) -> int:
    return len(model.tokenizer.encode(text, add_special_tokens=False)) + 2


def test_a_second_question_costs_its_own_text(tiny: Bagel, counting: Counting) -> None:
    reading = tiny.read(PHOTO, HALF)
    vit, vae, rows = counting.since()
    assert (vit, vae) == (1, 1) and rows == reading.visual_tokens.after + 2
    first = tiny.answer(reading, "What is this?", decoding=SHORT)
    assert counting.since() == (0, 0, text_rows(tiny, "What is this?"))
    tiny.answer(reading, "And the colour of the cup?", decoding=SHORT)
    assert counting.since() == (0, 0, text_rows(tiny, "And the colour of the cup?"))
    assert tiny.answer(reading, "What is this?", decoding=SHORT).text == first.text


def test_a_second_instruction_or_seed_costs_its_own_text(tiny: Bagel, counting: Counting) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    assert counting.since()[:2] == (1, 1), "the latent is encoded once, for anchors and context"
    red = tiny.edit(reading, "Make it red.", QUICK)
    assert counting.since() == (0, 0, 2 * text_rows(tiny, "Make it red.")), "full context and texts alone"
    tiny.edit(reading, "Make it blue.", Sampling(steps=3, seed=5))
    assert counting.since()[:2] == (0, 0)
    assert torch.equal(tiny.edit(reading, "Make it red.", QUICK).pixels, red.pixels)


def test_another_ratio_does_not_encode_again(tiny: Bagel, counting: Counting) -> None:
    encoding = tiny.encode(PHOTO)
    tokens = []
    for ratio in (1.0, 0.5, 0.25):
        tokens.append(tiny.read(encoding, Reduction(keep_ratio=ratio, min_tokens=1)).visual_tokens.after)
    vit, vae, _ = counting.since()
    assert (vit, vae) == (1, 1) and tokens == [tokens[0], round(tokens[0] * 0.5), round(tokens[0] * 0.25)]


def test_understanding_with_all_tokens_never_runs_the_autoencoder(tiny: Bagel, counting: Counting) -> None:
    tiny.answer(tiny.read(PHOTO), "What is this?", decoding=SHORT)
    assert counting.since()[:2] == (1, 0)


def test_one_reading_serves_both_purposes(tiny: Bagel, counting: Counting) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="answer")
    edited = tiny.edit(reading, "Make it red.", QUICK)
    assert counting.since()[:2] == (1, 1)
    alone = tiny.edit(tiny.read(PHOTO, HALF, purpose="edit"), "Make it red.", QUICK)
    assert torch.equal(edited.pixels, alone.pixels)


def test_pictures_do_not_depend_on_each_other_before_they_meet_in_a_context(tiny: Bagel) -> None:
    other = Image.new("RGB", (90, 60), "navy")
    together, alone = tiny.read([other, PHOTO], HALF), tiny.read(PHOTO, HALF)
    assert torch.equal(together.reduced[1].features, alone.reduced[0].features)
    assert torch.equal(together.reduced[1].keep, alone.reduced[0].keep)


def test_a_mask_of_any_size_protects_a_region(tiny: Bagel) -> None:
    mask = torch.zeros(300, 450)
    mask[:150] = 1.0  # the upper half
    rows, columns = tiny.encode(PHOTO).pictures[0].prepared.vit_grid
    kept = tiny.read(PHOTO, HALF, priority=[mask]).reduced[0].keep
    upper = torch.arange(rows // 2 * columns)
    assert torch.isin(upper, kept).all()
    sacrificed = tiny.read(PHOTO, Reduction(0.25, min_tokens=1), priority=[-mask]).reduced[0].keep
    assert not torch.isin(upper, sacrificed).any()


def test_texts_and_pictures_interleave(tiny: Bagel) -> None:
    other = Image.new("RGB", (90, 60), "navy")
    inputs = [PHOTO, "is the first,", other, "is the second."]
    reading = tiny.read(inputs, HALF, purpose="edit")
    assert reading.size == reading.encoding.pictures[-1].prepared.size
    plain = tiny.edit(tiny.read([PHOTO, other], HALF, purpose="edit"), "Swap them.", QUICK)
    assert not torch.equal(tiny.edit(reading, "Swap them.", QUICK).pixels, plain.pixels)


def test_image_guidance_without_a_picture_costs_no_extra_branch(tiny: Bagel) -> None:
    from g2tr_core.umm.bagel.conversation import Conversation, Text

    empty = tiny.network.language_model.empty(64, tiny.device)
    with torch.inference_mode():
        conversation = Conversation.begin(tiny.network, empty, guided=True).add([Text(torch.tensor([5, 6, 7]))])
    branches = conversation.branches(image_guidance=True)
    assert len(branches.contexts) == 2 and branches.bare == 0 and branches.no_text == 1


def test_sizes(tiny: Bagel) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    width, height = reading.size
    assert tiny.edit(reading, "Red.", QUICK).pixels.shape == (height, width, 3)
    assert tiny.edit(reading, "Red.", QUICK, size=(48, 100)).latent.shape == (16, 12, 6)
    made = tiny.imagine("A cup.", QUICK, size=(64, 32))
    assert made.pixels.shape == (32, 64, 3) and made.image.size == (64, 32)
    assert made.pixels.min() >= 0 and made.pixels.max() <= 1


def test_thinking_changes_the_result_and_is_handed_back(tiny: Bagel) -> None:
    plain = tiny.imagine("A cup.", QUICK, size=(32, 32))
    thought = tiny.imagine("A cup.", QUICK, size=(32, 32), think=SHORT)
    assert thought.thinking and not plain.thinking
    assert not torch.equal(plain.pixels, thought.pixels)


def test_reports_add_up(tiny: Bagel) -> None:
    reading = tiny.read(PHOTO, HALF)
    answer = tiny.answer(reading, "What is this?", decoding=SHORT)
    tokens, kv = answer.report.visual_tokens, answer.report.kv_bytes
    text = text_rows(tiny, "What is this?")
    assert kv.after == (tokens.after + 2 + text) * tiny.cost.kv_bytes
    assert kv.before == (tokens.before + 2 + text) * tiny.cost.kv_bytes
    assert answer.report.prefill_flops.factor > 1.5
    assert set(reading.report.ms) == {"prepare", "vit", "vae_encode", "reduction", "prefill"}
    assert set(answer.report.ms) == {"prefill", "decode"}
    whole = answer.report.after(reading.report)
    assert whole.ms["prefill"] == pytest.approx(answer.report.ms["prefill"] + reading.report.ms["prefill"])
    assert set(whole.as_dict()) == {"visual_tokens", "kv_bytes", "prefill_flops", "ms", "notes"}


def test_flops_are_those_of_the_formula_at_full_size() -> None:
    from g2tr_core.report import DecoderCost, PrefilledBlock
    from g2tr_core.umm.bagel.config import BagelConfig

    model = copy(load(BAGEL_TINY, dtype=torch.bfloat16))
    model.config = BagelConfig()
    assert model.cost == DecoderCost(layers=28, weights=233_046_016, attention_width=3584, kv_bytes_a_layer=2048)
    assert model.cost.kv_bytes == 57_344
    pruned = (10, 10, *[5] * 26)  # as a method that works inside the decoder leaves them
    blocks = [PrefilledBlock(10, pruned, causal=False), PrefilledBlock(3, (3,) * 28, causal=True)]
    flops = model.cost.prefill_flops(blocks)
    pairs = 10 * 10 + 3 * 10 + 6
    assert flops.before == 2 * 13 * 6_525_288_448 + 4 * pairs * 100_352
    of_half = 2 * 8 * 233_046_016 + 4 * (25 + 15 + 6) * 3584
    assert flops.after == 2 * flops.before // 28 + 26 * of_half
    kept = model.cost.kept_bytes(blocks)
    assert (kept.before, kept.after) == (13 * 57_344, (2 * 13 + 26 * 8) * 2048)


def test_a_step_costs_what_the_formula_says() -> None:
    """Four references at 1024 pixels, at full size: 36,000 rows, of which a tenth of the visual tokens leaves half."""
    from g2tr_core.report import Change, DecoderCost, PrefilledBlock
    from g2tr_core.umm.bagel.config import BagelConfig

    plain, wide = (DecoderCost.of(BagelConfig(), 2, channels) for channels in (0, 8))
    latent = PrefilledBlock(4098, (4098,) * 28, causal=False)
    visual = PrefilledBlock(4902, (492,) * 28, causal=False, weighted=True)
    step = plain.step([latent, visual] * 4, latent)
    past = Change(4 * 9000, 4 * 4590)
    assert (step.rows, step.weight_flops) == (Change(past.before + 4098, past.after + 4098), 0)
    linear, pair = 2 * 4098 * 6_525_288_448, 4 * 4098 * 100_352
    assert step.flops == Change(linear + pair * step.rows.before, linear + pair * step.rows.after)
    weighed = wide.step([latent, visual] * 4, latent)
    assert weighed.weight_flops == weighed.flops.after - step.flops.after == 4 * 4098 * step.rows.after * 28 * 224
    pruned = PrefilledBlock(10, (10,) * 14 + (5,) * 14, causal=False)
    assert plain.step([pruned], latent).rows == Change(4108, 4106), "averaged over the layers"


def test_flops_count_what_token_weights_add() -> None:
    """Where they travel in channels: a latent before the picture is as it was, the picture and the text are wider."""
    from g2tr_core.report import DecoderCost, PrefilledBlock
    from g2tr_core.umm.bagel.config import BagelConfig

    plain, wide = (DecoderCost.of(BagelConfig(), 2, channels) for channels in (0, 8))
    assert wide.weight_width == 28 * 8
    blocks = [
        PrefilledBlock(6, (6,) * 28, causal=False),
        PrefilledBlock(10, (5,) * 28, causal=False, weighted=True),
        PrefilledBlock(3, (3,) * 28, causal=True),
    ]
    pairs = 5 * (6 + 5) + 3 * 11 + 6
    assert plain.weight_flops(blocks) == 0 and wide.weight_flops(blocks) == 4 * pairs * 28 * 224
    assert wide.prefill_flops(blocks).before == plain.prefill_flops(blocks).before
    assert wide.prefill_flops(blocks).after == plain.prefill_flops(blocks).after + wide.weight_flops(blocks)


def test_a_reading_says_what_its_weights_cost(tiny: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    weighted = Reduction(0.5, 1, token_weights=True)
    bias = tiny.read(PHOTO, weighted, purpose="edit").report
    assert not bias.notes, "nothing worth counting on a CPU"
    monkeypatch.setattr("g2tr_core.umm.contract.weight_channels", lambda *_: 8)
    report = tiny.read(PHOTO, weighted, purpose="edit").report
    assert report.prefill_flops.after > bias.prefill_flops.after and "saved net" in report.notes[0]
    assert not tiny.read(PHOTO, Reduction(0.5, 1), purpose="edit").report.notes, "none without weights"


def test_a_small_picture_says_that_the_encode_does_not_pay(tiny: Bagel) -> None:
    """On a tiny decoder the autoencoder costs far more than a shorter prefill saves, and the report admits it."""
    report = tiny.read(PHOTO, HALF).report
    assert len(report.notes) == 1 and "keep_ratio 1.0" in report.notes[0]
    assert not tiny.read(PHOTO).report.notes
    assert not tiny.read(PHOTO, HALF, purpose="edit").report.notes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny: Bagel, dtype: torch.dtype) -> None:
    half = load(BAGEL_TINY, dtype=dtype, **SMALL)
    ours, reference = half.read(PHOTO, HALF, purpose="edit"), tiny.read(PHOTO, HALF, purpose="edit")
    assert len(set(ours.reduced[0].keep.tolist()) & set(reference.reduced[0].keep.tolist())) > 0.8 * len(
        reference.reduced[0].keep
    )
    latents = [m.edit(r, "Red.", QUICK).latent.flatten() for m, r in ((half, ours), (tiny, reference))]
    assert torch.corrcoef(torch.stack(latents))[0, 1] > 0.98


def test_latents_are_in_the_scale_of_flux(tiny: Bagel) -> None:
    """Scaled and shifted, as the autoencoder wants them back."""
    made = tiny.imagine("A cup.", QUICK, size=(32, 32))
    decoded = (tiny.vae.decode(made.latent) / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    assert torch.equal(decoded, made.pixels)


def test_numbers_that_overflow_are_an_error_not_a_black_picture(tiny: Bagel) -> None:
    broken = load(BAGEL_TINY, dtype=torch.float32, **SMALL)
    broken.network.llm2vae.weight = torch.nn.Parameter(torch.full_like(broken.network.llm2vae.weight, torch.nan))
    with pytest.raises(G2TRError, match="not-a-number"):
        broken.imagine("A cup.", QUICK, size=(32, 32))
    broken = load(BAGEL_TINY, dtype=torch.float32, **SMALL)
    head = broken.network.language_model.lm_head
    head.weight = torch.nn.Parameter(torch.full_like(head.weight, torch.inf))
    with pytest.raises(G2TRError, match="not-a-number"):
        broken.answer(broken.read(PHOTO), "What?", decoding=SHORT)


def test_running_out_of_memory_is_advice_and_holds_no_tensors(tiny: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    reading = tiny.read(PHOTO, HALF, purpose="edit")
    monkeypatch.setattr(tiny.vae, "decode", full)
    with pytest.raises(G2TRError, match="keep_ratio") as caught:
        tiny.edit(reading, "Red.", QUICK)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    monkeypatch.undo()
    assert tiny.edit(reading, "Red.", QUICK).pixels.isfinite().all()
