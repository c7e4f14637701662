"""What an artist installs works: the files that `comfy node pack` would put into the archive, and no others.

comfy-cli takes what git tracks, less what `.comfyignore` matches by the rules of `.gitignore`. Git itself applies those
rules here, so that comfy-cli need not be installed. Files that are not committed yet count as if they were.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pack import REPOSITORY, STUBS

RUN_PROMPT = Path(__file__).with_name("run_prompt.py")


def tracked(*options: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", *options],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the pack."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of files")
    folder = tmp_path_factory.mktemp("custom_nodes") / "g2tr"
    left_out = tracked("--ignored", "--exclude-from=.comfyignore")
    for name in tracked("--exclude-standard") - left_out:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)


def g2tr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as it is in the folder, and nowhere else."""
    where = python(folder, "-c", "import g2tr_core; print(g2tr_core.__file__)").stdout.strip()
    assert Path(where).is_relative_to(folder)
    return python(folder, "-m", "g2tr_core", *arguments)


def test_holds_what_artists_need_and_no_more(packed: Path) -> None:
    assert {path.name for path in packed.iterdir()} >= {
        "__init__.py", "g2tr_core", "nodes", "web", "locales", "workflows", "pyproject.toml", "requirements.txt",
        "README.md", "LICENSE",
    }  # fmt: skip
    for name in ("g2tr_core/lab", "tests", "benchmarks", "tools", ".ci"):
        assert not (packed / name).exists(), name
    assert (packed / "g2tr_core" / "embedded" / "bagel-world" / "ema.safetensors").is_file()


def test_every_node_builds_and_a_graph_runs(packed: Path) -> None:
    prompt = packed / "workflows" / "api" / "Ask about a picture.json"
    done = python(packed.parent, str(RUN_PROMPT), str(packed), str(STUBS), str(prompt))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"G2TRLoadModel", "G2TRRead", "G2TRAsk", "G2TREdit", "G2TRImagine"} <= set(told["nodes"])
    assert told["ran"] == 6 and "yellow" in told["texts"]
    assert told["files"] and all(Path(file).is_relative_to(packed) for file in told["files"])


class TestCommand:
    def test_demo(self, packed: Path, tmp_path: Path) -> None:
        done = g2tr(packed, "demo", "-o", str(tmp_path / "demo.png"), "--device", "cpu", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["answer"] == "yellow"
        assert (tmp_path / "demo.png").is_file()

    @pytest.mark.parametrize("name", ["quality", "edits"])
    def test_an_experiment_says_where_it_is(self, packed: Path, tmp_path: Path, name: str) -> None:
        done = g2tr(packed, "bench", name, "--out", str(tmp_path / "results"))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"g2tr: bench {name}: the {name} experiment is not part of this installation. "
            "It needs a checkout of the source: get one and run pip install -e '.[cli]' there.\n"
        )
        assert not (tmp_path / "results").exists()

    def test_bench_lists_what_is_there(self, packed: Path) -> None:
        done = g2tr(packed, "bench")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("There are none in this installation. They need a checkout of the source")

    def test_another_benchmark_is_not_there_either(self, packed: Path) -> None:
        done = g2tr(packed, "bench", "edit")
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1 and "there is no benchmark 'edit'" in done.stderr
