"""Jobs as a plain function, record -> record, for any engine that runs Python over rows: Ray Data, Daft, Spark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .. import checks
from ..errors import SettingsError
from ..files import path_of
from ..umm import load
from ..umm.contract import MOST_TOGETHER
from .bulk import check_entry, fingerprint, grouped, named, together_said
from .lists import entry_of
from .records import Job
from .store import Store
from .worker import Outcome, Worker


class JobFunction:
    """Does jobs on one model, which is loaded at the first of them. Can be pickled until then, and costs nothing.

    What is wrong with a record or its pictures is in its result, as `error`, and no exception: one of a million rows
    must not end a pipeline. A model that cannot be loaded or a folder that cannot be written is one.

    Args:
        model: folder or file of the weights, on every machine that works.
        output: folder of results as `g2tr batch` writes it, which all machines see. What is finished there is not done
            again. Without it pictures that are made are in their records, as bytes.
        picture: extension of pictures that are made.
        together: how many answers of `many` are written together, see `UnifiedModel.answers`.
        loading: `device`, `dtype` and whatever else `umm.load` takes.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        output: str | Path | None = None,
        picture: str = ".png",
        together: int = 1,
        **loading: Any,
    ) -> None:
        checks.whole("together", together, low=1, high=MOST_TOGETHER)
        self._together = together
        self._path, self._loading, self._picture = path_of(model, "model").absolute(), loading, picture
        self._output = None if output is None else path_of(output, "output").absolute()
        self._worker: Worker | None = None
        self._store: Store | None = None

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as a line of a list of jobs has it -> a line of the list of results.

        Args:
            record: such as `{"image": "cat.jpg", "prompt": "Describe the picture."}`; a task that is not named is
                `ask`.

        Returns:
            A line of `results.jsonl`. `text`, `picture` (bytes), `output` (a path below the folder of results) and
            `error` are always there, and None where they have no meaning.

        Raises:
            CheckpointError: the model cannot be loaded.
            StoreError: the result cannot be written.
        """
        (result,) = self.many([record])
        return result

    def many(self, records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As many results, in the same order; records about the same picture share a reading."""
        listed = list(records)
        results: list[dict[str, Any]] = [{} for _ in listed]
        entries, places = [], {}
        for number, record in enumerate(listed):
            try:
                entry = entry_of(record, Job("ask", ""), Path(), "record")
                check_entry(entry)
            except SettingsError as error:
                results[number] = {**EMPTY, "error": str(error)}
                continue
            entries.append(entry)
            places[id(entry)] = number
        worker = self._ready()
        for outcome in worker.do(map(worker.open, grouped(entries))):
            results[places[id(outcome.entry)]] = self._result(outcome)
        return results

    def _ready(self) -> Worker:
        if self._worker is None:
            paths = [self._path, *(Path(path) for name in ("vae", "tokenizer") if (path := self._loading.get(name)))]
            how = [str(self._loading.get(name)) for name in ("dtype", "weight_dtype")]
            how += ["fp8_products"] if self._loading.get("fp8_products") else []
            how += together_said(self._together)
            if self._output is not None:
                self._store = Store(self._output, picture=self._picture, shared=True)
                self._store.make()
                self._store.join()
            make = partial(load, self._path, **self._loading)
            self._worker = Worker(
                make, fingerprint(paths, how), self._path.name, self._store, self._picture, self._together
            )
        return self._worker

    def _result(self, outcome: Outcome) -> dict[str, Any]:
        own = named(outcome.entry)
        if outcome.state == "failed":
            return {**EMPTY, **own, "error": outcome.error}
        if self._store is None:
            made = {} if outcome.entry.job.task == "ask" else {"picture": outcome.content}
            return {**EMPTY, **outcome.said, **own, **made}
        place = self._store.place_of(outcome.entry, outcome.key).relative_to(self._store.folder)
        return {**EMPTY, **(self._store.record(outcome.key) or {}), **own, "output": place.as_posix()}


EMPTY: Mapping[str, Any] = {"id": None, "text": None, "picture": None, "output": None, "error": None}
