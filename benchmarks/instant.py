"""Which features the instant answer needs: those of the frozen network, classical filters, or both.

    python benchmarks/instant.py [--model NAME|FILE] [--sets NAME...] [--strokes N...] [--seeds N] [--size PX]

Reads ``$CELLBRUSH_DATA`` as ``accuracy.py`` does. One image of each set (of those that may be trained on, but for
isbi2012, which has none) is painted by the simulated annotator, cut to ``--size``; the mean intersection over union of
the classes is measured on a tenth of the pixels that were left unpainted, in the same image. A random forest on its own
multi-scale filters (``random_forest.py``) has the same strokes.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from accuracy import DATA, STROKE_SETS, as_classes, read
from annotator import paint
from numpy.typing import NDArray
from random_forest import RandomForest, pixel_features

from napari_cellbrush.config import classes_from_names
from napari_cellbrush.engine.annotation import median_diameter
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.diameter import object_diameter
from napari_cellbrush.engine.features import FeatureSource
from napari_cellbrush.engine.instant import MAX_PIXELS, fit
from napari_cellbrush.engine.live import spread
from napari_cellbrush.engine.metrics import class_iou
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes

SHARE_MEASURED = 0.1
KEPT_BYTES = 8 << 30
WAYS = ("filters", "network", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cells")
    parser.add_argument("--sets", nargs="*", default=list(STROKE_SETS))
    parser.add_argument("--strokes", nargs="*", type=int, default=[5, 20])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    model = read_model(find_model(arguments.model))
    print(f"Model {model.card.name}, {choose_device().description}\n")
    print("| set | strokes per class | random forest | " + " | ".join(WAYS) + " | fit of both, ms |")
    print("|" + "---|" * (4 + len(WAYS)))
    for name in arguments.sets:
        scene = Scene(model, name, arguments.size)
        for n_strokes in arguments.strokes:
            rows = np.array([scene.scores(n_strokes, seed) for seed in range(arguments.seeds)])
            cells = [f"{value:.3f}" for value in rows[:, :-1].mean(axis=0)]
            print(f"| {name} | {n_strokes} | {' | '.join(cells)} | {np.median(rows[:, -1]):.0f} |", flush=True)


class Scene:
    """One image of a set, with everything that is known of its pixels."""

    def __init__(self, model: Model, name: str, size: int) -> None:
        axes, _, _, kind = STROKE_SETS[name]
        splits = json.loads((DATA / "splits.json").read_text())[name]
        # One of the first that is no time-lapse.
        stem = next(s for s in sorted(splits["train"] or splits["bench"])[2:]
                    if read(name, "images", s).ndim == len(axes))
        mask = read(name, "masks", stem)
        self.planes = Planes(read(name, "images", stem), axes, stem)
        self.region = tuple(slice(0, min(size, n)) for n in self.planes.shape_yx)
        self.truth = as_classes(mask, kind)[self.region]
        self.pixels = self.planes.read((), *self.region)
        # Where the truth is classes, they are others than the model's.
        diameter = median_diameter(mask) if kind == "objects" else object_diameter(
            model, self.planes, 0, choose_device(), classes=classes_from_names(["one", "other"]))
        self.source = FeatureSource(model, self.planes, model.card.scale_for(diameter), choose_device(), KEPT_BYTES)
        # The forest's own filters, for all seeds.
        self.forest_features = pixel_features(self.pixels)

    def scores(self, n_strokes: int, seed: int) -> tuple[float, ...]:
        """IoU of the forest and of the three ways; milliseconds that the last one was fitted in."""
        random = np.random.default_rng(seed)
        labels = paint(self.truth, n_strokes, random)
        measured = (labels == 0) & (random.random(labels.shape) < SHARE_MEASURED)
        forest = RandomForest(seed=seed).fit([self.pixels], [labels])
        answers = [self._iou(forest._trees.predict(self.forest_features[measured]), measured)]
        chosen = np.concatenate([spread(np.flatnonzero(labels.ravel() == value), MAX_PIXELS // int(labels.max()))
                                 for value in np.unique(labels[labels > 0])])
        seen, asked = self._features(*np.unravel_index(chosen, labels.shape)), self._features(*np.nonzero(measured))
        classes = labels.ravel()[chosen].astype(np.int64) - 1
        is_filter = self.source.importance == 1
        for way in WAYS:
            used = {"filters": is_filter, "network": ~is_filter, "both": np.ones_like(is_filter)}[way]
            began = time.thread_time()
            head = fit(seen[:, used], classes, int(self.truth.max()), self.source.importance[used])
            milliseconds = 1000 * (time.thread_time() - began)
            answers.append(self._iou(head.of_pixels(asked[:, used]).argmax(axis=1) + 1, measured))
        return (*answers, milliseconds)

    def _features(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
        found = np.zeros((len(rows), len(self.source.importance)), np.float32)
        for tile in self.source.tiles(self.region):
            window = self.source.image.image_window(tile.rows, tile.columns)
            inside = np.all([(at >= part.start) & (at < part.stop)
                             for at, part in zip((rows, columns), window, strict=True)], axis=0)
            if inside.any():
                points = self.source.image.network_points(rows[inside], columns[inside])
                found[inside] = self.source.features((), tile).at(*points)
        return found

    def _iou(self, found: NDArray[Any], measured: NDArray[np.bool_]) -> float:
        return class_iou(found.astype(np.uint8)[None], self.truth[measured][None], int(self.truth.max())).mean


if __name__ == "__main__":
    main()
