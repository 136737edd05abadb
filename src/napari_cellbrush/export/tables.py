"""Tables as CSV, with units in the header."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.measure import column_title
from napari_cellbrush.errors import ExportError

Row = dict[str, str | int | float]
#: Digits of numbers that are not whole: more than any measurement has, fewer than binary fractions need.
DIGITS = 10


def save_rows(path: Path, rows: Sequence[Row], *, overwrite: bool = False) -> Path:
    """Write rows that need not have the same columns; whole or not at all.

    Parameters
    ----------
    path
        The file: as that of :func:`save_table`; what a row lacks stays empty.
    rows
        Name to value; numbers as in :func:`save_table`.
    overwrite
        Replace an existing file.

    Raises
    ------
    ExportError
        If the file cannot be written.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    with _opened(path, overwrite) as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows({name: _readable(value) for name, value in row.items()} for row in rows)
    return path


def save_table(path: Path | str, columns: Mapping[str, NDArray[Any]], *, unit: str = "pixel",
               overwrite: bool = False) -> Path:
    """Write what :func:`napari_cellbrush.engine.measure.measure_objects` gave; whole or not at all.

    Parameters
    ----------
    path
        The file.
    columns
        Name to values, all of one length.
    unit
        Of lengths, for the header: "area [µm²]".
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        The file: UTF-8 with a byte order mark, without which Excel does not read "µ"; commas; whole numbers in full,
        others with :data:`DIGITS` digits at most; true and false as 1 and 0.

    Raises
    ------
    ExportError
        If columns have different lengths, or the file cannot be written.
    """
    path = Path(path)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ExportError(f"Got columns of different lengths or none: {lengths}", "Measure objects first")
    header = [column_title(name, unit) for name in columns]
    values = [(column.astype(np.int64) if column.dtype == bool else column).tolist() for column in columns.values()]
    with _opened(path, overwrite) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(map(_readable, row) for row in zip(*values, strict=True))
    return path


def _readable(value: Any) -> Any:
    """221.8125 for 221.81250000000003."""
    # A sum of intensities may have more digits than that, all of them exact.
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and not value.is_integer() else value


@contextmanager
def _opened(path: Path, overwrite: bool) -> Iterator[TextIO]:
    with (written_whole(path, overwrite=overwrite) as hidden,
          hidden.open("w", newline="", encoding="utf-8-sig") as file):
        yield file
