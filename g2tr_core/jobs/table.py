"""The list of results as Parquet: a folder of parts, as engines and data sets have them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import SettingsError, StoreError
from ..files import write_whole

ROWS = 50_000  # of a part, all of which are in memory while it is written


def check_parquet() -> None:
    """Make sure that Parquet can be written.

    Raises:
        SettingsError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        what = "writing Parquet needs pyarrow, which is not installed"
        raise SettingsError(what, where="parquet", fix="Run: pip install 'g2tr[parquet]', or write JSONL") from error


def write_parts(folder: Path, tag: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write `part<tag>-00000.parquet` and so on, each whole or not at all, and take away parts that are too many.

    Args:
        folder: of the parts.
        tag: tells them from those of other shards.
        lines: of the list of results.

    Raises:
        StoreError: one cannot be written.
    """
    from pyarrow import Table, parquet

    rest = iter(lines)
    written: set[Path] = set()
    while rows := [*islice(rest, ROWS)]:
        buffer = io.BytesIO()
        parquet.write_table(Table.from_pylist([*map(_row, rows)], schema=_schema()), buffer)
        place = folder / f"part{tag}-{len(written):05}.parquet"
        write_whole(place, [buffer.getvalue()], StoreError, mark=tag)
        written.add(place)
    for place in _parts(folder, tag):
        if place not in written:
            place.unlink()


def _parts(folder: Path, tag: str) -> Iterator[Path]:
    return (path for path in folder.glob(f"part{tag}-*.parquet") if path.stem.removeprefix(f"part{tag}-").isdigit())


def _schema() -> Any:
    import pyarrow as pa

    texts = ("id", "name", "prompt", "text", "thinking", "settings", "model", "g2tr")
    counts = ("visual_tokens_before", "visual_tokens_after")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("images", pa.list_(pa.string())),
            ("seed", pa.uint64()),
            ("think", pa.bool_()),
            *((name, pa.int32()) for name in counts),
        ]
    )


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    before, after = line.get("visual_tokens", (None, None))
    row = {**line, "settings": json.dumps(line["settings"], sort_keys=True), "images": [*map(_text, line["images"])]}
    row |= {"visual_tokens_before": before, "visual_tokens_after": after}
    return {name: _text(value) if isinstance(value, str) else value for name, value in row.items()}


def _text(text: str) -> str:
    """As `store.as_file`: Parquet holds UTF-8, and half a surrogate is none."""
    return text.encode(errors="backslashreplace").decode()
