"""What ``cellbrush evaluate`` measures: masks against the truth, as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.engine.annotation import whole_numbers
from napari_cellbrush.engine.image_file import open_labels
from napari_cellbrush.engine.metrics import average_precision, class_iou

#: Entries of a file that have no mean.
_NO_SCORES = ("prediction", "truth", "counts")


def compare(prediction: str, truth: str, kind: str) -> dict[str, Any]:
    """Scores of one file.

    Parameters
    ----------
    prediction, truth
        Files of the same shape.
    kind
        "classes": intersection over union of each class over the labelled pixels of the truth. "objects": average
        precision TP / (TP + FP + FN) at intersections over union of 0.5, 0.75, and the mean of 0.5, 0.55 … 0.95;
        and, as "counts", how many objects are found (TP), missed (FN) and extra (FP) at 0.5.

    Raises
    ------
    CellbrushError
        If a file cannot be read, or the two do not fit together.
    """
    masks = [whole_numbers(np.asarray(open_labels(file)), file) for file in (prediction, truth)]
    scores = _class_scores(*masks) if kind == "classes" else _object_scores(*masks)
    return {"prediction": prediction, "truth": truth, **scores}


def mean_scores(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over files of every score; of a class, over the files that have it."""
    means: dict[str, Any] = {}
    for name in dict.fromkeys(name for file in files for name in file if name not in _NO_SCORES):
        values = [file[name] for file in files if name in file]
        means[name] = mean_scores(values) if isinstance(values[0], dict) else _mean(values)
    return means


def total_counts(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many objects are found, missed and extra in all files together; nothing where none are counted."""
    counts = [file["counts"] for file in files if "counts" in file]
    return {"counts": {name: sum(one[name] for one in counts) for name in counts[0]}} if counts else {}


def _class_scores(prediction: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    n_classes = max(1, int(prediction.max(initial=0)), int(truth.max(initial=0)))
    scores = class_iou(prediction, truth, n_classes)
    return {"iou": {str(k + 1): _or_none(score) for k, score in enumerate(scores.per_class)},
            "mean_iou": _or_none(scores.mean)}


def _object_scores(prediction: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    if prediction.shape != truth.shape:
        average_precision(prediction, truth)  # says in words what differs
    # Plane by plane, because that is how objects are found; hits and misses of a stack are added up.
    planes = np.ndindex(truth.shape[:-2])
    scores = reduce(add, (average_precision(prediction[plane], truth[plane]) for plane in planes))
    ap = dict(zip(scores.thresholds, scores.average_precision.tolist(), strict=True))
    return {"ap_0.5": ap[0.5], "ap_0.75": ap[0.75], "ap_0.5_0.95": _mean(list(ap.values())),
            "counts": {"found": int(scores.true_positives[0]), "missed": int(scores.false_negatives[0]),
                       "extra": int(scores.false_positives[0])}}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _or_none(score: float) -> float | None:
    """JSON has no NaN."""
    return score if math.isfinite(score) else None
