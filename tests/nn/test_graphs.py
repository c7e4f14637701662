"""Texts in buckets: the numbers of growing caches, whatever else a bucket held. Graphs themselves are CUDA's alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.generation.settings import Decoding
from g2tr_core.nn import graphs
from g2tr_core.nn.graphs import Bucket, GraphedText, Graphs, texts_behind
from g2tr_core.nn.kv_cache import KVCache, KVPrefix
from g2tr_core.nn.sizes import DecoderSizes
from g2tr_core.nn.text_writer import TextWriters
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel

CPU = torch.device("cpu")
TOKENS = (1, 5, 9, 2, 7, 3)


def words(model: UnifiedModel) -> Any:
    network: Any = model.network
    return network.language_model if hasattr(network, "language_model") else network.vlm.language_model


@pytest.fixture(scope="module", params=[CHECKPOINT, INTERNVLU], ids=["bagel", "internvlu"])
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    return load(request.param, device="cpu", dtype=torch.float32)


@pytest.fixture
def captures(model: UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What was captured, as if the CPU had graphs."""
    made: list[Callable[[], None]] = []
    monkeypatch.setattr(words(model), "graphs", Graphs(lambda launch: made.append(launch) or launch, ("cpu",)))
    return made


@pytest.fixture(scope="module")
def prefixes(model: UnifiedModel) -> list[KVPrefix]:
    """With weights of rows; with fewer rows in some layers; and one that goes on behind the first in its own cache."""
    torch.manual_seed(0)
    sizes, made = model.config, []
    with torch.inference_mode():
        for lengths in ([9] * sizes.layers, [7 - layer % 3 for layer in range(sizes.layers)]):
            writer = words(model).empty(1, CPU).write(max(lengths))
            for layer, length in enumerate(lengths):
                key = torch.randn(1, length, sizes.kv_heads, sizes.head_dim)
                writer.remember(layer, key, key.flip(1), log_weight=torch.arange(1.0, length + 1).log())
            made += writer.finish((writer.ends, 4))
        behind = TextWriters(words(model), [made[0], made[0]], 3)
        behind(torch.tensor([3, 4]))
        made.append(behind.finish()[1])
    assert made[2].base is made[0]
    return made


@torch.inference_mode()
def written(texts: Any) -> torch.Tensor:
    return torch.stack([texts(torch.tensor([token]))[0].clone() for token in TOKENS])


def test_a_text_in_a_bucket_has_the_numbers_of_one_behind_a_cache(
    model: UnifiedModel, captures: list[Callable[[], None]], prefixes: list[KVPrefix]
) -> None:
    for prefix in prefixes:
        expected = written(TextWriters(words(model), [prefix], 8))
        found = written(texts_behind(words(model), [prefix], 8))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert len(captures) == 1, "one bucket and its graph serve all texts, one after another"


def test_a_bucket_grows(model: UnifiedModel, monkeypatch: pytest.MonkeyPatch, prefixes: list[KVPrefix]) -> None:
    made: list[Any] = []
    monkeypatch.setattr(words(model), "graphs", Graphs(lambda launch: made.append(launch) or launch, ("cpu",)))
    monkeypatch.setattr(graphs, "ROWS", 1)
    monkeypatch.setattr(graphs, "GROWTH", 2)
    expected = written(TextWriters(words(model), [prefixes[1]], 8))
    found = written(texts_behind(words(model), [prefixes[1]], 8))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert len(made) == len(TOKENS) / 2, "each bucket has a graph of its own"


def test_answers_are_those_without_graphs(model: UnifiedModel, captures: list[Callable[[], None]]) -> None:
    reading = model.read(SAMPLE.picture, Reduction(0.5, 1, method="spread"))
    settings = [Decoding(12), Decoding(12, temperature=1.0, seed=3)]
    found = [model.answer(reading, SAMPLE.question, decoding=each).text for each in settings]
    words(model).graphs = None
    assert found == [model.answer(reading, SAMPLE.question, decoding=each).text for each in settings]
    assert len(captures) == 1


def test_two_texts_at_once_have_a_bucket_each(
    model: UnifiedModel, captures: list[Callable[[], None]], prefixes: list[KVPrefix]
) -> None:
    expected = [written(TextWriters(words(model), [each], 8)) for each in prefixes[:2]]
    with torch.inference_mode():
        texts = [texts_behind(words(model), [each], 8) for each in prefixes[:2]]
        assert all(isinstance(each, GraphedText) for each in texts)
        rows = [[each(torch.tensor([token]))[0].clone() for each in texts] for token in TOKENS]
    for number, whole in enumerate(expected):
        torch.testing.assert_close(torch.stack([row[number] for row in rows]), whole, atol=2e-5, rtol=2e-5)


def test_where_a_graph_cannot_be_made_tokens_are_launched_one_by_one(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prefixes: list[KVPrefix]
) -> None:
    def broken(launch: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more\nand more")

    own = Graphs(broken, ("cpu",))
    monkeypatch.setattr(words(model), "graphs", own)
    with caplog.at_level(logging.WARNING, logger=graphs.logger.name):
        found = written(texts_behind(words(model), prefixes[:1], 8))
    (said,) = [record.getMessage() for record in caplog.records if record.name == graphs.logger.name]
    assert "one by one" in said and "not permitted" in said and "\n" not in said
    assert isinstance(texts_behind(words(model), prefixes[:1], 8), TextWriters), "the next text does not try"
    torch.testing.assert_close(found, written(TextWriters(words(model), prefixes[:1], 8)), atol=2e-5, rtol=2e-5)


def test_a_full_gpu_is_no_broken_graph(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch, prefixes: list[KVPrefix]
) -> None:
    def full(launch: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(words(model), "graphs", Graphs(full, ("cpu",)))
    with pytest.raises(torch.OutOfMemoryError):
        written(texts_behind(words(model), prefixes[:1], 8))
    assert words(model).graphs.serve(CPU)


def test_only_a_model_that_was_asked_to_and_lies_on_a_gpu_has_graphs() -> None:
    assert words(load(CHECKPOINT)).graphs is None
    asked = words(load(CHECKPOINT, compile=True))
    prefix = asked.empty(1, CPU)
    assert asked.graphs is not None and isinstance(texts_behind(asked, [prefix], 4), TextWriters)
    asked.graphs = Graphs(devices=("cpu",))
    assert isinstance(texts_behind(asked, [prefix], 4), GraphedText)
    assert isinstance(texts_behind(asked, [prefix, prefix], 4), TextWriters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_that_are_not_written_weigh_nothing(dtype: torch.dtype) -> None:
    """Whatever an earlier text has left in them."""
    bucket = Bucket(DecoderSizes(32, 64, 1, 4, 2, 16, 10, 1e4, 1e-6, 100), 8, dtype, CPU)
    bucket._held.normal_(std=30)
    bucket.fill(KVCache(1, 2, 16, capacity=4, dtype=dtype, device=CPU).empty())
    value = torch.randn(1, 1, 2, 16).to(dtype)
    mixed = bucket.attend(0, 9 * torch.randn(1, 1, 4, 16).to(dtype), -9 * value, value, causal=True)
    assert torch.equal(mixed.view(4, 16), value.view(2, 16).repeat_interleave(2, dim=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs of decoding were NOT tried on a card")
@pytest.mark.parametrize("checkpoint", [CHECKPOINT, INTERNVLU], ids=["bagel", "internvlu"])
def test_a_cuda_graph_writes_what_single_launches_write(checkpoint: Any) -> None:
    model = load(checkpoint, device="cuda", dtype=torch.bfloat16)
    reading = model.read(SAMPLE.picture, Reduction(0.5, 1, method="spread"))
    plain = [model.answer(reading, SAMPLE.question, decoding=Decoding(12)).text for _ in range(2)]
    graphs.use_graphs(model.network)
    assert [model.answer(reading, SAMPLE.question, decoding=Decoding(12)).text for _ in range(2)] == plain
    assert words(model).graphs.serve(torch.device("cuda")), "a graph was made"
