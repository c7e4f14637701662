"""The contract that every model keeps, run against all of them: what nodes, command and experiments rely on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from g2tr_core.checkpoints.tokenizer import encode
from g2tr_core.embedded import INTERNVLU, PHOTO, SCENES
from g2tr_core.errors import G2TRError, ImageError, SettingsError
from g2tr_core.generation import decoding
from g2tr_core.generation.flow import Denoiser
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.nn.decoder import Decoder, LanguageModel
from g2tr_core.nn.kv_cache import Writer
from g2tr_core.reduction import Reduced, Reduction
from g2tr_core.reduction.contract import AfterEncoder, Candidates
from g2tr_core.reduction.methods import METHODS, PREFERRED
from g2tr_core.run import Run
from g2tr_core.umm import load
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.registry import models
from g2tr_core.umm.values import scaled
from tests.goldens import BAGEL_TINY

MODELS = (BAGEL_TINY, INTERNVLU)
EVERY = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
QUICK = Sampling(steps=2)
GUIDED = Sampling(steps=3, guidance=Guidance(text_scale=3.0, image_scale=1.5))
HALF = Reduction(0.5, 1)
SHORT = Decoding(max_tokens=5)
SCENE = SCENES / "scene-1.png"


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    """Every model in fp32, seeing small pictures. Shared: put back what you change."""
    small = {} if request.param == INTERNVLU else {"vae_resize": _rule(128, 64, 16), "vit_resize": _rule(112, 56, 14)}
    return load(request.param, dtype=torch.float32, **small)


def _rule(*sides: int) -> Any:
    from g2tr_core.umm.bagel.config import ResizeRule

    return ResizeRule(*sides)


def test_every_registered_model_is_tested(model: UnifiedModel) -> None:
    assert model.facts in models() and len(models()) == len(MODELS)
    assert {type(load(path)).__name__ for path in MODELS} == {known.implementation[1] for known in models()}


def test_facts_are_what_the_model_goes_by(model: UnifiedModel) -> None:
    facts = model.facts
    assert (model.latent_space, model.thinking) == (facts.latent_space, facts.thinking)
    for task in ("edit", "imagine"):
        assert model.default_sampling(task) == facts.sampling[task]
        assert model.default_sampling(task, think=True) == facts.thinking_sampling[task]
    for purpose in ("answer", "edit"):
        if purpose in facts.thinks_before:
            model.check_thinking(purpose, True)
        else:
            with pytest.raises(SettingsError, match="think"):
                model.check_thinking(purpose, True)


def test_one_loop_over_layers_serves_every_model(model: UnifiedModel) -> None:
    decoders = [module for module in model.network.modules() if isinstance(module, Decoder)]
    assert len(decoders) == 1 and len(decoders[0].layers) == model.config.layers


def test_all_tokens_are_exactly_the_model_without_reduction(model: UnifiedModel) -> None:
    whole, plain = (
        model.read([PHOTO, SCENE], Reduction(1.0), purpose="edit"),
        model.read([PHOTO, SCENE], purpose="edit"),
    )
    edits = [model.edit(reading, "Make it red.", GUIDED, size=(64, 64)) for reading in (whole, plain)]
    assert torch.equal(edits[0].latent, edits[1].latent)
    answers = [model.answer(reading, "What is it?", decoding=Decoding(6)).text for reading in (whole, plain)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_latent_is_made_only_for_methods_that_need_it(
    model: UnifiedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = model.encode_latent
    monkeypatch.setattr(model, "encode_latent", lambda pixels: encoded.append(pixels) or encode(pixels))
    reading = model.read(PHOTO, Reduction(0.5, 1, method=name))
    assert len(encoded) == ("latent" in METHODS[name].needs)
    assert ("vae_encode" in reading.report.ms) == bool(encoded)
    method = METHODS[name]  # what works in the decoder waits for the prompt, unless it begins before
    kept = 0.5 if isinstance(method, AfterEncoder) or method.select_first is not None else 1
    assert reading.visual_tokens.after == round(reading.visual_tokens.before * kept)


@pytest.mark.parametrize("name", [PREFERRED, "fastv"])
def test_answers_that_are_written_together_are_those_that_are_written_alone(model: UnifiedModel, name: str) -> None:
    """Texts of several lengths, behind readings of several lengths, two of them about one."""
    whole, half = model.read(PHOTO), model.read([SCENE, PHOTO], Reduction(0.5, 1, method=name))
    asked = [(whole, "What is it?"), (half, "Which of the two is larger?"), (whole, "Why?"), (model.blank(), "Hi")]
    limits = [Decoding(most, temperature=most / 10, seed=most) for most in (7, 1, 5, 3)]
    alone = [model.answer(*each, decoding=limit) for each, limit in zip(asked, limits, strict=True)]
    lengths: list[int] = []
    together = model.answers(asked, decoding=limits, progress=lambda stage, done, *_: lengths.append(done))
    assert lengths == sorted(set(lengths)) and 3 <= lengths[-1] <= 7, "so long that some end before others"
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.report.visual_tokens, one.report.kv_rows) == (
            other.text,
            other.report.visual_tokens,
            other.report.kv_rows,
        )
        assert all(map(torch.equal, one.kept, other.kept)) and "4 answers" in one.report.notes[-1]
    again = model.answers(asked, decoding=limits)
    assert [each.text for each in again] == [each.text for each in alone], "a reading stays as it was"


def test_questions_that_cannot_be_answered_together_say_why(model: UnifiedModel) -> None:
    reading = model.blank()
    assert model.answers([]) == []
    with pytest.raises(SettingsError, match="decoding: there are 1 for 2 questions"):
        model.answers([(reading, "What?"), (reading, "Why?")], decoding=[SHORT])
    with pytest.raises(SettingsError, match="question"):
        model.answers([(reading, "What?"), (reading, 3)])  # type: ignore[list-item]
    with pytest.raises(SettingsError, match="reading"):
        model.answers([(PHOTO, "What?")])  # type: ignore[list-item]


def test_the_likelihood_of_an_answer_is_that_of_its_tokens(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = model.read(PHOTO, HALF)
    seen: list[torch.Tensor] = []
    choose = decoding.choose
    monkeypatch.setattr(decoding, "choose", lambda logits, *rest: seen.append(logits) or choose(logits, *rest))
    answer = model.answer(reading, "What is it?", decoding=SHORT).text
    ids = encode(model.tokenizer, answer, special_tokens=False)
    if not ids:  # random weights may end at once, or say what no text stands for
        pytest.skip("this model says nothing")
    likely, greedy, tokens = model.likelihood(reading, "What is it?", answer)
    if ids == [int(logits.argmax()) for logits in seen[: len(ids)]]:
        expected = sum(float(logits.log_softmax(-1)[token]) for logits, token in zip(seen, ids, strict=False))
        assert greedy and tokens == len(ids) and likely == pytest.approx(expected, abs=1e-3)
    other, is_first, _ = model.likelihood(reading, "What is it?", "xylophone" if answer != "xylophone" else "9")
    assert other < 0 and not is_first
    with pytest.raises(SettingsError, match="answer"):
        model.likelihood(reading, "What is it?", "")


def test_vit_attention_is_supplied_to_methods_that_need_it(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def attended(candidates: Candidates, count: int) -> torch.Tensor:
        seen.append(candidates.vit_attention)
        return candidates.vit_attention.topk(count).indices.sort().values

    by_attention = AfterEncoder(
        name="attended", summary="By the ViT.", needs=frozenset({"vit_attention"}), colour="tab:pink", select=attended
    )
    monkeypatch.setitem(METHODS, "attended", by_attention)
    reading = model.read(PHOTO, Reduction(0.5, 1, method="attended"))
    (received,) = seen
    assert received.shape == (reading.visual_tokens.before,) and received.isfinite().all() and (received > 0).all()
    assert received.std() > 0 and "vae_encode" not in reading.report.ms
    # What all tokens receive of all attention is 1 a query; InternViT's class token takes its share.
    assert 0.5 < float(received.sum()) <= 1 + 1e-4


def _attended(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Operations of attention between these shapes; PyTorch's counter does not know the CPU's kernel."""
    return sdpa_flop_count(query, key, value)


@torch.inference_mode()
def test_a_step_costs_what_the_report_says(model: UnifiedModel) -> None:
    """Operators are counted as they run; embeddings and modulation, left out of the report, do not depend on tokens."""
    counted, said = [], []
    for ratio in (1.0, 0.3):
        reading = model.read([PHOTO, SCENE], Reduction(ratio, 1), purpose="edit")
        grid = model.latent_grid((64, 48))
        conditioned = model.condition(reading, "edit", "Red.", QUICK, None, grid, Run(model.device))
        noise, context = torch.randn(1, 16, *grid), conditioned.branches.contexts[:1]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        flops = FlopCounterMode(display=False, custom_mapping={kernel: _attended})
        with flops:
            model.denoiser(grid).forward(noise, torch.ones(1), context)
        counted.append(flops.get_total_flops())
        report = model.edit(reading, "Red.", QUICK, size=(64, 48)).report
        said.append(report)
        rows = round(ratio * reading.visual_tokens.before)
        assert report.step_rows.before - report.step_rows.after == reading.visual_tokens.before - rows
    assert said[0].step_flops.before == said[0].step_flops.after == said[1].step_flops.before
    assert counted[0] - counted[1] == said[1].step_flops.before - said[1].step_flops.after
    assert said[0].step_flops.before == pytest.approx(counted[0], rel=0.05)


def test_reports_tell_of_a_step_where_a_picture_is_made(model: UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = model.read(PHOTO, HALF, purpose="edit")
    made = model.edit(reading, "Red.", QUICK)
    for report in (reading.report, made.report, made.report.after(reading.report)):
        assert report.step_rows.factor > 1 and report.step_flops.factor > 1
        assert "denoising step" in report.as_text() and report.as_dict()["step_rows"]["after"] > 0
    more = made.report.step_rows.after - reading.report.step_rows.after
    assert more == made.report.step_rows.before - reading.report.step_rows.before > 0, "the instruction comes later"
    imagined = model.imagine("A cup.", QUICK, size=(32, 32)).report
    assert imagined.step_flops.before == imagined.step_flops.after > 0
    asked = model.read(PHOTO, HALF)
    for report in (asked.report, model.answer(asked, "What?", decoding=SHORT).report):
        assert "step" not in report.as_text() and not {"step_rows", "step_flops"} & set(report.as_dict())
    weighted = Reduction(0.5, 1, token_weights=True)
    bias = model.edit(model.read(PHOTO, weighted, purpose="edit"), "Red.", QUICK).report
    for module in ("contract", "internvlu.model"):
        monkeypatch.setattr(f"g2tr_core.umm.{module}.weight_channels", lambda *_: 8)
    reading = model.read(PHOTO, weighted, purpose="edit")
    assert "of a denoising step are saved net" in reading.report.notes[-1]
    channels = model.edit(reading, "Red.", QUICK).report
    assert channels.step_flops.before == bias.step_flops.before and channels.step_flops.after > bias.step_flops.after


def test_seeds_made_together_are_the_pictures_of_each_seed(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, HALF, purpose="edit")
    together = model.edit_seeds(reading, "Make it red.", [5, 0, 7], GUIDED, size=(64, 48))
    for seed, made in zip([5, 0, 7], together, strict=True):
        alone = model.edit(reading, "Make it red.", replace(GUIDED, seed=seed), size=(64, 48))
        torch.testing.assert_close(made.latent, alone.latent, atol=2e-4, rtol=2e-4)
        assert made.image.size == (64, 48)
    two = model.imagine_seeds("A cup.", [1, 2], QUICK, size=(32, 32))
    assert not torch.equal(two[0].latent, two[1].latent)
    with pytest.raises(SettingsError, match="seeds"):
        model.imagine_seeds("A cup.", [], QUICK)


@torch.inference_mode()
def test_denoisers_share_a_context_and_leave_it_as_it_was(model: UnifiedModel) -> None:
    """Two of different sizes, step by step in turn, beside one and the same context; times a sample or one for all."""
    reading, run = model.read(PHOTO, HALF, purpose="edit"), Run(model.device)
    made = {}
    for grid in ((4, 4), (6, 4)):
        conditioned = model.condition(reading, "edit", "Make it red.", GUIDED, None, grid, run)
        made[grid] = conditioned.branches.contexts, model.denoiser(grid)
    noise = {grid: torch.randn(2 * len(contexts), 16, *grid) for grid, (contexts, _) in made.items()}

    def velocity(grid: tuple[int, int], t: torch.Tensor) -> torch.Tensor:
        contexts, denoiser = made[grid]
        checked: Denoiser = denoiser
        return checked.forward(noise[grid], t, contexts)

    first = {grid: velocity(grid, torch.tensor([0.7])) for grid in made}
    for grid in made:
        found = velocity(grid, torch.tensor([0.7]))
        assert torch.equal(found, first[grid]) and found.shape == noise[grid].shape and found.dtype == torch.float32
        for_each = velocity(grid, torch.full((len(noise[grid]),), 0.7))
        torch.testing.assert_close(for_each, found, atol=2e-4, rtol=2e-4)
    model.answer(reading, "What is it?", decoding=Decoding(2))
    assert torch.equal(velocity((4, 4), torch.tensor([0.7])), first[4, 4]), "others may read and go on meanwhile"


def test_a_seed_is_a_picture(model: UnifiedModel) -> None:
    pictures = [model.imagine("A cup.", replace(GUIDED, seed=s), size=(32, 32)).pixels for s in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize("text_scale", [1.0, 4.5])
def test_guidance_one_by_one_paints_the_same(model: UnifiedModel, text_scale: float) -> None:
    reading = model.read(PHOTO, HALF, purpose="edit")
    together, one_by_one = (
        model.edit(reading, "Red.", Sampling(3, guidance=Guidance(text_scale), batch_guidance=batched))
        for batched in (True, False)
    )
    torch.testing.assert_close(together.pixels, one_by_one.pixels, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.latent, one_by_one.latent, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", ["read", "decode", "denoise", "think"])
def test_a_cancelled_run_leaves_the_reading_as_it_was(model: UnifiedModel, stage: str) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(name: str, done: int, total: int, preview: torch.Tensor | None = None) -> None:
        if name == stage:
            raise Cancelled

    reading = model.read(PHOTO, HALF, purpose="edit", think=True)
    before = model.edit(reading, "Red.", GUIDED, think=SHORT), model.answer(reading, "What?", decoding=SHORT)
    with pytest.raises(Cancelled):
        model.read(PHOTO, HALF, progress=cancel)
        model.answer(reading, "What?", decoding=SHORT, progress=cancel)
        model.edit(reading, "Blue.", GUIDED, think=SHORT, progress=cancel)
    after = model.edit(reading, "Red.", GUIDED, think=SHORT), model.answer(reading, "What?", decoding=SHORT)
    assert torch.equal(before[0].pixels, after[0].pixels) and before[1].text == after[1].text


def test_progress_reports_every_step_with_a_preview(model: UnifiedModel) -> None:
    seen = []
    reading = model.read(PHOTO, HALF, purpose="edit")
    made = model.edit(reading, "Red.", replace(GUIDED, steps=4), progress=lambda *step: seen.append(step))
    assert [(stage, done, total) for stage, done, total, _ in seen] == [("denoise", i, 4) for i in (1, 2, 3, 4)]
    assert seen[-1][3].shape == made.latent.shape
    torch.testing.assert_close(seen[-1][3], made.latent, atol=1e-4, rtol=1e-4)


def test_two_threads_ask_and_edit_one_reading(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, HALF, purpose="edit")
    questions = ["What is this?", "And which colour has the largest cup on the table?"]
    alone = {asked: model.answer(reading, asked, decoding=Decoding(6)).text for asked in questions}
    edited = {asked: model.edit(reading, asked, GUIDED, size=(48, 48)).latent for asked in questions}
    wrong: list[str] = []

    def work(asked: str) -> None:
        for _ in range(4):
            if model.answer(reading, asked, decoding=Decoding(6)).text != alone[asked]:
                wrong.append(f"answer to {asked}")
            latent = model.edit(reading, asked, GUIDED, size=(48, 48)).latent
            if not torch.allclose(latent, edited[asked], atol=2e-4, rtol=2e-4):
                wrong.append(f"edit: {asked}")

    threads = [threading.Thread(target=work, args=(asked,)) for asked in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_memory_manager_needs(model: UnifiedModel) -> None:
    assert not {*map(id, model.network.parameters())} & {*map(id, model.vae.parameters())}
    assert model.compute_dtype == torch.float32 and model.latent_space in ("flux", "qwen-image")
    sides, reading = model.sides, model.read(PHOTO)
    for side in model.default_size:
        assert sides.smallest <= side <= sides.largest and side % sides.step == 0
    needed = {
        "reading": model.memory_estimate.reading([(600, 400)], "edit"),
        "answering": model.memory_estimate.answering(reading, Decoding(8), False),
        "editing": model.memory_estimate.editing(reading, (64, 64), QUICK, None),
        "larger": model.memory_estimate.editing(reading, (128, 64), QUICK, None),
        "thinking": model.memory_estimate.editing(reading, (128, 64), QUICK, Decoding(8)),
        "imagining": model.memory_estimate.imagining((64, 64), QUICK, None),
    }
    assert min(needed.values()) > 0 and all(isinstance(count, int) for count in needed.values())
    assert needed["editing"] < needed["larger"] < needed["thinking"]


def test_a_prefill_that_a_reading_lacks_is_counted(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, purpose="edit")
    assert reading.is_prefilled("edit", False) and not reading.is_prefilled("answer", False)
    before = model.memory_estimate.answering(reading, Decoding(8), False)
    model.answer(reading, "What is this?", decoding=Decoding(2))
    assert reading.is_prefilled("answer", False)
    after = model.memory_estimate.answering(reading, Decoding(8), False)
    sizes = [picture.prepared.size for picture in reading.encoding.pictures]
    assert before - after == model.memory_estimate.reading(sizes, "answer") > 0

    reading = model.read(PHOTO)
    lacking = model.memory_estimate.editing(reading, (64, 64), QUICK, None)
    model.edit(reading, "Make it red.", QUICK)
    assert lacking - model.memory_estimate.editing(reading, (64, 64), QUICK, None) > 0


def test_sizes_that_nobody_gives(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, Reduction(0.25, 1), purpose="edit")
    edited = model.edit(reading, "Make it red.", QUICK)
    assert (edited.pixels.shape[1], edited.pixels.shape[0]) == reading.size
    width, height = model.imagine("A cup.", QUICK).image.size
    assert (width, height) == model.default_size == (128, 128)


@pytest.mark.parametrize("size", [(100, 80), (33, 47), (64, 48)])
def test_a_picture_has_the_size_that_was_asked_for_and_says_how_it_was_made(
    model: UnifiedModel, size: tuple[int, int]
) -> None:
    made = model.imagine("A cup.", QUICK, size=size)
    at = made.latent.shape[2] * 8, made.latent.shape[1] * 8
    assert made.image.size == size and all(abs(side - asked) <= 8 for side, asked in zip(at, size, strict=True))
    said = f"The picture was made at {at[0]}x{at[1]} and scaled to {size[0]}x{size[1]}."
    assert (said in made.report.notes) == (at != size)


@pytest.mark.parametrize("size", [(97, 64), (131, 75), (60, 127), (128, 128)])
def test_a_picture_comes_back_where_it_was(model: UnifiedModel, size: tuple[int, int]) -> None:
    """What is read, and scaled back to the size of the picture, is neither shifted nor zoomed."""
    across, down = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="xy")
    waves = (0.5 + 0.25 * torch.sin(20 * across) + 0.25 * torch.sin(20 * down))[..., None].repeat(1, 1, 3)
    prepared = model.prepare(waves)
    seen = (prepared.vae_pixels.float() / 2 + 0.5).permute(1, 2, 0)
    back = scaled(seen.clamp(0, 1), prepared.picture_size)
    assert back.shape == waves.shape
    inside = (slice(4, -4), slice(4, -4))
    away = (back - waves)[inside].abs().mean()
    shifted = (waves.roll(1, 0) - waves)[inside].abs().mean(), (waves.roll(1, 1) - waves)[inside].abs().mean()
    assert away < min(shifted) / 4, "a quarter of a pixel"


def test_words_behind_pictures_have_the_same_places_whatever_was_dropped(model: UnifiedModel) -> None:
    """Of BAGEL, whose pictures take one rope id each; InternVL-U's visual tokens are words to its language model, which
    close ranks."""
    places = []
    for ratio in (1.0, 0.25):
        reading = model.read([SCENE, PHOTO], Reduction(ratio, 1), purpose="answer")
        prefix = max(reading.kv_prefixes(), key=lambda prefix: prefix.position)
        places.append((prefix.position, prefix.length))
    (whole, all_rows), (reduced, few_rows) = places
    assert few_rows < all_rows
    assert (whole == reduced) if isinstance(model, Bagel) else (whole - reduced == all_rows - few_rows)


def grouped(model: UnifiedModel, groups: int, *, token_weights: bool | None) -> Any:
    """A reading of a picture whose tokens are `groups` groups of equal features, at the place of each group's first:
    all of them, or with one token for each group."""
    encoded = model.encode(SCENE)
    (picture,) = encoded.pictures
    tokens = len(picture.features)
    owner = torch.arange(tokens) * groups // tokens * tokens // groups  # [N] roughly where each group begins
    first = owner.unique()
    owner = first[torch.searchsorted(first, torch.arange(tokens), right=True) - 1]
    whole = Reduced(
        picture.features[owner], owner, None, torch.arange(tokens), torch.ones(tokens)
    )  # all tokens, each at the place of its group's first
    few = Reduced(picture.features[first], first, None, owner, torch.bincount(owner, minlength=tokens)[first].float())
    settings = Reduction(groups / tokens, 1, token_weights=bool(token_weights))
    return model.new_reading(encoded, settings, (whole if token_weights is None else few,))


@torch.inference_mode()
def test_equal_tokens_merge_exactly_where_they_weigh_what_they_stand_for(model: UnifiedModel) -> None:
    readings = {weighed: grouped(model, 4, token_weights=weighed) for weighed in (None, True, False)}
    if not isinstance(model, Bagel):
        pytest.skip("its visual tokens have rope ids of their own, so none are equal")
    logits, original = {}, LanguageModel.logits
    for weighed, reading in readings.items():
        seen: list[torch.Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanguageModel, "logits", lambda *a, seen=seen: seen.append(original(*a)) or seen[-1])
            model.answer(reading, "What is this?", decoding=Decoding(6))
        edited = model.edit(reading, "Red.", GUIDED, size=(48, 48)).latent
        logits[weighed] = torch.stack(seen), edited
    for found, expected in zip(logits[True], logits[None], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (logits[False][0][0] - logits[None][0][0]).abs().max() > 1e-2, "without weights they are not"


def test_weights_reach_every_row_that_looks_at_a_picture(model: UnifiedModel) -> None:
    plain, weighed = (
        model.read([SCENE, PHOTO], Reduction(0.3, 1, token_weights=weights), purpose="edit")
        for weights in (False, True)
    )
    assert torch.equal(plain.kept[0], weighed.kept[0]) and plain.log_weights == [None, None]
    for weights, picture in zip(weighed.log_weights, weighed.encoding.pictures, strict=True):
        assert weights.exp().sum() == pytest.approx(len(picture.features))
    rows = max(weighed.kv_prefixes(), key=lambda prefix: prefix.length).ranges(model.config.layers - 1)
    found = torch.cat([each.log_weight for each in rows if each.log_weight is not None])
    expected = torch.cat(weighed.log_weights)
    assert torch.equal(found[found > 0].sort().values, expected[expected > 0].sort().values)
    for ask in (
        lambda reading: model.edit(reading, "Red.", QUICK, size=(48, 48)).latent,
        lambda reading: model.edit(reading, "Red.", GUIDED, size=(48, 48)).latent,
    ):
        assert not torch.equal(ask(plain), ask(weighed))
    whole = model.read(SCENE, Reduction(1.0, token_weights=True))
    assert whole.log_weights == [None] and all(
        each.log_weight is None for prefix in whole.kv_prefixes() for each in prefix.ranges(0)
    ), "a reading of all tokens takes the path without weights"


def test_an_edit_at_another_size_than_the_picture_says_so(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, HALF, purpose="edit")
    told = [
        any("was read at" in note for note in model.edit(reading, "Red.", QUICK, size=size).report.notes)
        for size in (None, reading.size, (64, 64))
    ]
    assert told == [False, False, True]


def test_an_edit_can_have_the_size_of_the_picture_itself(model: UnifiedModel) -> None:
    picture = Image.effect_noise((133, 91), 40).convert("RGB")
    reading = model.read(picture, HALF, purpose="edit")
    assert reading.picture_size == (133, 91) != reading.size
    made = model.edit(reading, "Red.", QUICK)
    fitted = made.scaled_to(reading.picture_size)
    assert fitted.image.size == (133, 91) and torch.equal(fitted.latent, made.latent)
    assert len(fitted.report.notes) == len(made.report.notes) + 1 and made.scaled_to(made.image.size) is made


@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
@pytest.mark.parametrize("budget", ["ratio", "auto"])
def test_what_is_protected_stays_whatever_the_budget(model: UnifiedModel, share: float, budget: Any) -> None:
    mask = torch.zeros(80, 60)
    mask[: int(80 * share)] = 1.0
    settings = Reduction(0.25, 1, budget=budget, auto_min_ratio=0.1)
    reading = model.read([SCENE, PHOTO], settings, priority=[None, mask])
    rows, columns = reading.encoding.pictures[1].prepared.vit_grid
    whole = int(rows * share) * columns
    assert torch.isin(torch.arange(whole), reading.kept[1]).all()
    assert len(reading.kept[1]) == max(whole, 1 if budget == "auto" else round(rows * columns / 4))
    assert any(f"{whole} of {rows * columns} tokens are protected" in note for note in reading.report.notes)
    inside = model.read(PHOTO, Reduction(0.5, 1), priority=[mask * (torch.arange(80)[:, None] < 20)])
    assert not inside.report.notes or "protected" not in "".join(inside.report.notes)


@pytest.mark.parametrize("side", ["smallest", "largest"])
def test_sides_are_those_that_generation_takes(model: UnifiedModel, side: str) -> None:
    limit, beyond = getattr(model.sides, side), -1 if side == "smallest" else 1
    with pytest.raises(SettingsError, match="width"):
        model.imagine("A cup.", QUICK, size=(limit + beyond, model.sides.smallest))
    narrow = model.imagine("A cup.", QUICK, size=(limit, model.sides.smallest))
    assert narrow.image.size == (limit, model.sides.smallest)


@pytest.mark.parametrize(
    ("call", "kind", "names"),
    [
        (lambda m, r: m.read([]), SettingsError, "inputs"),
        (lambda m, r: m.read(["only text"]), SettingsError, "inputs"),
        (lambda m, r: m.read(Path("nowhere.png")), ImageError, "nowhere.png"),
        (lambda m, r: m.read(torch.zeros(3)), ImageError, ""),
        (lambda m, r: m.read([3]), ImageError, ""),
        (lambda m, r: m.read(PHOTO, purpose="draw"), SettingsError, "purpose"),
        (lambda m, r: m.read(PHOTO, HALF, priority=[]), SettingsError, "priority"),
        (lambda m, r: m.read(PHOTO, HALF, priority=[torch.zeros(2, 2, 2)]), SettingsError, "priority"),
        (lambda m, r: m.answer(r, None), SettingsError, "question"),
        (lambda m, r: m.edit(r, 5), SettingsError, "instruction"),
        (lambda m, r: m.edit(r, "Red.", size=(8, 64)), SettingsError, "width"),
        (lambda m, r: m.edit(r, "Red.", size=(64, 4096)), SettingsError, "height"),
        (lambda m, r: m.edit(r, "Red.", size="64x64"), SettingsError, "size"),
        (lambda m, r: m.edit(r, "Red.", size=(64.5, 64)), SettingsError, "size"),
        (lambda m, r: m.edit(r, "Red.", QUICK, noise=torch.zeros(3, 64)), SettingsError, "noise"),
        (lambda m, r: m.imagine(["A cup."]), SettingsError, "prompt"),
        (lambda m, r: m.imagine("A cup.", size=(0, 64)), SettingsError, "size"),
    ],
)
def test_bad_calls_are_refused_with_advice(
    model: UnifiedModel, call: Callable[..., object], kind: type[G2TRError], names: str
) -> None:
    with pytest.raises(kind) as caught:
        call(model, model.read(PHOTO, HALF))
    assert names in str(caught.value) and caught.value.fix


def ids_of(model: UnifiedModel, text: str) -> list[int]:
    """Token ids of a question without pictures, frame included."""
    if isinstance(model, Bagel):
        return model._ids(text).tolist()
    return list(model.prefiller(Run(model.device)).ids(model.blank(), "answer", text))


def words_of(model: UnifiedModel) -> Any:
    return model.tokenizer if isinstance(model, Bagel) else model.words.tokenizer


def test_special_tokens_in_texts_are_words_unless_asked_for(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(model)
    special = {token.content: index for index, token in words.added_tokens_decoder.items() if token.special}
    frame = [index for index in ids_of(model, "") if index in special.values()]
    assert len(special) > 10
    for word, index in special.items():
        text = f"A photo called {word}.png?"
        plain = ids_of(model, text)
        assert [each for each in plain if each in special.values()] == frame, word
        assert text in words.decode(plain)
        with monkeypatch.context() as patch:
            patch.setattr(model, "special_tokens", True)
            assert ids_of(model, text).count(index) == frame.count(index) + 1, word
    if isinstance(model, InternVLU):  # whose picture tokens must be as many as its visual tokens
        monkeypatch.setattr(model, "special_tokens", True)
        for word in ("<IMG_CONTEXT>", "<img>", "<|im_start|>"):
            with pytest.raises(SettingsError, match="question"):
                model.answer(model.blank(), f"What is {word}?")
        monkeypatch.undo()
    reading = model.read([SCENE, "<|im_end|> and <img>,", PHOTO], HALF, purpose="edit")
    assert model.answer(reading, "<|vision_start|><img>?", decoding=SHORT).report.visual_tokens.before
    assert model.edit(reading, "</img> <IMG_CONTEXT> <img_uncond>", QUICK, size=(32, 32)).pixels.isfinite().all()


@pytest.mark.parametrize(
    "text", ["two words", "Ünïcode, 漢字 🎨!", "  spaces\t\n\nlines  \n", "a<b>c <|x|> </d>", "12 3"]
)
def test_a_text_is_encoded_as_if_special_tokens_had_never_been_split(
    model: UnifiedModel, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ids_of(model, text)
    monkeypatch.setattr(model, "special_tokens", True)
    assert plain == ids_of(model, text)


def test_threads_that_encode_do_not_disturb_each_other(model: UnifiedModel) -> None:
    words, wrong = words_of(model), []

    def work(special_tokens: bool) -> None:
        alone = encode(words, "a <|im_end|> b", special_tokens=special_tokens)
        for _ in range(300):
            if encode(words, "a <|im_end|> b", special_tokens=special_tokens) != alone:
                wrong.append(special_tokens)

    threads = [threading.Thread(target=work, args=(special_tokens,)) for special_tokens in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_text_that_no_position_is_left_for_is_refused_before_work(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = model.read(PHOTO, HALF, purpose="edit")
    model.answer(reading, "What?", decoding=SHORT)
    monkeypatch.setattr(LanguageModel, "embed", None)  # not to be called
    for call in (model.answer, model.edit):
        with pytest.raises(SettingsError, match=r"too long.*positions.* of them are taken.*Shorten"):
            call(reading, "word " * 40_000)
    with pytest.raises(SettingsError, match="too long"):
        model.imagine("word " * 40_000)


def test_a_long_prefill_says_how_far_it_is_and_can_be_cancelled(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("g2tr_core.nn.decoder.MANY_ROWS", 20)
    reading = model.read(PHOTO, HALF, progress=lambda *step: seen.append(step))
    layers = model.config.layers
    assert ("prefill", layers - 1, layers, None) in seen

    def cancelled(stage: str, *_: object) -> None:
        if stage == "prefill":
            raise KeyboardInterrupt

    asked = "a question of many words " * 4
    alone = model.answer(reading, asked, decoding=SHORT).text
    with pytest.raises(KeyboardInterrupt):
        model.answer(reading, asked, decoding=SHORT, progress=cancelled)
    assert model.answer(reading, asked, decoding=SHORT).text == alone


@pytest.mark.parametrize("token", [1, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_break_while_decoding_are_an_error_at_their_token(
    model: UnifiedModel, token: int, value: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, count, logits = model.read(PHOTO, HALF), [], LanguageModel.logits

    def broken(self: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
        count.append(hidden)
        scores = logits(self, hidden)
        scores[..., ::7] = value if len(count) == token else scores[..., ::7]
        return scores

    monkeypatch.setattr(LanguageModel, "logits", broken)
    with pytest.raises(G2TRError, match=f"the text came out as not-a-number in float32 at token {token}"):
        model.answer(reading, "What?", decoding=Decoding(8, temperature=temperature))
    assert len(count) == token


def test_numbers_that_break_while_denoising_are_an_error_at_their_step(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, taken, decoded = model.read(PHOTO, HALF, purpose="edit"), [], []
    made = model.denoiser(model.latent_grid((32, 32)))
    forward = type(made).forward

    def broken(self: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(x)
        velocity = forward(self, x, *rest)
        return velocity * torch.nan if len(taken) == 2 else velocity

    monkeypatch.setattr(type(made), "forward", broken)
    monkeypatch.setattr(model, "decode_latent", decoded.append)
    with pytest.raises(G2TRError, match="the picture came out as not-a-number in float32 at step 2"):
        model.edit(reading, "Red.", replace(GUIDED, steps=20), size=(32, 32))
    assert len(taken) == 3 and not decoded, "seen one step later, not after all of them"


def test_rows_of_a_long_answer_are_given_back(model: UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g2tr_core.nn.text_writer.GROWTH", 8)
    monkeypatch.setattr("g2tr_core.nn.kv_cache.GROWTH", 8)
    monkeypatch.setattr("g2tr_core.umm.bagel.model.TEXT_ROOM", 4)
    monkeypatch.setattr("g2tr_core.umm.internvlu.prefix.TEXT_ROOM", 4)
    monkeypatch.setattr("g2tr_core.umm.reading.TEXT_ROOM", 4)
    reading = model.read(PHOTO, HALF, purpose="edit")
    model.answer(reading, "What?", decoding=SHORT)
    small = reading.nbytes
    peak, write = [], Writer.remember

    def counted(self: Writer, *args: Any, **others: Any) -> None:
        write(self, *args, **others)
        peak.append(reading.nbytes)

    monkeypatch.setattr(Writer, "remember", counted)
    monkeypatch.setattr("g2tr_core.generation.decoding.choose", lambda logits, *_: logits.new_full((1,), 5).long())
    text = model.answer(reading, "What?", decoding=Decoding(100)).text
    assert len(text) and max(peak) > small + 90 * model.cost.kv_bytes, "it grew for the answer"
    assert reading.nbytes == small, "and is as it was"
    monkeypatch.setattr(Writer, "remember", write)
    assert model.answer(reading, "What?", decoding=Decoding(100)).text == text


def test_readings_can_be_moved(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, Reduction(0.5, 1), purpose="edit")
    made = model.edit(reading, "Make it red.", QUICK, size=(64, 64))
    size = reading.nbytes
    assert size > 0
    reading.to(torch.device("cpu"))
    assert reading.nbytes == size
    again = model.edit(reading, "Make it red.", QUICK, size=(64, 64))
    assert torch.equal(made.latent, again.latent)
    reading.to(torch.device("meta"))
    assert reading.nbytes == size and reading.encoding.pictures[0].features.is_meta
    assert reading.visual_tokens.after < reading.visual_tokens.before


@EVERY
def test_weights_may_lie_elsewhere(path: Path) -> None:
    """As a memory manager has it: the model runs here, the weights are somewhere else for now."""
    loaded = load(path, device="meta", weights_device="cpu", dtype=torch.float32)
    assert loaded.device.type == "meta"
    assert {tensor.device.type for tensor in (*loaded.network.parameters(), *loaded.vae.parameters())} == {"cpu"}


@EVERY
def test_devices_are_checked(path: Path) -> None:
    for devices in ({"device": "nonsense"}, {"weights_device": "nonsense"}):
        with pytest.raises(SettingsError, match="device"):
            load(path, **devices)
