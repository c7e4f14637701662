"""Token weights in attention: exact every way they may travel, and each device takes its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from g2tr_core.nn import attention as attention_module
from g2tr_core.nn.attention import CHANNELS, KeyValues, attention, weight_channels, widened

WAYS = [False, True]
NAMES = ["bias", "channels"]
TOKENS = 4900  # as many as the largest picture of BAGEL-7B has


def reference(query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor, causal: bool) -> Tensor:
    """Attention written out in float64, [n, H, D] over [m, H_kv, D]."""
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / query.shape[-1] ** 0.5 + log_weight.double()
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def by(patch: pytest.MonkeyPatch, channels: bool) -> None:
    """Let weights travel in channels on the CPU too, or not."""
    patch.setattr(attention_module, "_flash_takes_channels", lambda *call: channels)


@pytest.mark.parametrize("channels", WAYS, ids=NAMES)
@given(
    n=st.integers(1, 5),
    past=st.integers(0, 6),
    causal=st.booleans(),
    heads=st.sampled_from(((4, 1), (4, 2), (4, 4))),
    batch=st.sampled_from((None, 2)),
    width=st.sampled_from((8, 12)),
    most=st.sampled_from((1, 3, TOKENS)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_weights_are_exact(
    channels: bool,
    n: int,
    past: int,
    causal: bool,
    heads: tuple[int, int],
    batch: int | None,
    width: int,
    most: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    query = torch.randn(*lead, n, heads[0], width, generator=generator)
    key, value = torch.randn(2, *lead, past + n, heads[1], width, generator=generator)
    log_weight = torch.randint(1, most + 1, (past + n,), generator=generator).float().log()
    with pytest.MonkeyPatch.context() as patch:
        by(patch, channels)
        found = attention(query, [KeyValues(key, value, log_weight)], causal=causal)
    for index in range(batch or 1):
        mine = (x if batch is None else x[index] for x in (query, key, value))
        expected = reference(*mine, log_weight, causal).float()
        torch.testing.assert_close(found if batch is None else found[index], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", WAYS, ids=NAMES)
@pytest.mark.parametrize("n", [1, 3])
def test_samples_share_the_weighted_rows_of_a_prefix(channels: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, channels)
    query, own = torch.randn(2, n, 4, 8), torch.randn(2, n, 2, 8)
    shown, weight = torch.randn(5, 2, 8), torch.tensor([1.0, 2, 3, 40, 500]).log()
    found = attention(query, [KeyValues(shown, shown, weight), KeyValues(own, own)])
    shared = attention(query, [KeyValues(shown, shown, weight)])
    for index in range(2):
        rows = torch.cat((shown, own[index]))
        expected = reference(query[index], rows, rows, torch.cat((weight, torch.zeros(n))), causal=False)
        torch.testing.assert_close(found[index], expected.float(), atol=1e-5, rtol=1e-5)
        alone = reference(query[index], shown, shown, weight, causal=False)
        torch.testing.assert_close(shared[index], alone.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [64, 128])
def test_channels_hold_the_logarithm_of_any_number_of_tokens(dtype: torch.dtype, width: int) -> None:
    log_weight = torch.arange(1, TOKENS + 1, dtype=torch.float32).log()
    key = torch.randn(TOKENS, 1, width, dtype=dtype)
    query, rows = widened(key[:2], KeyValues(key, key, log_weight))
    assert rows.log_weight is None and rows.key.shape == rows.value.shape == (TOKENS, 1, width + CHANNELS)
    assert (query[..., width:] == 1).all() and not rows.value[..., width:].any()
    assert torch.equal(rows.key[..., :width], key) and torch.equal(query[..., :width], key[:2])
    added = (query[:1, 0, width:].double() * rows.key[:, 0, width:].double()).sum(-1) / width**0.5
    exact = torch.arange(1, TOKENS + 1, dtype=torch.float64).log()
    assert (added - exact).abs().max() < 3e-6
    if dtype is torch.bfloat16:
        assert (log_weight.to(dtype).double() - exact).abs().max() > 1e-2, "what a bias in bf16 would hold"


@pytest.mark.parametrize(("n", "causal"), [(1, True), (30, True), (30, False)])
def test_half_precision_loses_nothing_to_the_weights(n: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel gets in bf16 gives the exact result, and it adds no more than its own rounding."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(n, 4, 128, generator=generator).bfloat16()
    key, value = torch.randn(2, 300, 2, 128, generator=generator).bfloat16()
    log_weight = torch.linspace(1, TOKENS, 300).log()
    expected = reference(query, key, value, log_weight, causal).float()
    wide, rows = widened(query, KeyValues(key, value, log_weight))
    in_full = KeyValues(rows.key.float(), rows.value.float())
    held = attention_module._attention(wide.float(), in_full, causal, 128**-0.5)
    held = held.unflatten(-1, (4, -1))[..., :128].flatten(1)
    torch.testing.assert_close(held, expected, atol=1e-5, rtol=1e-5)
    for channels in WAYS:
        by(monkeypatch, channels)
        found = attention(query, [KeyValues(key, value, log_weight)], causal=causal)
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found.float(), expected, atol=4e-3, rtol=1e-2)


def test_turns_keep_the_scale_of_the_narrow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(9, 4, 8), torch.randn(20, 4, 8)
    rows = [KeyValues(key, key, torch.rand(20))]
    expected = attention(query, rows, causal=True)
    by(monkeypatch, True)
    monkeypatch.setattr(attention_module, "SCORES", 60)
    torch.testing.assert_close(attention(query, rows, causal=True), expected, atol=1e-5, rtol=1e-5)


def test_a_single_query_reads_a_key_once_for_all_heads_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], torch.nn.functional.scaled_dot_product_attention

    def seen(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **options: object) -> Tensor:
        calls.append((q.shape, mask.shape, mask.stride(), options["enable_gqa"]))
        return real(q, k, v, mask, **options)

    monkeypatch.setattr(attention_module.F, "scaled_dot_product_attention", seen)
    key = torch.randn(50, 2, 8)
    attention(torch.randn(1, 6, 8), [KeyValues(key, key, torch.rand(50))], causal=True)
    assert calls == [((1, 2, 3, 8), (1, 1, 3, 50), (0, 0, 0, 1), False)], "and the bias is not written out"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor | None, dict[str, object]]]:
    """What scaled dot-product attention is asked for on a pretended GPU: query, key, mask, options."""
    asked: list[tuple[Tensor, Tensor, Tensor | None, dict[str, object]]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: object) -> Tensor:
        asked.append((q, k, mask, options))
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    monkeypatch.setattr(attention_module.F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(attention_module, "_lower_right", lambda *size: torch.ones(size[:2], device="cuda").bool())
    monkeypatch.setattr(attention_module, "SDPAParams", lambda *call: call)
    monkeypatch.setattr(attention_module, "can_use_efficient_attention", lambda _: True)
    return asked


def flash(call: tuple[Tensor, Tensor, Tensor, Tensor | None, float, bool, bool]) -> bool:
    """What PyTorch's flash attention takes: half precision, and no mask."""
    return call[0].dtype is not torch.float32 and call[3] is None


@pytest.mark.parametrize(("new", "causal"), [(1, True), (4, True), (9, True), (4, False)])
def test_on_cuda_weights_travel_in_channels_to_flash(
    new: int,
    causal: bool,
    calls: list[tuple[Tensor, Tensor, Tensor | None, dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_module, "can_use_flash_attention", flash)
    with FakeTensorMode():
        query = torch.empty(new, 8, 128, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(9, 2, 128, device="cuda", dtype=torch.bfloat16)
        rows = [KeyValues(key, key, torch.empty(9, device="cuda"))]
        assert attention(query, rows, causal=causal).shape == (new, 8 * 128)
        assert weight_channels(torch.device("cuda"), torch.bfloat16, 128) == CHANNELS
    ((q, k, mask, options),) = calls
    assert q.shape == (1, 8, new, 136) and k.shape == (1, 2, 9, 136), "neither expanded nor masked"
    assert options == {"is_causal": causal and new == 9, "scale": 128**-0.5, "enable_gqa": True}
    assert (mask is not None) == (causal and 1 < new < 9), "the causal mask that flash knows"


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 128), (torch.float16, 256)])
def test_on_cuda_they_are_a_bias_where_flash_cannot_run(
    dtype: torch.dtype,
    width: int,
    calls: list[tuple[Tensor, Tensor, Tensor | None, dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_module, "can_use_flash_attention", flash)
    with FakeTensorMode():
        query = torch.empty(4, 8, width, device="cuda", dtype=dtype)
        key = torch.empty(9, 2, width, device="cuda", dtype=dtype)
        attention(query, [KeyValues(key, key, torch.empty(9, device="cuda"))])
        assert weight_channels(torch.device("cuda"), dtype, width) == 0
    ((_, k, mask, options),) = calls
    assert k.shape == (1, 8, 9, width) and not options["enable_gqa"], "the memory-efficient one knows no groups"
    assert mask is not None and mask.dtype is dtype and mask.shape == (1, 1, 4, 9) and mask.stride() == (0, 0, 0, 1)


def test_on_a_cpu_they_are_a_bias() -> None:
    assert weight_channels(torch.device("cpu"), torch.bfloat16, 128) == 0
