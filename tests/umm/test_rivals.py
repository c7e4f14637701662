"""The published methods inside the decoder: kept tokens, caches and logits are those of the slow reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, PHOTO, SCENES
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.nn.blocks import Block
from g2tr_core.nn.decoder import Decoder, Prefilled
from g2tr_core.nn.text_writer import TextWriter
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.contract import InDecoder
from g2tr_core.reduction.methods import METHODS
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.pruning import PicturePruning
from g2tr_core.umm.reading import TEXT_ROOM
from tests.umm.slow_rivals import Picture, Slow, vscan_first, window

RIVALS = {name: method for name, method in METHODS.items() if isinstance(method, InDecoder)}
EVERY = pytest.mark.parametrize("name", RIVALS)
SCENE = SCENES / "scene-1.png"
FEW = Sampling(steps=1, guidance=Guidance(text_scale=2.0, image_scale=1.5))


@pytest.fixture(scope="module", params=[CHECKPOINT, INTERNVLU], ids=["bagel", "internvlu"])
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    return load(request.param, dtype=torch.float32)


def language_model(model: UnifiedModel) -> Any:
    return getattr(model.network, "vlm", model.network).language_model


@pytest.fixture
def prefills(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[Block], PicturePruning, Prefilled]]]:
    """Every prefill that a method in the decoder took part in: what went in, and what came out."""
    seen = []
    plain = Decoder.prefill

    def noting(self: Decoder, prefix: Any, blocks: Any, *, pruning: Any = None, **rest: Any) -> Prefilled:
        given = [Block(**{**vars(block), "und": None if block.und is None else block.und.clone()}) for block in blocks]
        done = plain(self, prefix, blocks, pruning=pruning, **rest)
        if pruning is not None:
            assert prefix.position == 0
            seen.append((given, pruning, done))
        return done

    monkeypatch.setattr(Decoder, "prefill", noting)
    yield seen


def slowly(model: UnifiedModel, name: str, how: Reduction, blocks: list[Block], kept: list[Tensor], grids: Any) -> Slow:
    """The reference over the blocks of one prefill; kept [K] of each picture before the decoder."""
    decoder, pictures, start = language_model(model).model, [], 0
    places = iter(zip(kept, grids, strict=True))
    for block in blocks:
        if block.tokens is not None:
            chosen, grid = next(places)
            rows = list(range(start + block.tokens[0], start + block.tokens[1]))
            pictures.append(Picture(rows, grid, chosen.tolist()))
        start += block.rows
    slow = Slow(decoder, blocks, pictures, weighed=how.weighs)
    method = RIVALS[name]
    slow.run(name, method.layers(decoder.sizes.layers, how.keep_ratio), method.everywhere)
    return slow


def compare(model: UnifiedModel, slow: Slow, pruning: PicturePruning, done: Prefilled) -> None:
    """Kept places, rows and caches of every layer, and the logits of one more token."""
    for picture, positions in zip(slow.pictures, pruning.kept, strict=True):
        assert picture.places == positions.tolist()
    assert [sum(rows) for rows in zip(*done.rows, strict=True)] == slow.went_through
    assert done.prefix.rows_by_layer == tuple(int(alive.sum()) for alive in slow.alive)
    for layer, alive in enumerate(slow.alive):
        (held,) = done.prefix.ranges(layer)
        torch.testing.assert_close(held.key, slow.keys[layer][alive], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(held.value, slow.values[layer][alive], atol=2e-4, rtol=2e-4)
        weight = torch.zeros(len(held.key)) if held.log_weight is None else held.log_weight
        torch.testing.assert_close(weight, slow.log_weights[layer][alive], atol=1e-5, rtol=1e-5)
    words = language_model(model)
    token = torch.tensor([7])
    logits = words.logits(slow.next(words.embed(token)[0]))
    torch.testing.assert_close(TextWriter(words, done.prefix, 1)(token), logits, atol=5e-4, rtol=5e-4)


@torch.inference_mode()
@EVERY
@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "weighed"])
def test_an_answer_is_read_as_the_reference_reads_it(
    model: UnifiedModel, name: str, weighed: bool, prefills: list[Any]
) -> None:
    how = Reduction(0.4, 1, method=name, token_weights=weighed)
    reading = model.read(PHOTO, how)
    answer = model.answer(reading, "How many red circles are there?", decoding=Decoding(2))
    ((blocks, pruning, done),) = prefills
    grids = [picture.prepared.vit_grid for picture in reading.encoding.pictures]
    slow = slowly(model, name, how, blocks, reading.kept, grids)
    compare(model, slow, pruning, done)
    layers = model.config.layers
    framing = sum(block.rows for block in blocks) - len(reading.kept[0])  # markers and texts
    shown = sum(through - framing for through in slow.went_through)
    assert answer.report.visual_tokens.after == round(shown / layers)
    left = sum(int(alive.sum()) for alive in slow.alive)
    assert answer.report.kv_bytes.after == left * model.cost.kv_bytes_a_layer


@torch.inference_mode()
@EVERY
def test_an_edit_is_read_as_the_reference_reads_it(model: UnifiedModel, name: str, prefills: list[Any]) -> None:
    how = Reduction(0.4, 1, method=name)
    reading = model.read([PHOTO, SCENE], how, purpose="edit")
    assert not prefills
    edited = model.edit(reading, "Make the red circle blue.", FEW, size=(64, 64))
    grids = [picture.prepared.vit_grid for picture in reading.encoding.pictures]
    assert len(prefills) == (1 if model.facts.name.startswith("BAGEL") else 2)  # and what guidance compares with
    for blocks, pruning, done in prefills:
        slow = slowly(model, name, how, blocks, reading.kept, grids)
        compare(model, slow, pruning, done)
        for number, states in done.hidden.items():
            if number == model.config.layers:
                expected = slow.decoder.norm(slow.x[slow.now])
                torch.testing.assert_close(states, expected, atol=5e-4, rtol=5e-4)
    assert edited.latent.isfinite().all()


@torch.inference_mode()
def test_the_first_stage_of_vscan_is_that_of_the_reference(model: UnifiedModel) -> None:
    encoded = model.encode(PHOTO)
    (picture,) = encoded.pictures
    shallow, deep = (model.vit_attention(picture.prepared, depth) for depth in (0.25, 1.0))
    assert not torch.equal(shallow, deep) and shallow.isfinite().all()
    for ratio in (0.1, 0.3, 0.5, 0.9):
        reading = model.read(encoded, Reduction(ratio, 1, method="vscan"))
        wanted = vscan_first(shallow, deep, picture.prepared.vit_grid, len(reading.kept[0]))
        assert reading.kept[0].tolist() == wanted


@EVERY
def test_every_prompt_has_a_choice_of_its_own(model: UnifiedModel, name: str, prefills: list[Any]) -> None:
    reading = model.read(PHOTO, Reduction(0.3, 1, method=name))
    questions = ("How many circles?", "What colour is the square at the top?", "Is there a cup?", "How many circles?")
    for question in questions:
        model.answer(reading, question, decoding=Decoding(1))
    kept = [tuple(pruning.kept[0].tolist()) for _, pruning, _ in prefills]
    assert kept[0] == kept[-1] and len(set(kept)) > 1


@EVERY
def test_protected_tokens_stay_and_others_go_first(model: UnifiedModel, name: str, prefills: list[Any]) -> None:
    mask = torch.zeros(16, 16)
    mask[:4], mask[8:] = 1, -1
    reading = model.read(PHOTO, Reduction(0.5, 1, method=name), priority=[mask])
    model.answer(reading, "How many circles?", decoding=Decoding(1))
    ((_, pruning, _),) = prefills
    rows, columns = reading.encoding.pictures[0].prepared.vit_grid
    kept = set(pruning.kept[0].tolist())
    protected = {place for place in range(rows * columns) if (place // columns + 1) / rows <= 0.25}
    assert protected and protected <= kept
    sacrificed = {place for place in kept if (place // columns) / rows >= 0.5}
    assert len(sacrificed) <= max(0, len(kept) - rows * columns // 2) + (name == "trim")  # whose mean stands somewhere


# --- schedules -------------------------------------------------------------------------------------------------------


def test_published_schedules() -> None:
    """At the published depths: 32 layers of LLaVA-1.5 7B, 28 of Qwen2.5-VL 7B, BAGEL and InternVL-U."""
    assert RIVALS["fastv"].layers(32, 0.5) == RIVALS["window-fastv"].layers(28, 0.5) == {2: 0.5}
    assert RIVALS["pdrop"].layers(32, 0.5) == {8: 0.5, 16: 0.25, 24: 0.125}
    assert RIVALS["pdrop"].average(32, 0.5) == pytest.approx((8 + 4 + 2 + 1) / 32)
    assert RIVALS["vscan"].layers(32, 96 / 576) == pytest.approx({16: 32 / 576})
    assert RIVALS["vscan"].average(32, 96 / 576) == pytest.approx(64 / 576)  # as its README says
    assert RIVALS["vscan"].average(28, 0.167) == pytest.approx(0.111, abs=5e-4)
    assert RIVALS["ivc-prune"].layers(32, 0.5) == {16: 0.5} and RIVALS["ivc-prune"].everywhere
    assert RIVALS["trim"].layers(28, 0.3) == {0: 0.3}


@EVERY
@given(layers=st.integers(1, 80), ratio=st.floats(0.01, 0.99))
def test_schedules_only_ever_drop(name: str, layers: int, ratio: float) -> None:
    method = RIVALS[name]
    changes = method.layers(layers, ratio)
    assert all(0 <= layer < layers for layer in changes)
    shares = method.shares(layers, ratio)
    assert len(shares) == layers and all(0 < share <= 1 for share in shares)
    assert all(later <= earlier for earlier, later in pairwise(shares))
    assert shares[0] == (ratio if method.select_first or name == "trim" else 1)
    assert method.average(layers, ratio) == pytest.approx(sum(shares) / layers)
    if ratio < 0.9:
        assert method.average(layers, ratio) <= method.average(layers, ratio + 0.05)
    stages = {"pdrop": 3}.get(name, 1)
    assert len(changes) == (stages if layers > stages else min(stages, max(0, layers - 1) if name != "trim" else 1))


@settings(deadline=None)
@given(rows=st.integers(1, 13), columns=st.integers(1, 13), share=st.floats(0.05, 1.0), seed=st.integers(0, 2**16))
def test_windows_get_equal_quotas(rows: int, columns: int, share: float, seed: int) -> None:
    from g2tr_core.reduction.contract import LayerView

    tokens = rows * columns
    count = max(1, round(share * tokens))
    attention = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed))
    view = LayerView(1, attention, torch.zeros(tokens, 1), torch.arange(tokens), (rows, columns), None, 0)
    chosen = RIVALS["window-fastv"].select(view, count).tolist()
    assert len(set(chosen)) == count and chosen == sorted(chosen)
    windows = [window((rows, columns), place) for place in range(tokens)]
    sizes = {each: windows.count(each) for each in windows}
    quota = {each: sum(windows[place] == each for place in chosen) for each in sizes}
    most = max(quota.values())
    assert all(number >= min(most - 1, sizes[each]) for each, number in quota.items())  # but where one is empty


def test_positions_count_only_where_tokens_have_some(model: UnifiedModel, prefills: list[Any]) -> None:
    """IVC-Prune's positions: BAGEL's visual tokens share one, InternVL-U's have one each."""
    reading = model.read(PHOTO, Reduction(0.5, 1, method="ivc-prune"))
    shown = []
    select = RIVALS["ivc-prune"].select
    original = METHODS["ivc-prune"]
    spying = InDecoder(**{**vars(original), "select": lambda view, count: shown.append(view) or select(view, count)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "ivc-prune", spying)
        model.answer(reading, "How many?", decoding=Decoding(1))
    (view,) = shown
    assert len(view.rotary[0]) == (1 if model.facts.name.startswith("BAGEL") else len(view.hidden))
    assert len(view.values.prompt) == len(view.prompt) and view.values.tokens.shape[0] == len(view.hidden)


@EVERY
def test_what_is_dropped_takes_no_memory(model: UnifiedModel, name: str, prefills: list[Any]) -> None:
    reading = model.read(PHOTO, Reduction(0.2, 1, method=name))
    model.answer(reading, "How many?", decoding=Decoding(1))
    ((_, _, done),) = prefills
    cache, rows = done.prefix.cache, done.prefix.rows_by_layer
    held = [cache.view(layer, 2**20).key.shape[0] for layer in range(cache.layers)]  # as many as there are
    assert held == [length + TEXT_ROOM for length in rows] and cache.capacity == rows[0] + TEXT_ROOM


@torch.inference_mode()
def test_states_of_earlier_layers_are_those_of_the_rows_that_stay(model: UnifiedModel, prefills: list[Any]) -> None:
    reading = model.read(PHOTO, Reduction(0.5, 1, method="pdrop"))
    model.answer(reading, "How many?", decoding=Decoding(1))
    ((blocks, _, _),) = prefills
    decoder, layers = language_model(model).model, model.config.layers
    empty = language_model(model).empty(sum(block.rows for block in blocks), model.device)
    pruning = reading.pruning(layers)
    done = decoder.prefill(empty, blocks, hidden={0, 1, layers}, pruning=pruning)
    rows = []
    for block in blocks:
        if block.tokens is None:
            rows.append(block.und[0])
        else:
            first, behind = block.tokens
            rows += [block.und[0, :first], block.und[0, first:behind][pruning.kept[0]], block.und[0, behind:]]
    assert torch.equal(done.hidden[0], torch.cat(rows))
    assert len(done.hidden[1]) == len(done.hidden[layers]) == len(done.hidden[0])
