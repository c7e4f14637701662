"""Attention equals its definition, over ranges and with weights; KV prefixes are values that nobody overwrites."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from g2tr_core.nn import attention as attention_module
from g2tr_core.nn.attention import KeyValues, attention, attention_weights
from g2tr_core.nn.kv_cache import KVCache, KVPrefix, ScratchBlock
from g2tr_core.nn.rope import rotary_table, rotate

LAYERS, HEADS, KV_HEADS, DIM = 2, 4, 2, 8


def cache(capacity: int = 16) -> KVCache:
    return KVCache(LAYERS, KV_HEADS, DIM, capacity=capacity, dtype=torch.float32, device=torch.device("cpu"))


def grow(prefix: KVPrefix, rows: int, fill: float | None = None) -> KVPrefix:
    """Write a block of random (or constant) rows into every layer."""
    writer = prefix.write(rows)
    for layer in range(LAYERS):
        shape = (1, rows, KV_HEADS, DIM)
        key, value = (torch.randn(shape) if fill is None else torch.full(shape, fill) for _ in range(2))
        writer.remember(layer, key, value)
    return writer.finish((writer.ends, prefix.position + rows))[0]


def rows_of(prefix: KVPrefix, layer: int = 0) -> torch.Tensor:
    """Keys and values, [2, m, H_kv, D], as a copy."""
    ranges = prefix.ranges(layer)
    return torch.stack([torch.cat([each.key for each in ranges]), torch.cat([each.value for each in ranges])])


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention written out, in float64."""
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / query.shape[-1] ** 0.5
    if causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2]).logical_not()
        scores = scores.masked_fill(unseen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(query), -1).float()


@given(n=st.integers(1, 6), past=st.integers(0, 6), causal=st.booleans(), kv_heads=st.sampled_from((1, 2, 4)))
@settings(deadline=None, max_examples=40)
def test_attention_equals_its_definition(n: int, past: int, causal: bool, kv_heads: int) -> None:
    query = torch.randn(n, HEADS, DIM)
    key, value = torch.randn(past + n, kv_heads, DIM), torch.randn(past + n, kv_heads, DIM)
    expected = reference(query, key, value, causal)
    torch.testing.assert_close(attention(query, [KeyValues(key, value)], causal=causal), expected, atol=1e-5, rtol=1e-5)


@given(cut=st.integers(0, 8), n=st.integers(1, 4), causal=st.booleans(), batch=st.sampled_from((None, 2)))
@settings(deadline=None, max_examples=40)
def test_ranges_are_one_sequence(cut: int, n: int, causal: bool, batch: int | None) -> None:
    lead = () if batch is None else (batch,)
    query, whole = torch.randn(*lead, n, HEADS, DIM), torch.randn(2, 8 + n, KV_HEADS, DIM)
    key, value = whole
    parts = [KeyValues(key[:cut], value[:cut]), KeyValues(key[cut:], value[cut:])]
    if batch:  # the rows of the block are each sample's own
        own = [x[-n:].expand(batch, n, KV_HEADS, DIM) for x in (key, value)]
        parts = [KeyValues(key[:cut], value[:cut]), KeyValues(key[cut:-n], value[cut:-n]), KeyValues(*own)]
    found = attention(query, parts, causal=causal)
    for index in range(batch or 1):
        mine = query[index] if batch else query
        expected = reference(mine, key, value, causal)
        torch.testing.assert_close(found[index] if batch else found, expected, atol=1e-5, rtol=1e-5)


@given(groups=st.lists(st.integers(1, 4), min_size=1, max_size=5), n=st.integers(1, 3), causal=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_row_with_a_weight_stands_for_as_many_equal_rows(groups: list[int], n: int, causal: bool) -> None:
    count, m = torch.tensor(groups), len(groups)
    distinct, own = torch.randn(2, m, KV_HEADS, DIM), torch.randn(2, n, KV_HEADS, DIM)
    query = torch.randn(n, HEADS, DIM)
    key, value = (torch.cat((x.repeat_interleave(count, 0), y)) for x, y in zip(distinct, own, strict=True))
    expected = reference(query, key, value, causal)
    weighted = [KeyValues(*distinct, count.log()), KeyValues(*own)]
    torch.testing.assert_close(attention(query, weighted, causal=causal), expected, atol=1e-5, rtol=1e-5)


def test_attention_of_chosen_queries() -> None:
    query, key = torch.randn(3, HEADS, DIM), torch.randn(7, KV_HEADS, DIM)
    ranges = [KeyValues(key[:4], key[:4], torch.tensor([0.0, 1.0, 0.0, 0.5])), KeyValues(key[4:], key[4:])]
    last = torch.tensor([4, 5, 6])
    found = attention_weights(query, ranges, last)
    assert found.shape == (HEADS, 3, 7)
    torch.testing.assert_close(found.sum(-1), torch.ones(HEADS, 3))
    assert (found[:, 0, 5:] == 0).all() and (found[:, 2] > 0).all()
    mixed = torch.einsum("hrm,mhd->rhd", found, key.repeat_interleave(HEADS // KV_HEADS, 1)).flatten(1)
    torch.testing.assert_close(mixed, attention(query, ranges, causal=True), atol=1e-5, rtol=1e-5)


@given(
    n=st.integers(2, 9),
    past=st.integers(0, 6),
    causal=st.booleans(),
    batch=st.sampled_from((None, 2)),
    weighted=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_queries_take_turns_where_every_back_end_would_write_out_all_scores(
    n: int, past: int, causal: bool, batch: int | None, weighted: bool
) -> None:
    lead = () if batch is None else (batch,)
    query, key, value = (torch.randn(*lead, rows, HEADS, DIM) for rows in (n, past + n, past + n))
    rows = [KeyValues(key, value, torch.rand(past + n) if weighted else None)]
    expected = attention(query, rows, causal=causal)
    written, real = [], attention_module._attention

    def turn(query: torch.Tensor, rows: KeyValues, causal: bool, scale: float | None = None) -> torch.Tensor:
        written.append(query.shape[:-1].numel() * rows.key.shape[-3])
        return real(query, rows, causal, scale)

    limit = 2 * (batch or 1) * HEADS * (past + n)  # of scores: two queries of the longest turn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "SCORES", limit)
        patch.setattr(attention_module, "_writes_scores", lambda *call: True)
        patch.setattr(attention_module, "_attention", turn)
        found = real(query, rows[0], causal)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert max(written, default=0) <= limit and len(written) == (-(-n // 2) if n > 2 else 0)


def test_a_long_text_behind_a_prefix_never_writes_out_its_whole_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; a question of 20,000 characters took gigabytes."""
    rows, new = 60, 40
    query, key = torch.randn(new, HEADS, DIM), torch.randn(rows, HEADS, DIM)
    ranges = [KeyValues(key, key)]
    expected = attention(query, ranges, causal=True)
    masks, real = [], attention_module._lower_right
    monkeypatch.setattr(attention_module, "_lower_right", lambda *size: masks.append(size[:2]) or real(*size))
    monkeypatch.setattr(attention_module, "SCORES", 300)
    torch.testing.assert_close(attention(query, ranges, causal=True), expected, atol=1e-5, rtol=1e-5)
    assert len(masks) == new // 5 and max(rows * columns for rows, columns in masks) <= 300


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    x, y = torch.randn(1, HEADS, DIM), torch.randn(1, HEADS, DIM)

    def score(i: int, j: int) -> torch.Tensor:
        a, b = (rotate(v, rotary_table(torch.tensor([p]), DIM, 1e6)) for v, p in ((x, i), (y, j)))
        torch.testing.assert_close(a.norm(dim=-1), x.norm(dim=-1))
        return (a * b).sum(-1)

    torch.testing.assert_close(score(3, 7), score(103, 107), atol=1e-4, rtol=1e-4)


def test_a_prefix_goes_on_in_its_own_cache_and_stays_as_it_is() -> None:
    pictures = grow(cache().empty(), 5)
    before = rows_of(pictures)
    asked = grow(pictures, 3)
    assert (asked.length, asked.position) == (8, 8) and asked.cache is pictures.cache, "no copy"
    del asked
    again = grow(pictures, 2)
    assert again.cache is pictures.cache and again.length == 7, "rows that nobody holds are written over"
    assert torch.equal(rows_of(pictures), before)


def test_rows_that_somebody_holds_are_never_written_over() -> None:
    pictures = grow(cache().empty(), 5)
    first = grow(pictures, 3)
    kept = rows_of(first)
    second = grow(pictures, 2, fill=2.0)
    third = grow(grow(pictures, 1, fill=3.0), 4, fill=4.0)
    assert second.cache is not pictures.cache and second.length == 7 and third.length == 10
    assert [each.key.shape[0] for each in second.ranges(0)] == [5, 2]
    assert torch.equal(rows_of(first), kept)
    assert torch.equal(rows_of(second)[:, :5], rows_of(pictures)) and (rows_of(second)[:, 5:] == 2).all()
    assert (rows_of(third)[:, 5] == 3).all() and (rows_of(third)[:, 6:] == 4).all()
    assert {id(c) for c in third.caches()} == {id(pictures.cache), id(third.cache)}
    del first
    gc.collect()
    assert grow(pictures, 1).cache is pictures.cache, "the tail is free again"


def test_one_writer_can_leave_several_prefixes() -> None:
    writer = grow(cache().empty(), 2).write(6)
    marks = []
    for position in (3, 4):
        for layer in range(LAYERS):
            writer.remember(layer, *(torch.full((1, 3, KV_HEADS, DIM), float(position)) for _ in range(2)))
        marks.append((writer.ends, position))
    short, long = writer.finish(*marks)
    assert (short.length, long.length, short.position, long.position) == (5, 8, 3, 4)
    kept = rows_of(long)
    assert grow(short, 2, fill=9.0).cache is not short.cache
    assert torch.equal(rows_of(long), kept)
    with pytest.raises(AssertionError, match="finished"):
        writer.remember(0, *(torch.zeros(1, 1, KV_HEADS, DIM) for _ in range(2)))


def test_threads_go_on_behind_one_prefix() -> None:
    pictures, failures = grow(cache(8).empty(), 5), []
    before = rows_of(pictures)

    def converse(fill: float) -> None:
        for _ in range(50):
            now = grow(grow(pictures, 2, fill=fill), 3, fill=fill)
            if not (rows_of(now)[:, 5:] == fill).all() or not torch.equal(rows_of(now)[:, :5], before):
                failures.append(fill)

    threads = [threading.Thread(target=converse, args=(float(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_layers_may_keep_different_rows() -> None:
    writer = cache().empty().write(4)
    for layer, rows in ((0, 4), (1, 2)):
        writer.remember(layer, *(torch.full((1, rows, KV_HEADS, DIM), float(layer)) for _ in range(2)))
    pruned = grow(writer.finish((writer.ends, 4))[0], 1)
    assert pruned.rows_by_layer == (5, 3)
    assert (rows_of(pruned, 1)[:, :2] == 1).all()


def test_log_weights_follow_their_rows() -> None:
    plain = grow(cache().empty(), 2)
    assert plain.ranges(0)[0].log_weight is None, "a cache without any takes the plain path"
    writer = plain.write(30)
    for layer in range(LAYERS):
        key = torch.randn(1, 3, KV_HEADS, DIM)
        writer.remember(layer, key, key, log_weight=torch.tensor([0.5, 0.0, 2.0]))
        writer.remember(layer, key, key)
    (rows,) = writer.finish((writer.ends, 0))[0].ranges(1)
    assert rows.log_weight.tolist() == [0, 0, 0.5, 0, 2, 0, 0, 0]


def test_growing_keeps_rows() -> None:
    prefix = grow(cache(capacity=4).empty(), 4)
    rows = rows_of(prefix, 1)
    prefix = grow(prefix, 40)
    assert prefix.cache.capacity >= 44
    assert torch.equal(rows_of(prefix, 1)[:, :4], rows)


def test_bytes() -> None:
    kv = cache(capacity=10)
    assert kv.nbytes == 10 * 2 * LAYERS * KV_HEADS * DIM * 4


@given(
    shared=st.integers(0, 5),
    more=st.integers(0, 3),
    own=st.integers(0, 4),
    n=st.integers(1, 4),
    seeds=st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_a_scratch_block_sees_its_prefix_and_itself_and_leaves_nothing(
    shared: int, more: int, own: int, n: int, seeds: int
) -> None:
    short = grow(cache(2).empty(), shared)
    full = grow(short, more)
    other = grow(cache(2).empty(), own)
    prefixes = [full, short, other]
    before = [rows_of(prefix, 1) for prefix in prefixes]
    batch = len(prefixes) * seeds
    query = torch.randn(batch, n, HEADS, DIM)
    key, value = torch.randn(batch, n, KV_HEADS, DIM), torch.randn(batch, n, KV_HEADS, DIM)
    out = ScratchBlock(prefixes).attend(1, query, key, value, causal=False)
    for i in range(batch):
        rows_k, rows_v = before[i // seeds]
        expected = reference(query[i], torch.cat((rows_k, key[i])), torch.cat((rows_v, value[i])), causal=False)
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(rows_of(prefix, 1), rows) for prefix, rows in zip(prefixes, before, strict=True))


@pytest.mark.parametrize(
    ("new", "rows", "causal", "asked"),
    [(1, 9, True, False), (4, 9, True, False), (9, 9, True, True), (4, 9, False, False)],
)
def test_keys_are_expanded_only_where_flash_cannot_run(
    new: int, rows: int, causal: bool, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash refuses `is_causal` unless queries and keys are as many; it must be asked about the call that is made."""
    params = []
    monkeypatch.setattr("g2tr_core.nn.attention.SDPAParams", lambda *each: params.append(each))
    monkeypatch.setattr("g2tr_core.nn.attention.can_use_flash_attention", lambda _: True)
    monkeypatch.setattr("g2tr_core.nn.attention._lower_right", lambda *size: torch.ones(size[:2], device="cuda").bool())
    with FakeTensorMode():
        query = torch.empty(new, 8, 64, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(rows, 2, 64, device="cuda", dtype=torch.bfloat16)
        assert attention(query, [KeyValues(key, key)], causal=causal).shape == (new, 512)
    ((_, k, _, mask, _, is_causal, grouped),) = params
    assert k.shape[1] == 2 and mask is None and is_causal is asked and grouped
