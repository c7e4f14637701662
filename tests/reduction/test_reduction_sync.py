"""The reduction never makes the host wait for the device, except once where "auto" asks for a number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from g2tr_core.reduction import Reduced, Reduction, pool_latent, reduce
from g2tr_core.reduction.contract import AfterEncoder
from g2tr_core.reduction.methods import METHODS

GRID, ANCHOR_GRID = (9, 7), (4, 3)
DRAWN = ("random", "shuffled-anchors")  # on the host, whatever the device
NAMES = [name for name, method in METHODS.items() if isinstance(method, AfterEncoder) and name not in DRAWN]
WAYS = [
    pytest.param(Reduction(min_tokens=1), id="published"),
    pytest.param(Reduction(min_tokens=1, keep_ratio=0.1), id="fewer-tokens-than-cells"),
    pytest.param(Reduction(min_tokens=1, merge="none", merge_scaling=2.0), id="no-merging"),
    pytest.param(Reduction(keep_ratio=1.0), id="identity"),
    *(pytest.param(Reduction(min_tokens=1, method=name), id=name) for name in NAMES),
]


class OperatorCount(TorchDispatchMode):
    """Counts the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def run(settings: Reduction, device: str, dtype: torch.dtype = torch.float32, mask: bool = False) -> Reduced:
    patches = torch.randn(48, 16, device=device, dtype=dtype)
    pooled, anchor_grid = pool_latent(patches, (8, 6), settings.latent_pool)
    assert anchor_grid == ANCHOR_GRID
    features = torch.randn(63, 16, device=device, dtype=dtype)
    priority: Tensor | None = torch.rand(GRID, device=device) if mask else None
    attention = torch.rand(63, device=device)
    return reduce(features, GRID, pooled, anchor_grid, settings, priority=priority, vit_attention=attention)


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", WAYS)
def test_no_shape_and_no_branch_depends_on_data(settings: Reduction, dtype: torch.dtype, mask: bool) -> None:
    kept = settings.count(torch.empty(63, 16))
    with FakeTensorMode():
        assert run(settings, "cpu", dtype, mask).features.shape == (kept, 16)
    assert run(settings, "meta", dtype, mask).assignment.shape == (63,)


@pytest.mark.parametrize("settings", WAYS)
def test_nothing_is_read_back(settings: Reduction) -> None:
    with OperatorCount() as count:
        run(settings, "cpu", mask=True)
    assert not count.calls.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique"}


def test_auto_reads_one_number_back() -> None:
    settings = Reduction(min_tokens=1, budget="auto")
    with OperatorCount() as count:
        run(settings, "cpu")
    assert count.calls["_local_scalar_dense"] == 1
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        run(settings, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_cuda_does_not_wait_and_agrees_with_the_cpu(dtype: torch.dtype, name: str) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(63, 64, generator=random).to(dtype)
    anchors = torch.randn(12, 64, generator=random).to(dtype)
    how = Reduction(min_tokens=1, method=name)
    attention = torch.rand(63, generator=random)
    on_cuda, attended = (features.cuda(), GRID, anchors.cuda(), ANCHOR_GRID, how), attention.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = (reduce(*on_cuda, vit_attention=attended) for _ in range(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = reduce(features, GRID, anchors, ANCHOR_GRID, how, vit_attention=attention)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.keep.cpu(), expected.keep)
    assert torch.equal(first.assignment.cpu(), expected.assignment)
    torch.testing.assert_close(first.features.cpu(), expected.features)
