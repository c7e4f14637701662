"""Weights are loaded once and never left behind, whatever ComfyUI caches; what it moves away changes no result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from tests.real.comfy_server import ComfyServer, Prompt, Run
from tests.real.conftest import started
from tests.real.prompts import BAGEL, INTERNVLU, changed, small_edit

CHECKPOINTS = pytest.mark.parametrize("checkpoint", [BAGEL, INTERNVLU], ids=["bagel", "internvlu"])


def instructed(checkpoint: str, words: str) -> Prompt:
    """The small edit with these words."""
    return changed(small_edit(checkpoint), "G2TREdit", instruction=words, seed=77)


def through_unloading(prompt: Prompt) -> Prompt:
    """The same, but every model is moved away between Read and Edit."""
    (edit,) = (node for node in prompt if prompt[node]["class_type"] == "G2TREdit")
    unload = {"class_type": "ProbeUnload", "inputs": {"reading": prompt[edit]["inputs"]["reading"]}}
    return {**changed(prompt, "G2TREdit", reading=["unload", 0]), "unload": unload}


def pixels(server: ComfyServer, run: Run, prompt: Prompt) -> bytes:
    """The picture that was saved."""
    assert run.status == "success", run.error.get("exception_message")
    (save,) = (node for node in prompt if prompt[node]["class_type"] == "SaveImage")
    return server.image(run.outputs[save]["images"][0]).tobytes()


def loads(server: ComfyServer, prompts: Sequence[Prompt]) -> list[int]:
    """How often weights were loaded in each run."""
    counts = [server.get("/g2tr_loads")]
    for prompt in prompts:
        assert server.run(prompt).status == "success"
        counts.append(server.get("/g2tr_loads"))
    return [after - before for before, after in pairwise(counts)]


@CHECKPOINTS
def test_weights_are_loaded_once_for_any_number_of_prompts(server: ComfyServer, checkpoint: str) -> None:
    words = [instructed(checkpoint, text) for text in ("Make it red.", "Make it red.", "Make it blue.")]
    ratio = changed(words[0], "G2TRReduction", keep_ratio=0.37)
    server.free()
    assert loads(server, [*words, ratio]) == [1, 0, 0, 0]


@CHECKPOINTS
def test_models_that_are_moved_away_on_the_way_change_no_picture(server: ComfyServer, checkpoint: str) -> None:
    """A, B, A: also nothing of one instruction is left in the next."""
    first, second = (instructed(checkpoint, text) for text in ("Make it green.", "Make it grey."))
    prompts = [first, second, through_unloading(first), through_unloading(second), through_unloading(first)]
    seen = []
    for prompt in prompts:
        seen.append(pixels(server, server.run(prompt), prompt))
    assert seen[0] == seen[2] == seen[4] != seen[1] == seen[3]


@pytest.fixture(params=[("--cache-none",), ("--cache-lru", "1")], ids=" ".join, scope="module")
def sparing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server that keeps next to no outputs."""
    with started(tmp_path_factory.mktemp("sparing"), *request.param) as running:
        yield running


@CHECKPOINTS
def test_with_next_to_no_cache_a_graph_loads_once_a_run_and_gives_the_same(
    server: ComfyServer, sparing: ComfyServer, checkpoint: str
) -> None:
    prompt, other = (instructed(checkpoint, text) for text in ("Make it white.", "Make it black."))
    expected = pixels(server, server.run(prompt), prompt)
    for _ in range(2):
        assert pixels(sparing, sparing.run(prompt), prompt) == expected
        assert max(loads(sparing, [other])) <= 1
    left = sparing.probe()
    assert left["ManagedModel"] <= 1 and left["Reading"] <= 1, left
