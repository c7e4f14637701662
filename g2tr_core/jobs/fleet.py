"""A run over many jobs on Ray: one model a worker, as many workers as there are GPUs, on as many machines.

Ray moves records alone (paths, prompts, settings). Pictures are opened and results written where the model is, in a
folder that all machines see. So a worker that dies takes nothing with it but the job in work: Ray gives its batch to
another one, which finds what is finished, as a further run does.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

from ..errors import CheckpointError, G2TRError, OutOfMemoryError, SettingsError, StoreError
from ..umm.contract import UnifiedModel
from .bulk import Tally, ahead, check_entry, followed, grouped
from .lists import Entry, entry_of, record_of
from .records import Job
from .store import Store
from .worker import Outcome, Worker

KNOCK = 10.0  # seconds until a cluster must have answered


@dataclass(frozen=True)
class Pass:
    """How jobs are handed out.

    Args:
        batch: groups of jobs that a worker takes at a time; a result is heard of when its batch is done.
        in_flight: batches at a worker, the one in work included; more wait in the list.
        retries: of a batch whose worker dies.
    """

    batch: int
    in_flight: int
    retries: int


TOGETHER = Pass(batch=16, in_flight=2, retries=1)
ALONE = Pass(batch=1, in_flight=1, retries=2)
"""Then, one by one, what was in a batch, or waited at a worker, with a job that kills its worker."""
DIED = "every worker that began it died, most likely for want of memory. Look at Ray's log, and start the run again."
ENDS: dict[str, type[G2TRError]] = {
    each.__name__: each for each in (G2TRError, CheckpointError, OutOfMemoryError, SettingsError, StoreError)
}
"""What ends a run, by its name: a worker says it in a row."""

Load = Callable[[], UnifiedModel]
Keep = Callable[[], Store]


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs.

    Args:
        address: of a cluster; `local` for one on this machine alone; empty for what Ray finds, or else a local one.
        workers: how many models; None for one a GPU, or one alone where there are none.
        cpu: the models run on the CPU even where there are GPUs.
    """

    address: str = ""
    workers: int | None = None
    cpu: bool = False


class Fleet:
    """A run over many jobs on a cluster. The arguments are those of `bulk.Bulk`, but for two.

    Args:
        load, keep: make the model and the store, in every worker; they are pickled.
        model: fingerprint of the model.
        label: its name, for people.
        cluster: where to run.
        tell: called after every batch, for each of its jobs.
        together: see `Worker`.
    """

    def __init__(
        self,
        load: Load,
        model: str,
        label: str,
        keep: Keep,
        cluster: Cluster,
        tell: Callable[[Tally], None],
        together: int = 1,
    ) -> None:
        self._load, self._model, self._label, self._keep = load, model, label, keep
        self._cluster, self._tell, self._together = cluster, tell, together

    def run(self, entries: Sequence[Entry]) -> Tally:
        """As `bulk.Bulk.run`.

        Raises:
            SettingsError: Ray is not installed or not there, or what `bulk.Bulk.run` raises.
        """
        for entry in entries:
            check_entry(entry)  # before a cluster starts
        with redirect_stdout(sys.stderr), catch_warnings():  # Ray speaks of workers that die on standard output
            ray = started(self._cluster)
            filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")  # the one way to bound retries until 2.64
            try:
                return followed(entries, lambda listed: self._outcomes(ray, listed), self._keep(), self._tell)
            finally:
                ray.shutdown()

    def _outcomes(self, ray: Any, entries: Sequence[Entry]) -> Iterator[Outcome]:
        known = (self._load, self._model, self._label, self._keep)
        found, left = self._finished(ray, known, grouped(entries))
        yield from found
        if not left:
            return
        keys = {outcome.key for outcome in found}
        for passing in (TOGETHER, ALONE):
            heard = set()
            for outcome in _heard(self._work(ray, known, left, passing), left):
                # What a worker has found that nobody had done before this run was done by one that died.
                died = outcome.state == "found" and outcome.key not in keys
                keys.add(outcome.key)
                heard.add(id(outcome.entry))
                yield replace(outcome, state="done") if died else outcome
            left = _without(left, heard)
            if not left:
                return
        for group in left:
            for entry in group:
                yield Outcome(entry, "", "failed", DIED)

    def _work(
        self, ray: Any, known: tuple[Load, str, str, Keep], groups: list[list[Entry]], passing: Pass
    ) -> Iterator[Mapping[str, Any]]:
        """Have jobs done by actors, as far as these live long enough."""
        gpus = 0 if self._cluster.cpu else int(ray.cluster_resources().get("GPU", 0))
        workers = min(self._cluster.workers or gpus or 1, len(groups))
        size = max(1, min(passing.batch, len(groups) // (4 * workers)))  # so that all have work to the end
        done = _dataset(ray, groups, size).map_batches(
            RayWorker,
            batch_size=None,
            fn_constructor_args=(*known, self._together),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=passing.in_flight),
            num_cpus=1,
            num_gpus=gpus and 1 / -(-workers // gpus),  # of two models on a GPU each has a half
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": passing.retries},
        )
        rows: Iterator[Mapping[str, Any]] = done.iter_rows()
        return rows

    def _finished(
        self, ray: Any, known: tuple[Load, str, str, Keep], groups: list[list[Entry]]
    ) -> tuple[list[Outcome], list[list[Entry]]]:
        """What earlier runs have finished, found by workers that need no GPU, and the jobs that are left."""
        if not self._keep().holds_records():
            return [], groups
        size = max(1, min(TOGETHER.batch, len(groups) // 16))
        rows = _dataset(ray, groups, size).map_batches(looked_up, batch_size=None, fn_args=known, num_cpus=1)
        outcomes = [outcome for outcome in _heard(rows.iter_rows(), groups) if outcome.state == "found"]
        done = {id(outcome.entry) for outcome in outcomes}
        return outcomes, _without(groups, done)


class RayWorker:
    """An actor of Ray: a model, and batches of records -> batches of what became of them."""

    def __init__(self, load: Load, model: str, label: str, keep: Keep, together: int = 1) -> None:
        self._store = keep()
        self._worker = Worker(load, model, label, self._store, together=together)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do a batch; see `_dataset` and `_heard` for its columns."""

        def work() -> Iterator[tuple[int, int, Outcome]]:
            self._store.join()
            for outcome in self._worker.do(ahead(self._worker.open, groups)):
                yield *places[id(outcome.entry)], outcome

        numbers, groups = _groups(batch)
        places = {
            id(entry): (number, place)
            for number, group in zip(numbers, groups, strict=True)
            for place, entry in enumerate(group)
        }
        return _rows(work())


def looked_up(batch: Mapping[str, Any], load: Load, model: str, label: str, keep: Keep) -> dict[str, list[Any]]:
    """As `RayWorker`, without a model: what is finished is found, everything else stays waiting."""

    def work() -> Iterator[tuple[int, int, Outcome]]:
        worker = Worker(load, model, label, store)
        store.join()
        for number, group in zip(*_groups(batch), strict=True):
            for place, (entry, key) in enumerate(zip(group, worker.finished(group), strict=True)):
                yield number, place, Outcome(entry, key, "found" if key else "failed")

    store = keep()
    try:
        return _rows(work())
    finally:
        store.release()  # Ray uses the process again, for another run maybe


def started(cluster: Cluster) -> Any:
    """Ray, connected to a cluster.

    Raises:
        SettingsError: it is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report on the machine to its makers
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # what goes wrong is told by us
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError("Ray is not installed", where="ray", fix="Run: pip install 'g2tr[ray]'") from error
    own: dict[str, Any] = {"address": cluster.address or None, "log_to_driver": False, "logging_level": "WARNING"}
    if cluster.address == "local":
        # A worker that waits for a CPU that the machine has not would wait for ever.
        own |= {"num_cpus": max(os.cpu_count() or 1, cluster.workers or 1), "include_dashboard": False}
    try:
        _reach(cluster.address)
        ray.init(**own)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        what = f"Ray does not answer ({error})"
        raise SettingsError(
            what, where=f"ray {cluster.address}", fix="Check the address, or start Ray there"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A batch that kills its worker again and again is told as failed, and the others go on. What Python raises in a
    # worker is told by the worker itself, see `_rows`, and ends the run.
    context.max_errored_blocks = -1
    return ray


def _reach(address: str) -> None:
    """Knock at a cluster: Ray itself would wait for ever at a wrong address."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def _dataset(ray: Any, groups: Sequence[Sequence[Entry]], size: int) -> Any:
    """Rows of `group` (its number) and `records` (its jobs, as JSON), `size` of them a block."""
    rows = [{"group": number, "records": json.dumps([*map(record_of, group)])} for number, group in enumerate(groups)]
    return ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size))


def _groups(batch: Mapping[str, Any]) -> tuple[list[int], list[list[Entry]]]:
    like = Job("ask", "")
    jobs = [json.loads(str(records)) for records in batch["records"]]
    groups = [[entry_of(record, like, Path(), "record") for record in records] for records in jobs]
    return [int(number) for number in batch["group"]], groups


def _rows(work: Iterator[tuple[int, int, Outcome]]) -> dict[str, list[Any]]:
    """Columns `group`, `place` (in it), `key`, `state` and `error`; what ends the run is a row, too."""
    rows: dict[str, list[Any]] = {name: [] for name in ("group", "place", "key", "state", "error")}

    def add(*row: Any) -> None:
        for column, value in zip(rows.values(), row, strict=True):
            column.append(value)

    try:
        for group, place, outcome in work:
            add(group, place, outcome.key, outcome.state, outcome.error)
    except G2TRError as error:
        add(-1, -1, "", "ended", json.dumps([type(error).__name__, error.what, error.where, error.fix]))
    except Exception:
        add(-1, -1, "", "ended", json.dumps(["", traceback.format_exc()]))
    return rows


def _heard(rows: Iterable[Mapping[str, Any]], groups: Sequence[Sequence[Entry]]) -> Iterator[Outcome]:
    """What workers say, in any order. Of jobs whose workers died nothing is heard."""
    silent = {id(entry) for group in groups for entry in group}
    for row in rows:
        if row["state"] == "ended":
            kind, *said = json.loads(row["error"])
            if kind not in ENDS:
                raise RuntimeError(f"a worker of Ray failed:\n{said[0]}")
            raise ENDS[kind](said[0], where=said[1], fix=said[2])
        entry = groups[row["group"]][row["place"]]
        if id(entry) in silent:  # Ray may do a batch again whose results are lost
            silent.remove(id(entry))
            yield Outcome(entry, row["key"], row["state"], row["error"])


def _without(groups: Sequence[Sequence[Entry]], done: Collection[int]) -> list[list[Entry]]:
    """The jobs whose identities are not in `done`."""
    left = [[entry for entry in group if id(entry) not in done] for group in groups]
    return [group for group in left if group]
