"""Many jobs at once: as single calls, whatever is broken, whenever the process is killed, in flat memory."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from PIL import Image

from g2tr_core.cli import batch, main
from g2tr_core.embedded import CHECKPOINT
from g2tr_core.errors import OutOfMemoryError, SettingsError, StoreError
from g2tr_core.jobs import worker
from g2tr_core.jobs.bulk import Bulk, Tally, ahead, fingerprint
from g2tr_core.jobs.lists import Entry, of_folder
from g2tr_core.jobs.records import Job
from g2tr_core.jobs.store import Store
from g2tr_core.jobs.work import prepare, run
from g2tr_core.lab.world.render import render, to_image
from g2tr_core.lab.world.scene import sample_scene
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from tests.goldens import REPOSITORY

PICTURES, BROKEN = 60, 8
COLOR, COUNT = "What color is the largest object?", "How many objects are there?"
PLAIN = Job("ask", "", settings={"max_tokens": 8})


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load(CHECKPOINT, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("pictures"), PICTURES, BROKEN)


def scenes(folder: Path, count: int, broken: int) -> Path:
    """Scenes of the embedded model's world, two of them alike, among files that are no pictures."""
    folder.mkdir(exist_ok=True)
    pixels = render([sample_scene(rng) for rng in [random.Random(7)] for _ in range(count - 1)]).pixels
    for number, picture in enumerate(pixels):
        place = folder / ("deeper" if number % 10 == 0 else ".") / f"{number:02}.png"
        place.parent.mkdir(exist_ok=True)
        to_image(picture).save(place)
    whole = (folder / "01.png").read_bytes()
    (folder / "twin.png").write_bytes(whole)
    kinds = [
        b"",
        b"text",
        whole[: len(whole) // 2],
        whole[:60],
        b"\x89PNG\r\n\x1a\n",
        b"\0" * 999,
        b"GIF89a",
        b"<svg/>",
    ]
    for number in range(broken):
        (folder / f"{number * 7:02}-broken.png").write_bytes(kinds[number % len(kinds)])
    (folder / "notes.md").write_text("no picture")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def do(
    model: UnifiedModel,
    entries: list[Entry],
    out: Path,
    tell: Callable[[Tally], None] = lambda _: None,
    together: int = 1,
    **how: object,
) -> Tally:
    store = Store(out, **how)  # type: ignore[arg-type]
    return Bulk(lambda: model, "model", "demo", store, tell, together).run(entries)


class TestManyAsOne:
    @pytest.mark.parametrize("together", [1, 5])
    def test_answers_are_those_of_single_calls_and_memory_stays_flat(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
    ) -> None:
        out, entries = tmp_path / "out", of_folder(folder, "ask", [COLOR, COUNT], PLAIN, tmp_path / "out")
        assert len(entries) == 2 * (PICTURES + BROKEN)
        readings: list[weakref.ref[object]] = []
        rss: list[int] = []

        def reading(*arguments: object) -> object:
            made = read(*arguments)  # type: ignore[arg-type]
            readings.append(weakref.ref(made))
            return made

        def tell(tally: Tally) -> None:
            gc.collect(0)
            assert sum(each() is not None for each in readings) <= together + 1, "those in use, one about to go"
            rss.append(psutil.Process().memory_info().rss)

        read = worker.read
        monkeypatch.setattr(worker, "read", reading)
        tally = do(model, entries, out, tell, together)
        assert tally == Tally(total=136, done=2 * (PICTURES - 1), found=2, failed=2 * BROKEN)
        assert len(readings) == PICTURES - 1, "the second question reuses the reading, the twin the answers"
        assert rss[-1] - rss[len(rss) // 2] < 16 * 2**20

        results = lines(out / "results.jsonl")
        names = [entry.name for entry in entries if "broken" not in (entry.name or "")]
        assert [line["name"] for line in results] == names
        for line in results[:: PICTURES // 10]:
            alone = Job("ask", str(line["prompt"]), (Path(line["images"][0]),), settings=PLAIN.settings)  # type: ignore[index]
            assert line["text"] == run(model, prepare(alone)).text
        assert all((out / str(line["output"])).read_text() == f"{line['text']}\n" for line in results)
        failures = lines(out / "failures.jsonl")
        assert len(failures) == 2 * BROKEN and all("broken.png: " in str(line["error"]) for line in failures)

        before = tree(out)
        again = Bulk(lambda: pytest.fail("loaded"), "model", "demo", Store(out), lambda _: None).run(entries)
        assert (again.done, again.found, again.failed) == (0, 2 * PICTURES, 2 * BROKEN)
        assert tree(out) == before

    def test_a_picture_knows_its_settings(self, model: UnifiedModel, folder: Path, tmp_path: Path) -> None:
        job = Job("edit", "Make the largest object purple.", (folder / "01.png",), settings={"steps": 2}, seed=5)
        for extension in (".png", ".jpg", ".webp"):
            out = tmp_path / extension[1:]
            assert do(model, [Entry(job, "a/b")], out, picture=extension).done == 1
            with Image.open(out / f"a/b{extension}") as made:
                said = json.loads(made.info["g2tr"] if extension == ".png" else made.getexif()[0x010E])
                assert (said["prompt"], said["settings"], said["seed"]) == (job.prompt, {"steps": 2}, 5)
                if extension == ".png":
                    assert made.tobytes() == run(model, prepare(job)).images[0].tobytes()
        (tmp_path / "png/a/b.png").unlink()
        assert do(model, [Entry(job, "a/b")], tmp_path / "png").done == 1, "what is missing is made again"

    def test_jobs_share_a_reading_where_they_may(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture = (folder / "01.png",)
        jobs = [
            Job("ask", COLOR, picture, settings={"max_tokens": 4}),
            Job("imagine", "A red circle on a navy background.", settings={"steps": 2}),
            Job("ask", COLOR, picture, settings={"keep_ratio": 0.25}),
            Job("edit", "Make the largest object purple.", picture, settings={"steps": 2}),
            Job("ask", COUNT, picture, settings={"temperature": 0.5}, seed=3),
            Job("ask", COUNT, picture, settings={"temperature": 0.5}, seed=3),
        ]
        read, readings = worker.read, []
        monkeypatch.setattr(worker, "read", lambda *arguments: readings.append(read(*arguments)) or readings[-1])
        tally = do(model, [Entry(job, None) for job in jobs], tmp_path)
        assert (tally.done, tally.found, tally.failed, len(readings)) == (5, 1, 0, 2)
        results = lines(tmp_path / "results.jsonl")
        assert [line["prompt"] for line in results] == [job.prompt for job in jobs[:5]], "in order, none twice"
        assert results[0]["text"] == run(model, prepare(jobs[0])).text
        made = Image.open(tmp_path / str(results[3]["output"]))
        assert made.tobytes() == run(model, prepare(jobs[3])).images[0].tobytes()
        assert results[4]["text"] == run(model, prepare(jobs[4])).text

    def test_questions_that_are_answered_together_fail_alone(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever their number: the product of every step has as many rows."""
        pictures = [(folder / f"0{number}.png",) for number in (1, 2, 3, 4, 5)]
        asked = [Job("ask", COLOR, picture, settings={"max_tokens": most + 1}) for most, picture in enumerate(pictures)]
        asked[2] = replace(asked[2], prompt="word " * 10**5)
        jobs = [*asked, Job("edit", "Make it purple.", pictures[0], settings={"steps": 1})]
        rows: list[int] = []
        head = model.network.language_model.lm_head
        hook = head.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        tally = do(model, [Entry(job, None) for job in jobs], tmp_path, together=4)
        hook.remove()
        assert (tally.done, tally.found, tally.failed) == (5, 0, 1) and set(rows) == {4}
        (failure,) = lines(tmp_path / "failures.jsonl")
        assert "is too long" in str(failure["error"])
        texts = [line.get("text") for line in lines(tmp_path / "results.jsonl")]
        assert texts == [run(model, prepare(job)).text for job in (*asked[:2], *asked[3:])] + [None]

    def test_readings_that_wait_make_room_where_memory_runs_out(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, alive = worker.read, list[weakref.ref[object]]()

        def full(*arguments: object) -> object:
            gc.collect()
            if sum(each() is not None for each in alive) == 2:
                raise OutOfMemoryError("the GPU ran out of memory")
            made = read(*arguments)  # type: ignore[arg-type]
            alive.append(weakref.ref(made))
            return made

        monkeypatch.setattr(worker, "read", full)
        pictures = [(folder / f"0{number}.png",) for number in (1, 2, 3, 4, 5)]
        jobs = [Job("ask", COLOR, picture, settings=PLAIN.settings) for picture in pictures]
        tally = do(model, [Entry(job, None) for job in jobs], tmp_path, together=4)
        assert (tally.done, tally.failed) == (5, 0)

    def test_a_fault_of_the_list_is_found_before_anything_is_done(self, model: UnifiedModel, tmp_path: Path) -> None:
        jobs = [
            Entry(Job("imagine", "A fox"), "a"),
            Entry(Job("imagine", "A fox", settings={"steps": 0}), "b", "line 2"),
        ]
        with pytest.raises(SettingsError, match=r"^line 2, steps: 0 is out of range"):
            do(model, jobs, tmp_path)
        assert not tree(tmp_path)

    def test_what_the_model_refuses_is_a_line(self, model: UnifiedModel, tmp_path: Path) -> None:
        jobs = [Job("imagine", "A fox", size=(63, 10**6), settings={"steps": 1}), Job("imagine", "A", size=(64, 64))]
        tally = do(model, [Entry(jobs[0], "bad"), Entry(jobs[1], "good")], tmp_path)
        assert (tally.done, tally.failed) == (1, 1) and (tmp_path / "good.png").is_file()


class TestWhatIsThere:
    def test_a_foreign_file_is_never_lost(self, model: UnifiedModel, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("by hand")
        entry = Entry(Job("ask", COLOR, (folder / "01.png",), settings=PLAIN.settings), "a")
        assert do(model, [entry], tmp_path).failed == 1
        assert (tmp_path / "a.txt").read_text() == "by hand"
        (failure,) = lines(tmp_path / "failures.jsonl")
        assert "another file is here already" in str(failure["error"])
        assert do(model, [entry], tmp_path, overwrite=True).done == 1
        answer = (tmp_path / "a.txt").read_text()
        assert answer != "by hand" and not (tmp_path / "failures.jsonl").exists()

        (tmp_path / "a.txt").write_text("corrected")
        assert do(model, [entry], tmp_path).found == 1 and (tmp_path / "a.txt").read_text() == "corrected"
        assert do(model, [entry], tmp_path, overwrite=True).found == 1 and (tmp_path / "a.txt").read_text() == answer

    def test_what_is_no_file_or_a_damaged_record_is_a_line(
        self, model: UnifiedModel, folder: Path, tmp_path: Path
    ) -> None:
        entry = Entry(Job("ask", COLOR, (folder / "01.png",), settings=PLAIN.settings), "a")
        assert do(model, [entry], tmp_path).done == 1
        (record,) = (tmp_path / ".g2tr").rglob("*.json")
        said = record.read_bytes()
        record.write_bytes(said[:9])
        assert do(model, [entry], tmp_path).failed == 1
        assert do(model, [entry], tmp_path, overwrite=True).done == 1 and record.read_bytes() == said
        (tmp_path / "a.txt").unlink()
        (tmp_path / "a.txt").mkdir()
        assert do(model, [entry], tmp_path, overwrite=True).failed == 1
        assert "a.txt: this is a folder" in (tmp_path / "failures.jsonl").read_text()

    def test_a_disk_that_takes_nothing_ends_the_run(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = [Entry(Job("ask", COLOR, (folder / f"0{n}.png",), settings=PLAIN.settings), str(n)) for n in (1, 2)]
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StoreError, match="No space left on device"):
            do(model, entries, tmp_path)
        assert tree(tmp_path) == {".g2tr/lock": b""}


class TestTwoRuns:
    def test_the_second_one_ends_and_the_first_goes_on(self, model: UnifiedModel, folder: Path, tmp_path: Path) -> None:
        entries = of_folder(folder, "ask", [COLOR], PLAIN, tmp_path)[:4]
        tried = []

        def tell(tally: Tally) -> None:
            if tally.done == 2:
                with pytest.raises(StoreError, match=r"another run works on these results\."):
                    Bulk(lambda: pytest.fail("loaded"), "model", "demo", Store(tmp_path), lambda _: None).run(entries)
                do(model, entries[3:], tmp_path, part=(2, 8))  # another part is another thing
                tried.append(tally)

        tally = do(model, entries, tmp_path, tell)
        assert (tally.done, tally.found, tally.failed) == (2, 1, 1) and tried, "one was done by the other part"
        assert do(model, entries, tmp_path).found == 3, "the lock went with the run"

    def test_a_run_that_was_killed_holds_nothing(self, tmp_path: Path) -> None:
        code = "import sys, time; from pathlib import Path; from g2tr_core.jobs.store import Store\n"
        code += "store = Store(Path(sys.argv[1])); store.begin(); print('held', flush=True); time.sleep(99)"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match="another run"):
                Store(tmp_path).begin()
            other.kill()
        Store(tmp_path).begin()

    def test_workers_share_it_with_their_run_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run, *workers = [Store(tmp_path, shared=True) for _ in range(3)]
        run.begin()
        for each in workers:
            each.join()
        run.release()
        with pytest.raises(StoreError, match="another run"):
            Store(tmp_path).begin()
        monkeypatch.setattr("time.sleep", lambda _: [each.release() for each in workers])
        run.begin()  # waits for workers that are left
        run.release()
        alone = Store(tmp_path)
        alone.begin()
        with pytest.raises(StoreError, match="another run works on these results alone"):
            workers[0].join()

    def test_a_disk_without_locks_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        fcntl = pytest.importorskip("fcntl", reason="locks of Windows are others")
        refused = OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(refused))
        Store(tmp_path).begin()
        assert "this disk has no locks (No locks available)" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that kills hit the work")
class TestKilled:
    def test_the_folder_is_the_same_however_often(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batch, "load_model", lambda *_, **__: model)
        command = ["batch", "ask", str(folder), COLOR, "--max-tokens", "8", "--quiet", "--dtype", "fp32"]
        took, expected = whole(command, tmp_path / "whole")
        assert len([name for name in expected if name.endswith(".txt")]) == PICTURES

        out = tmp_path / "killed"
        real = subprocess.Popen([sys.executable, "-m", "g2tr_core", *command, "-o", str(out)], cwd=REPOSITORY)
        while not (texts := [*out.glob("*.txt")]) and real.poll() is None:
            time.sleep(0.005)
        real.kill()
        assert real.wait() == -signal.SIGKILL and 0 < len(texts) < PICTURES
        kills, halfway = killed(command, out, took / 4)
        assert kills >= 8 and halfway >= 4, "it was killed at work"
        assert tree(out) == expected

    def test_answers_that_are_written_together_too(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though other answers are written together after each kill."""
        monkeypatch.setattr(batch, "load_model", lambda *_, **__: model)
        command = ["batch", "ask", str(folder), COLOR, "--max-tokens", "8", "--quiet", "--together", "4"]
        took, expected = whole(command, tmp_path / "whole")
        kills, halfway = killed(command, tmp_path / "killed", took / 4)
        assert kills >= 4 and halfway >= 2, "it was killed at work"
        assert tree(tmp_path / "killed") == expected

    def test_pictures_too(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batch, "load_model", lambda *_, **__: model)
        command = [
            "batch",
            "edit",
            str(folder / "deeper"),
            "Make the largest object purple.",
            "--steps",
            "2",
            "--quiet",
        ]
        took, expected = whole(command, tmp_path / "whole")
        assert len([name for name in expected if name.endswith(".png")]) == PICTURES // 10
        kills, halfway = killed(command, tmp_path / "killed", took / 2)
        assert kills >= 4 and halfway >= 3, "it was killed at work"
        assert tree(tmp_path / "killed") == expected

    def test_at_every_step_of_a_write(
        self, model: UnifiedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where chance seldom hits: a record without its result, a temporary file that is not renamed yet."""
        monkeypatch.setattr(batch, "load_model", lambda *_, **__: model)
        command = ["batch", "ask", str(folder / "deeper"), COLOR, "--max-tokens", "8", "--quiet"]
        _, expected = whole(command, tmp_path / "whole")
        out = tmp_path / "killed"
        for attempt in range(60):
            if (child := os.fork()) == 0:
                os.fsync = killing(attempt % 5)  # a result and its record are synced, and so are their folders
                in_child(command, out)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                break
        assert attempt > 10 and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        assert tree(out) == expected


def whole(command: list[str], out: Path) -> tuple[float, dict[str, bytes]]:
    """Seconds of a run that nobody kills, and what it leaves."""
    start = time.perf_counter()
    main([*command, "-o", str(out)])
    return time.perf_counter() - start, tree(out)


def killed(command: list[str], out: Path, longest: float) -> tuple[int, int]:
    """Start a command again and again, and kill it 20 times within so many seconds, until one ends by itself.

    Returns:
        How often it was killed, and how many different numbers of results it was found with.
    """
    rng, kills, halfway = random.Random(3), 0, set()
    for attempt in range(24):
        child = os.fork()
        if child == 0:
            in_child(command, out)
        if attempt < 20:
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        halfway.add(sum(path.suffix in (".txt", ".png") for path in out.rglob("*")))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) in (0, 1), "1 where a picture is broken"
            break
    return kills, len(halfway)


def killing(after: int) -> Callable[[int], None]:
    """As `os.fsync`, but it kills the process when it has been called so often."""
    sync, steps = os.fsync, iter(range(after))

    def fsync(file: int) -> None:
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)

    return fsync


def in_child(command: list[str], out: Path) -> NoReturn:
    """Run a command in a forked process, silently, and end it."""
    signal.alarm(60)  # a child that hangs fails the test, not the machine
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(main([*command, "-o", str(out)]))


class TestAhead:
    def test_keeps_the_order_and_a_distance(self) -> None:
        asked: list[int] = []

        def items() -> Iterable[int]:
            for number in range(9):
                asked.append(number)
                yield number

        made = ahead(lambda number: number * number, items())
        assert next(made) == 0 and asked == [0, 1, 2]
        assert list(made) == [number * number for number in range(1, 9)]

    def test_passes_errors_on_and_stops(self) -> None:
        with pytest.raises(ZeroDivisionError):
            list(ahead(lambda number: 1 // number, [1, 0, 1]))


class TestFingerprint:
    def test_is_of_what_the_files_hold_and_how_they_are_loaded(self, tmp_path: Path) -> None:
        weights = tmp_path / "one" / "weights.safetensors"
        weights.parent.mkdir()
        weights.write_bytes(bytes(range(256)) * 20_000)
        copy = tmp_path / "two"
        copy.mkdir()
        (copy / weights.name).write_bytes(weights.read_bytes())
        known = fingerprint([weights.parent])
        assert fingerprint([copy]) == known != fingerprint([copy], ["fp8"])
        changed = bytearray(weights.read_bytes())
        changed[-1] ^= 1
        (copy / weights.name).write_bytes(changed)
        assert fingerprint([copy]) != known
