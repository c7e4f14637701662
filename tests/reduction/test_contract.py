"""The registry: what it holds, what it offers, and that a method registered there is known everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from matplotlib.colors import is_color_like
from torch import Tensor

from g2tr_core.cli.options import parser
from g2tr_core.errors import SettingsError
from g2tr_core.reduction import Reduction, methods, reduce
from g2tr_core.reduction.contract import AfterEncoder, Audience, Candidates, InDecoder, LayerView, Method, Need, Stage
from g2tr_core.reduction.methods import METHODS, described, offered

FOLDER = Path(methods.__file__).parent


def half_at_the_third_layer(layers: int, keep_ratio: float) -> Mapping[int, float]:
    return {2: keep_ratio} if layers > 2 else {}


def most_attended(view: LayerView, count: int) -> Tensor:
    assert view.attention is not None
    return view.attention.mean(0).topk(count).indices.sort().values


IN_DECODER = InDecoder(
    name="most-attended",
    summary="Keeps the tokens that the question attends to most.",
    needs=frozenset({"question", "decoder_attention"}),
    colour="tab:pink",
    layers=half_at_the_third_layer,
    select=most_attended,
)
BY_ATTENTION = AfterEncoder(
    name="by-attention",
    summary="Keeps the tokens that the ViT attends to most.",
    needs=frozenset({"vit_attention"}),
    colour="tab:brown",
    select=lambda candidates, count: candidates.vit_attention.topk(count).indices.sort().values,
)


@pytest.fixture(params=[IN_DECODER, BY_ATTENTION], ids=["in-decoder", "after-encoder"])
def registered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Method:
    monkeypatch.setitem(METHODS, request.param.name, request.param)
    return request.param


def test_every_file_is_registered_and_declares_what_there_is() -> None:
    files = {path.stem for path in FOLDER.rglob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in METHODS}
    for name, method in METHODS.items():
        assert (method.name, method.stage in get_args(Stage), method.needs <= set(get_args(Need))) == (name, True, True)
        assert method.summary.endswith(".") and "%" not in method.summary  # argparse formats help
        assert is_color_like(method.colour) and method.line in ("-", "--", ":", "-.")
        control = (FOLDER / "controls" / f"{name.replace('-', '_')}.py").exists()
        assert (method.audience == "experiment") == control and method.audience in get_args(Audience)
        assert bool(method.title) == (method.audience == "everyone")


def test_controls_are_taken_but_not_offered() -> None:
    controls = {path.stem.replace("_", "-") for path in (FOLDER / "controls").glob("*.py")}
    assert offered(researchers=True) == tuple(name for name in METHODS if name not in controls)
    assert set(offered()) < set(offered(researchers=True)) and {"g2tr", "spread"} <= set(offered())
    assert controls > {"flipped", "random"}
    for name in METHODS:
        assert Reduction(method=name, seed=2**64 - 1).method == name
    with pytest.raises(SettingsError, match=rf"^method: .* Choose one of: {', '.join(offered(researchers=True))}\.$"):
        Reduction(method="bset")


def test_importing_the_registry_needs_no_torch() -> None:
    """A method file that imports torch at the top makes `g2tr --help` wait for it; import it in the function."""
    code = "import sys, g2tr_core.reduction.methods as m; print(len(m.METHODS), 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER.parents[2], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(len(METHODS)), "False"]


def test_a_registered_method_is_known_everywhere(registered: Method) -> None:
    name = registered.name
    assert Reduction(method=name).needs == registered.needs
    assert offered(researchers=True)[-1] == name and registered.summary in described([name])
    (commands,) = (action for action in parser()._actions if isinstance(action.choices, dict))
    for command in ("ask", "edit", "tokens", "demo"):
        (option,) = (action for action in commands.choices[command]._actions if action.dest == "method")
        assert name in option.choices and registered.summary in option.help
    assert parser().parse_args(["ask", "a.png", "?", "--method", name]).method == name


def arguments(name: str, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(12, 4), (3, 4), None, None, Reduction(0.5, 1, method=name)), named


def test_after_the_encoder_there_is_no_place_for_a_method_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, IN_DECODER.name, IN_DECODER)
    positional, _ = arguments(IN_DECODER.name)
    with pytest.raises(SettingsError, match=r"^method: most-attended drops tokens between the layers of the decoder"):
        reduce(*positional)
    view = LayerView(2, torch.eye(6)[:2], torch.randn(6, 4), torch.arange(6) * 2, (3, 4), None, 0)
    assert IN_DECODER.layers(28, 0.5) == {2: 0.5}
    assert IN_DECODER.select(view, 2).tolist() == [0, 1]


def test_vit_attention_is_asked_for_checked_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, BY_ATTENTION.name, BY_ATTENTION)
    attention = torch.zeros(12)
    attention[[1, 2, 3, 5, 8, 11]] = 1.0
    positional, named = arguments(BY_ATTENTION.name, vit_attention=attention)
    assert reduce(*positional, **named).keep.tolist() == [1, 2, 3, 5, 8, 11]
    bad = (
        None,
        torch.zeros(11),
        torch.zeros(3, 4),
        torch.zeros(12, dtype=torch.complex64),
        torch.zeros(12, device="meta"),
    )
    for value in bad:
        with pytest.raises(SettingsError, match=r"^vit_attention: "):
            reduce(*positional, vit_attention=value)


def test_a_method_sees_only_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Candidates] = []
    nothing = AfterEncoder(
        name="blind", summary=".", colour="k", select=lambda shown, count: seen.append(shown) or torch.arange(count)
    )
    monkeypatch.setitem(METHODS, "blind", nothing)
    features = torch.randn(12, 4)
    how = Reduction(0.5, 1, method="blind", seed=3)
    reduce(features, (3, 4), features[:4], (2, 2), how, priority=torch.ones(3, 4), vit_attention=torch.ones(12))
    (shown,) = seen
    assert (shown.anchors, shown.cell, shown.scores, shown.vit_attention) == (None,) * 4
    assert shown.features is features and shown.priority.shape == (12,) and shown.seed == 3
