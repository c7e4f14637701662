"""Contexts fork by length, refuse to be misread, and a canvas gives every branch exactly its rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from g2tr_core.nn.attention import attention, rotary_table, rotate
from g2tr_core.nn.kv_cache import Canvas, Context, KVCache

LAYERS, HEADS, KV_HEADS, DIM = 2, 4, 2, 8


def cache(capacity: int = 16) -> KVCache:
    return KVCache(LAYERS, KV_HEADS, DIM, capacity=capacity, dtype=torch.float32, device=torch.device("cpu"))


def grow(context: Context, rows: int, fill: float | None = None) -> Context:
    """Append a block of random (or constant) rows to every layer."""
    block = context.cache.append(context, rows, advance=rows, causal=False)
    for layer in range(LAYERS):
        shape = (1, rows, KV_HEADS, DIM)
        key, value = (torch.randn(shape) if fill is None else torch.full(shape, fill) for _ in range(2))
        block.remember(layer, key, value)
    return block.context


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
    torch.testing.assert_close(attention(query, key, value, causal=causal), expected, atol=1e-5, rtol=1e-5)


@given(n=st.integers(2, 9), past=st.integers(0, 6), causal=st.booleans(), batch=st.sampled_from((None, 2)))
@settings(deadline=None, max_examples=40)
def test_queries_take_turns_where_every_back_end_would_write_out_all_scores(
    n: int, past: int, causal: bool, batch: int | None
) -> None:
    lead = () if batch is None else (batch,)
    query, key, value = (torch.randn(*lead, rows, HEADS, DIM) for rows in (n, past + n, past + n))
    expected = attention(query, key, value, causal=causal)
    written = []

    def turn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
        written.append(query.shape[:-1].numel() * key.shape[-3])
        return attention(query, key, value, causal=causal)

    limit = 2 * (batch or 1) * HEADS * (past + n)  # of scores: two queries of the longest turn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("g2tr_core.nn.attention.SCORES", limit)
        patch.setattr("g2tr_core.nn.attention._writes_scores", lambda *call: True)
        patch.setattr("g2tr_core.nn.attention.attention", turn)
        found = attention(query, key, value, causal=causal)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert max(written, default=0) <= limit and len(written) == (-(-n // 2) if n > 2 else 0)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    x, y = torch.randn(1, HEADS, DIM), torch.randn(1, HEADS, DIM)

    def score(i: int, j: int) -> torch.Tensor:
        a, b = (rotate(v, rotary_table(torch.tensor([p]), DIM, 1e6)) for v, p in ((x, i), (y, j)))
        torch.testing.assert_close(a.norm(dim=-1), x.norm(dim=-1))
        return (a * b).sum(-1)

    torch.testing.assert_close(score(3, 7), score(103, 107), atol=1e-4, rtol=1e-4)


def test_a_fork_is_a_length() -> None:
    pictures = grow(cache().empty(), 5)
    rows = pictures.cache.layer(0, 5)[0].clone()
    asked = grow(pictures, 3)
    assert (asked.length, asked.position) == (8, 8)
    again = grow(pictures, 2)
    assert again.cache is pictures.cache and again.length == 7
    assert torch.equal(pictures.cache.layer(0, 5)[0], rows)


def test_overwritten_contexts_are_refused() -> None:
    pictures = grow(cache().empty(), 5)
    first = grow(pictures, 3)
    grow(pictures, 3)
    with pytest.raises(RuntimeError, match="stale"):
        grow(first, 1)
    with pytest.raises(RuntimeError, match="stale"), Canvas([first], 2):
        pass
    grow(pictures, 1)


def test_growing_keeps_rows() -> None:
    context = grow(cache(capacity=4).empty(), 4)
    rows = context.cache.layer(1, 4)[1].clone()
    context = grow(context, 40)
    assert context.cache.capacity >= 44
    assert torch.equal(context.cache.layer(1, 4)[1], rows)


def test_bytes() -> None:
    kv = cache(capacity=10)
    assert kv.nbytes == 10 * 2 * LAYERS * KV_HEADS * DIM * 4


def test_a_branch_has_rows_of_its_own() -> None:
    context = grow(cache().empty(), 3)
    branch = context.branch(8)
    assert branch.cache is not context.cache and branch.position == context.position
    grow(context, 2, fill=1.0)
    grow(branch, 2, fill=2.0)
    assert (context.cache.layer(0, 5)[0][3:] == 1).all() and (branch.cache.layer(0, 5)[0][3:] == 2).all()


@given(
    shared=st.integers(0, 5), tail=st.integers(0, 4), more=st.integers(0, 3), own=st.integers(0, 4), n=st.integers(1, 4)
)
@settings(deadline=None, max_examples=60)
def test_a_canvas_shows_each_branch_its_context_and_the_block(
    shared: int, tail: int, more: int, own: int, n: int
) -> None:
    short = grow(cache(2).empty(), shared)
    middle = grow(short, tail)
    full = grow(middle, more)
    other = grow(cache(2).empty(), own)
    contexts = [full, short, other, middle]
    before = [[x.clone() for x in c.cache.layer(1, c.length)] for c in contexts]
    query = torch.randn(4, n, HEADS, DIM)
    key, value = torch.randn(4, n, KV_HEADS, DIM), torch.randn(4, n, KV_HEADS, DIM)
    with Canvas(contexts, n) as canvas:
        for _ in range(2):  # a second step finds the same rows
            out = canvas.branches(slice(None)).attend(1, query, key, value)
        some = canvas.branches(slice(1, 3)).attend(1, query[1:3], key[1:3], value[1:3])
        with pytest.raises(RuntimeError, match="canvas"):
            full.cache.append(full, 1, advance=1, causal=True)
    for i, (rows_k, rows_v) in enumerate(before):
        expected = reference(query[i], torch.cat((rows_k, key[i])), torch.cat((rows_v, value[i])), causal=False)
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some, out[1:3])
    for context, rows in zip(contexts, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(context.cache.layer(1, context.length), rows, strict=True))
    grow(full, 1)


def test_a_canvas_closes_after_an_error_and_when_it_cannot_open() -> None:
    good, stale = grow(cache().empty(), 2), grow(cache().empty(), 2)
    grow(stale.cache.empty(), 1)
    with pytest.raises(RuntimeError, match="stale"), Canvas([good, stale], 2):
        pass
    with pytest.raises(ZeroDivisionError), Canvas([good], 2):
        raise ZeroDivisionError
    grow(good, 1)


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
    monkeypatch.setattr(
        "g2tr_core.nn.attention.causal_lower_right", lambda *size: torch.ones(size, device="cuda").bool()
    )
    with FakeTensorMode():
        query = torch.empty(new, 8, 64, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(rows, 2, 64, device="cuda", dtype=torch.bfloat16)
        assert attention(query, key, key, causal=causal).shape == (new, 512)
    ((_, k, _, mask, _, is_causal, grouped),) = params
    assert k.shape[1] == 2 and mask is None and is_causal is asked and grouped
