"""Products in fp8: what they lose is the rounding of the activations, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from g2tr_core import umm
from g2tr_core.checkpoints.load_config import LoadConfig
from g2tr_core.cli import main
from g2tr_core.embedded import CHECKPOINT, SAMPLE
from g2tr_core.errors import SettingsError
from g2tr_core.nn.operations import CastingLinear, ProductLinear
from g2tr_core.nn.packings import fp8_product
from g2tr_core.umm.conversion import convert

FP8 = torch.float8_e4m3fn


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in scaled fp8."""
    return convert(CHECKPOINT, tmp_path_factory.mktemp("fp8") / "m.safetensors", "fp8").path


def scales(weight: torch.Tensor) -> dict[str, torch.Tensor | None]:
    return {
        "none": None,
        "of all": weight.abs().max() / 448,
        "by row": weight.abs().amax(1, keepdim=True) / 448,
    }


@pytest.mark.parametrize("kind", ["none", "of all", "by row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_product_of_what_was_rounded(kind: str, dtype: torch.dtype) -> None:
    weight, input, bias = matrix(48, 32), matrix(10, 32, 1).view(2, 5, 32) * 100, matrix(1, 48, 2)[0]
    scale = scales(weight)[kind]
    packed = (weight if scale is None else weight / scale).to(FP8)
    own = input.abs().amax(-1, keepdim=True) / 448
    rounded = (input / own).to(FP8).float() * own
    expected = rounded @ (packed.float() * (1 if scale is None else scale)).T + bias
    found = fp8_product.product(packed, scale, input.to(dtype), bias.to(dtype))
    assert found.shape == (2, 5, 48) and found.dtype == dtype
    assert (found.float() - expected).norm() < (1e-5 if dtype == torch.float32 else 0.02) * expected.norm()
    assert (found.float() - (input @ weight.T + bias)).norm() < 0.05 * expected.norm()


def test_a_token_of_zeros_gives_the_bias() -> None:
    weight, bias = matrix(16, 16).to(FP8), matrix(1, 16)[0]
    input = torch.cat([torch.zeros(1, 16), matrix(1, 16, 1)])
    assert torch.equal(fp8_product.product(weight, None, input, bias)[0], bias)


def test_what_does_not_fit_is_multiplied_out() -> None:
    for shape, weight_dtype, dtype in (
        ((24, 32), FP8, torch.float32),
        ((32, 32), torch.float8_e5m2, torch.float32),
        ((32, 32), FP8, torch.float16),
    ):
        layers = []
        for kind in (ProductLinear, CastingLinear):
            layer = kind(shape[1], shape[0], dtype=torch.float32)
            layer.weight = torch.nn.Parameter(matrix(*shape).to(weight_dtype), requires_grad=False)
            layer.bias = torch.nn.Parameter(torch.ones(shape[0]), requires_grad=False)
            layers.append(layer)
        input = matrix(3, shape[1], 1).to(dtype)
        assert torch.equal(layers[0](input), layers[1](input))


@pytest.mark.parametrize("source", ["scaled", "plain"])
def test_a_model_runs_so_and_answers_right(fp8: Path, source: str) -> None:
    """From a file with scales, and from one in bf16 whose weights are kept in fp8."""
    options: dict[str, Any] = {"tokenizer": CHECKPOINT, "weight_dtype": FP8, "dtype": torch.bfloat16}
    path = fp8 if source == "scaled" else CHECKPOINT
    model, wide = (umm.load(path, fp8_products=on, **options) for on in (True, False))
    layers = [layer for layer in model.network.modules() if isinstance(layer, ProductLinear)]
    assert sum(fp8_product.fits(layer.weight, layer.matrix, torch.bfloat16) for layer in layers) > 50
    reading = model.read(SAMPLE.picture)
    assert model.answer(reading, "What color is the largest object?").text == "yellow"
    features, others = (each.read(SAMPLE.picture).encoding.pictures[0].features.float() for each in (model, wide))
    assert 0.001 < (features - others).norm() / others.norm() < 0.1, "rounded activations, and no more"


def test_the_command_takes_it(fp8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["--model", str(fp8), "--tokenizer", str(CHECKPOINT), "--dtype", "bf16", "--weight-dtype", "fp8-products"]
    assert main(["ask", str(SAMPLE.picture), "What color is the largest object?", *told]) == 0
    assert "yellow" in capsys.readouterr().out


def test_a_device_without_it_is_told() -> None:
    with pytest.raises(SettingsError, match="meta does not multiply fp8") as caught:
        LoadConfig(device="meta", fp8_products=True)
    assert "8.9" in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: products in fp8 were NOT tried on a card")
def test_on_a_card() -> None:
    weight, input = matrix(64, 128), matrix(33, 128, 1)
    scale = scales(weight)["by row"]
    assert scale is not None
    if not fp8_product.has_products(torch.device("cuda")):
        pytest.skip("this card does not multiply fp8")
    packed = (weight / scale).to(FP8)
    found = fp8_product.product(packed.cuda(), scale.cuda(), input.bfloat16().cuda(), None).cpu()
    expected = fp8_product.product(packed, scale, input.bfloat16(), None)
    assert (found.float() - expected.float()).norm() < 0.01 * expected.float().norm()
