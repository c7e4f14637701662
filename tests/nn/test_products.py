"""Products in 16 bits on a processor that has none, and on one that has."""

from __future__ import annotations

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2tr_core.nn import convolutions, products
from g2tr_core.nn.operations import casting, loaded

TYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[True, False], ids=["has them", "has none"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "WITHOUT_PRODUCTS", frozenset(() if request.param else TYPES))
    return request.param


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 15, 16, 200])
@pytest.mark.parametrize("at_once", [2**25, 100])
def test_linear_layers_round_once(
    processor: bool, dtype: torch.dtype, rows: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "AT_ONCE", at_once)
    x, weight, bias = (random(*shape, dtype=dtype) for shape in ((2, rows, 24), (40, 24), (40,)))
    found = products.linear(x, weight, bias)
    expected = F.linear(x.float(), weight.float(), bias.float())
    assert found.dtype == dtype and found.shape == (2, rows, 40)
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=2 * torch.finfo(dtype).eps + 1e-3)


@pytest.mark.parametrize("dtype", TYPES)
def test_convolutions_round_once(processor: bool, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=1).to(dtype)
    plain = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = random(2, 6, 9, 11, dtype=dtype)
    expected = F.conv2d(x.float(), plain["weight"].float(), plain["bias"].float(), stride=2, padding=1)
    network = nn.Sequential(layer)
    convolutions.prepare(network)
    found = network(x)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps
    )
    assert all(torch.equal(tensor, plain[name]) for name, tensor in layer.state_dict().items())


def test_what_is_multiplied_is_fp32_where_there_is_nothing_else(
    processor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The point of it: a processor without bf16 never imitates a large product."""
    seen = []
    linear, conv2d = F.linear, F.conv2d
    monkeypatch.setattr(F, "linear", lambda x, *rest: (seen.append(x.dtype), linear(x, *rest))[1])
    monkeypatch.setattr(F, "conv2d", lambda x, *rest, **named: (seen.append(x.dtype), conv2d(x, *rest, **named))[1])
    x = random(64, 24, dtype=torch.bfloat16)
    for operations in (loaded, casting):
        operations.Linear(24, 8, dtype=torch.bfloat16)(x)
        operations.Conv2d(24, 8, 1, dtype=torch.bfloat16)(x.reshape(1, 24, 8, 8))
    products.linear(x[:8], random(8, 24, dtype=torch.bfloat16))
    wide = torch.bfloat16 if processor else torch.float32
    assert seen == [wide, wide, wide, wide, torch.bfloat16], "few rows are multiplied as they are"


def test_fp32_is_left_alone(processor: bool) -> None:
    x, weight, bias = random(100, 24), random(40, 24), random(40)
    assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))
    kernel = random(5, 4, 3, 3)
    picture = random(1, 4, 8, 8)
    assert torch.equal(products.conv2d(picture, kernel, padding=1), F.conv2d(picture, kernel, padding=1))


@pytest.mark.parametrize(
    ("machine", "has", "expected"),
    [("x86_64", False, False), ("x86_64", True, True), ("AMD64", False, False), ("arm64", False, True)],
)
def test_what_the_processor_says(monkeypatch: pytest.MonkeyPatch, machine: str, has: bool, expected: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for name in products.INSTRUCTIONS[torch.bfloat16]:
        monkeypatch.setattr(torch.cpu, name, lambda: has, raising=False)
    assert (torch.bfloat16 not in products._without_products()) is expected
    monkeypatch.delattr(torch.cpu, products.INSTRUCTIONS[torch.bfloat16][0])
    assert torch.bfloat16 not in products._without_products(), "an older PyTorch does not say"
