"""The memory plan: exact for weights, on the safe side for the rest, and with advice that helps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from g2tr_core import umm
from g2tr_core.checkpoints.stored import MappedFile
from g2tr_core.checkpoints.targets import TARGETS
from g2tr_core.cli import main
from g2tr_core.embedded import CHECKPOINT, INTERNVLU
from g2tr_core.umm.conversion import convert
from g2tr_core.umm.plan import GB, Plan, plan_of, plan_of_release
from g2tr_core.umm.registry import Facts, models
from tests.umm.test_conversion import output_of

KNOWN = pytest.mark.parametrize("known", models(), ids=lambda known: known.name)


@pytest.fixture(scope="module")
def plans() -> dict[tuple[str, str], Plan]:
    """Of both models in every format, on 12 GB."""
    every = ((known, target) for known in models() for target in TARGETS)
    return {(known.name, target): plan_of_release(known, target, vram=12 * GB) for known, target in every}


@KNOWN
def test_bf16_is_what_the_release_weighs(known: Facts, plans: dict[tuple[str, str], Plan]) -> None:
    plan = plans[known.name, "bf16"]
    assert plan.weight_bytes / GB == pytest.approx(known.download.gigabytes, rel=0.1)
    parts = set(plan.parts)
    assert parts == {"language model", "image generation", "embeddings and head", "ViT and connector", "autoencoder"}
    assert all(size > 0.1 * GB for size in plan.parts.values())


@KNOWN
def test_fewer_bits_weigh_less(known: Facts, plans: dict[tuple[str, str], Plan]) -> None:
    order = ("bf16", "gguf-q8_0", "fp8", "gguf-q6_k", "gguf-q5_k", "nf4")
    sizes = [plans[known.name, target].weight_bytes for target in order]
    assert sizes == sorted(sizes, reverse=True)
    tables = plan_of_release(known, "gguf-q4_k", tables=True).weight_bytes
    assert tables < 0.93 * plans[known.name, "gguf-q4_k"].weight_bytes


@KNOWN
@pytest.mark.parametrize("target", ["nf4", "gguf-q4_k"])
def test_8_gb_are_enough(known: Facts, target: str) -> None:
    plan = plan_of_release(known, target, tables=True, vram=8 * GB)
    assert plan.runs and plan.waits < 0.7 * plan.weight_bytes
    assert ("Everything fits" in plan.as_text()) == (plan.waits == 0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", [CHECKPOINT, INTERNVLU], ids=["bagel", "internvlu"])
def test_weights_are_those_that_are_resident(tmp_path: Path, source: Path, target: str) -> None:
    """Without reading their data; of a file that is loaded the same."""
    path = output_of(tmp_path, target)
    convert(source, path, target)
    options: dict[str, Any] = {"tokenizer": source, "dtype": torch.bfloat16}
    model, loaded = umm.load(path, weights_device="meta", **options), umm.load(path, **options)
    assert all(tensor.device.type == "meta" for tensor in model.network.state_dict().values())
    plan = plan_of(model, target)
    assert plan.parts == plan_of(loaded, target).parts
    if source == CHECKPOINT:  # the other one's file holds its autoencoder in fp32, a large part of it
        assert plan.weight_bytes == pytest.approx(path.stat().st_size, rel=0.1)


@pytest.mark.parametrize("weight_dtype", [None, torch.float8_e4m3fn])
def test_a_plan_reads_no_weights(
    tmp_path: Path, weight_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where loading changes their type."""
    convert(CHECKPOINT, tmp_path / "nf4.safetensors", "nf4")

    alone = MappedFile.alone

    def read(file: MappedFile, begin: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        assert count < 1000, "more than what is told of a packed weight"
        return alone(file, begin, count, dtype)

    for name in ("shared", "alone"):
        monkeypatch.setattr(MappedFile, name, read)
    for path in (CHECKPOINT, tmp_path / "nf4.safetensors"):
        options: dict[str, Any] = {"tokenizer": CHECKPOINT, "dtype": torch.float16, "weight_dtype": weight_dtype}
        assert plan_of(umm.load(path, weights_device="meta", **options), "fp8").weight_bytes > 5e6


def test_what_helps_is_said() -> None:
    known = models()[0]
    plan = plan_of_release(known, "bf16", size=(1024, 1024), vram=8 * GB)
    text = plan.as_text()
    assert "wait in RAM" in text and "pictures of 768x768" in text and "nf4" in text and "g2tr convert" in text
    none = plan_of_release(known, "nf4", vram=3 * GB)
    assert not none.runs and "does not fit, not even" in none.as_text()
    assert "wait" not in plan_of_release(known, "nf4", vram=96 * GB).as_text()


def test_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "BAGEL", "--vram", "12", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [plan["weights"] for plan in said["plans"]] == [*TARGETS]
    assert main(["plan", "InternVL-U", "--size", "1024", "--vram", "8", "--format", "nf4"]) == 0
    assert "InternVL-U, weights in nf4, editing one picture of 1024x1024, 8 GB" in capsys.readouterr().out
    assert main(["plan", str(CHECKPOINT), "--size", "112x112"]) == 0
    assert "embeddings and head" in capsys.readouterr().out
    assert main(["plan", "BAGEL"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(TARGETS) and all(line.count("|") == 4 for line in lines)
    assert main(["plan", "no/such/model"]) != 0


def test_the_most_is_never_less_than_the_least() -> None:
    """Of a small network the autoencoder's run is the largest."""
    said = plan_of(umm.load(CHECKPOINT), "bf16", vram=8 * GB).as_text()
    found = re.search(r"desktop ([\d.]+) GB at most\. The least is ([\d.]+) GB", said)
    assert found and float(found[1]) >= float(found[2]) > 1
