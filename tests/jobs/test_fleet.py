"""Jobs on a cluster of Ray: complete, nothing twice and nothing in part, whatever dies.

The tests at the end run where Ray is installed (`pip install g2tr[ray]`), which takes half a gigabyte of packages;
elsewhere they are skipped, and the summary says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.errors import CheckpointError, SettingsError, StoreError
from g2tr_core.jobs import fleet
from g2tr_core.jobs.bulk import Bulk, Tally, fingerprint
from g2tr_core.jobs.fleet import Cluster, Fleet, RayWorker, looked_up
from g2tr_core.jobs.lists import Entry, of_folder, record_of
from g2tr_core.jobs.store import Store
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from tests.goldens import REPOSITORY
from tests.jobs.test_bulk import COLOR, PLAIN, lines, scenes, tree

PICTURES, BROKEN = 300, 30
NEEDS_RAY = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: `--ray` was NOT tried (pip install g2tr[ray])"
)


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load(CHECKPOINT, device="cpu")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Jobs about nine pictures, two of them alike, and a file that is none."""
    folder = scenes(tmp_path_factory.mktemp("few"), 9, 1)
    return of_folder(folder, "ask", [COLOR], PLAIN, folder / "out")


def batch(entries: list[Entry]) -> dict[str, list[object]]:
    """As Ray hands it to a worker."""
    groups = [[entry] for entry in entries]
    records = [json.dumps([record_of(entry) for entry in group]) for group in groups]
    return {"group": list(range(len(groups))), "records": list(records)}


class TestWorker:
    def test_a_batch_that_is_done_again_is_found(self, model: UnifiedModel, few: list[Entry], tmp_path: Path) -> None:
        keep = partial(Store, tmp_path / "out", shared=True)
        known = (lambda: model, "model", "demo", keep)
        keep().make()
        first = RayWorker(*known)(batch(few))
        assert first["group"] == [*range(10)] and set(first["place"]) == {0}
        assert sorted(first["state"]) == ["done"] * 8 + ["failed", "found"], "one picture is there twice"
        assert "broken.png: " in max(first["error"])
        again = RayWorker(lambda: pytest.fail("loaded"), *known[1:])(batch(few))
        assert sorted(again["state"]) == ["failed"] + ["found"] * 9 and again["key"] == first["key"]
        found = looked_up(batch(few), *known)
        assert found["state"] == again["state"] and found["key"] == first["key"]

        alone = tmp_path / "alone"
        Bulk(lambda: model, "model", "demo", Store(alone), lambda _: None).run(few)
        made, expected = tree(tmp_path / "out"), tree(alone)
        assert made == {name: content for name, content in expected.items() if not name.endswith(".jsonl")}

    def test_a_worker_without_the_folder_ends_the_run(self, few: list[Entry], tmp_path: Path) -> None:
        keep = partial(Store, tmp_path / "elsewhere", shared=True)
        said = RayWorker(lambda: pytest.fail("loaded"), "model", "demo", keep)(batch(few))
        assert said["state"] == ["ended"] and not (tmp_path / "elsewhere").exists()
        with pytest.raises(StoreError, match="a worker does not see the output folder"):
            list(fleet._heard(rows(said), [[entry] for entry in few]))

    @pytest.mark.parametrize(
        ("raised", "kind", "message"),
        [
            (CheckpointError("no weights", where="model", fix="Get some"), CheckpointError, "model: no weights. Get"),
            (ZeroDivisionError("by nought"), RuntimeError, "ZeroDivisionError: by nought"),
        ],
    )
    def test_what_goes_wrong_in_a_worker_is_raised_here(
        self, few: list[Entry], tmp_path: Path, raised: Exception, kind: type[Exception], message: str
    ) -> None:
        keep = partial(Store, tmp_path, shared=True)
        keep().make()

        def fail() -> UnifiedModel:
            raise raised

        said = rows(RayWorker(fail, "model", "demo", keep)(batch(few)))
        with pytest.raises(kind, match=message):
            list(fleet._heard(said, [[entry] for entry in few]))

    def test_what_is_heard_twice_counts_once(self, few: list[Entry]) -> None:
        said = {"group": 1, "place": 0, "key": "k", "state": "done", "error": ""}
        (heard,) = fleet._heard([said, said], [[few[0]], [few[1]]])
        assert (heard.entry, heard.state) == (few[1], "done")


def rows(columns: dict[str, list[object]]) -> list[dict[str, object]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@NEEDS_RAY
class TestRay:
    def test_workers_and_the_run_itself_may_die(self, tmp_path: Path) -> None:
        folder = scenes(tmp_path / "pictures", PICTURES, BROKEN)
        command = [sys.executable, "-m", "g2tr_core", "batch", "ask", str(folder), COLOR, "--max-tokens", "8"]
        alone, out = tmp_path / "alone", tmp_path / "out"
        assert subprocess.run([*command, "-o", str(alone)], cwd=REPOSITORY, check=False).returncode == 1

        cluster = [*command, "-o", str(out), "--ray", "local", "--workers", "2", "--json"]

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(cluster, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

        run = start()
        until(run, lambda: texts(out) > PICTURES // 6)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        before = texts(out)
        assert before < PICTURES
        run = start()  # which waits for the workers of the first one to end
        until(run, lambda: texts(out) > before + PICTURES // 3)
        workers = [each for each in psutil.Process(run.pid).children(recursive=True) if "RayWorker" in name(each)]
        assert len(workers) == 2
        workers[0].kill()
        at = texts(out)
        said, _ = run.communicate(timeout=300)
        assert at < PICTURES and run.returncode == 1
        counted = json.loads(said)
        assert counted["failed"] == BROKEN and counted["done"] + counted["found"] == PICTURES
        assert before <= counted["found"] <= at, "those of the first run, whose workers outlive it for a moment"

        made, expected = tree(out), tree(alone)
        failures = [sorted(each.pop("failures.jsonl").splitlines()) for each in (made, expected)]
        assert made == expected and failures[0] == failures[1] and len(failures[0]) == BROKEN
        assert len(lines(out / "results.jsonl")) == PICTURES

    def test_a_job_that_kills_its_worker_is_a_line(
        self, few: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        deadly = str(few[2].job.images[0])
        tallies: list[Tally] = []
        keep = partial(Store, tmp_path, shared=True)
        run = Fleet(deathly(deadly), fingerprint([CHECKPOINT]), "demo", keep, Cluster("local", 1), tallies.append)
        tally = run.run(few)
        assert (tally.done + tally.found, tally.failed) == (8, 2), "it was in a batch with another one"
        died = [
            line for line in lines(tmp_path / "failures.jsonl") if "every worker that began it died" in line["error"]
        ]  # type: ignore[operator]
        assert [line["images"] for line in died] == [[deadly]]

    def test_no_cluster_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="Ray does not answer"):
            fleet.started(Cluster("127.0.0.1:1"))


def deathly(picture: str) -> Callable[[], UnifiedModel]:
    """Loads a model whose process ends when it comes to a picture. A closure travels as it is, a module may not."""

    def load_deathly() -> UnifiedModel:
        from g2tr_core.embedded import CHECKPOINT
        from g2tr_core.jobs import worker
        from g2tr_core.umm import load

        read = worker.read

        def dying(model: object, prepared: object, purpose: object) -> object:
            if str(prepared.job.images[0]) == picture:  # type: ignore[attr-defined]
                os._exit(9)
            return read(model, prepared, purpose)  # type: ignore[arg-type]

        worker.read = dying  # type: ignore[assignment]
        return load(CHECKPOINT, device="cpu")

    return load_deathly


def texts(folder: Path) -> int:
    return len(list(folder.rglob("*.txt"))) if folder.exists() else 0


def name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def until(run: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not true():
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.02)
