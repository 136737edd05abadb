"""Tables as CSV, with units in the header."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.measure import column_title
from napari_cellbrush.errors import ExportError


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
        The file: UTF-8 with a byte order mark, without which Excel does not read "µ"; commas; numbers with as many
        digits as give the same number again, true and false as 1 and 0.

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
    # Python's own numbers print the fewest digits that give the same number again.
    values = [(column.astype(np.int64) if column.dtype == bool else column).tolist() for column in columns.values()]
    with (written_whole(path, overwrite=overwrite) as hidden,
          hidden.open("w", newline="", encoding="utf-8-sig") as file):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(*values, strict=True))
    return path
