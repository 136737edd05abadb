"""The live loop: paint, and the mask follows the brush.

A generator that never ends by itself. Whoever drives it drops letters into a :class:`.live_inbox.LiveInbox` (what is
painted, what is looked at) and receives the mask tile by tile: what the view shows first, from its centre outwards,
then the rest of the plane. Before each tile it reads its letters again: new strokes and a moved view count at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.engine.features import FeatureSource, Key, key_of
from napari_cellbrush.engine.instant import MAX_PIXELS, InstantHead, fit
from napari_cellbrush.engine.live_inbox import Index, LiveInbox, Strokes, View
from napari_cellbrush.engine.predictor import most_probable
from napari_cellbrush.engine.tiling import Tile, nearest_first
from napari_cellbrush.events import HeadFitted, LiveEvent, LiveTile, StopToken

#: Seconds between two looks at the stop token while there is nothing to do.
_IDLE_S = 0.1
#: Labelled pixels of one class that are gathered from one tile.
_MAX_PER_TILE = 1_000


def follow(source: FeatureSource, n_classes: int, inbox: LiveInbox,
           stop: StopToken) -> Generator[LiveEvent, None, None]:
    """Answer whatever is looked at with what the strokes say, until somebody stops it.

    Parameters
    ----------
    source
        Features of the image.
    n_classes
        Of the strokes.
    inbox
        Strokes and views.
    stop
        Looked at before every tile.

    Yields
    ------
    LiveEvent
        :class:`HeadFitted` for every change of the strokes that gives a classifier, then :class:`LiveTile`.

    Raises
    ------
    ImageError
        If the image cannot be read, or holds NaN or infinite values.
    """
    loop = _Loop(source, n_classes)
    while not stop.stopped:
        loop.read(inbox)
        event = loop.step()
        if event is not None:
            yield event
        elif loop.idle:
            inbox.wait(_IDLE_S)


class _Loop:
    """What the loop remembers between two steps."""

    def __init__(self, source: FeatureSource, n_classes: int) -> None:
        self._source = source
        self._n_classes = n_classes
        self._whole = slice(0, source.image.planes.shape_yx[0]), slice(0, source.image.planes.shape_yx[1])
        self._samples = _Samples(source)
        self._view: View | None = None
        self._strokes = Strokes(0, {})
        #: Whether the strokes, or what is known of them, changed since the head was fitted.
        self._stale = False
        self._head: InstantHead | None = None
        #: Tiles in the order of their turn; those in sight come first.
        self._order: list[Tile] = []
        self._n_seen = 0
        #: Those that the present head has answered.
        self._answered: set[Key] = set()
        self.idle = False

    def read(self, inbox: LiveInbox) -> None:
        """Take in what was dropped into the inbox."""
        view, strokes = inbox.read()
        if strokes is not self._strokes:
            self._samples.compare(self._strokes, strokes)
            self._strokes, self._stale = strokes, True
        if view is not None and view != self._view:
            self._view = view
            shown = self._source.image.network_window(view.rows, view.columns)
            centre = (shown[0].start + shown[0].stop) / 2, (shown[1].start + shown[1].stop) / 2
            self._n_seen = len(self._source.tiles((view.rows, view.columns)))
            self._order = nearest_first(self._source.tiles(self._whole), shown, centre)

    def step(self) -> LiveEvent | None:
        """Do the most urgent thing, which takes one tile's time at most; what it gave, if anything.

        An answer from the strokes in sight comes first, then the strokes elsewhere are learnt from as well, and then
        the rest of the plane is answered.
        """
        self.idle = False
        index = self._view.index if self._view else ()
        seen = [key_of(index, tile) for tile in self._order[: self._n_seen]]
        if self._samples.gather(seen):
            self._stale = True
            return None
        if self._stale:
            return self._fit()
        open_tiles = [tile for tile in self._order if key_of(index, tile) not in self._answered]
        if open_tiles and key_of(index, open_tiles[0]) in seen:
            return self._answer(index, open_tiles[0], seen=True)
        if self._samples.gather(None):
            self._stale = True
            return None
        if open_tiles:
            return self._answer(index, open_tiles[0], seen=False)
        self.idle = True
        return None

    def _fit(self) -> LiveEvent:
        began = time.perf_counter()
        self._stale = False
        self._answered.clear()
        features, classes = self._samples.collected()
        ready = len(np.unique(classes)) > 1
        self._head = fit(features, classes, self._n_classes, self._source.importance) if ready else None
        return HeadFitted(self._strokes.generation, ready, len(classes), time.perf_counter() - began)

    def _answer(self, index: Index, tile: Tile, *, seen: bool) -> LiveEvent | None:
        began = time.perf_counter()
        self._answered.add(key_of(index, tile))
        features = self._source.features(index, tile, keep=seen)
        if self._head is None:
            return None  # at least the features are there now
        image = self._source.image
        rows, columns = image.image_window(tile.rows, tile.columns)
        logits = image.to_image(self._head.of_tile(features), tile.rows, tile.columns)
        return LiveTile(self._strokes.generation, index, rows, columns, most_probable(logits),
                        time.perf_counter() - began)


class _Samples:
    """Features of labelled pixels, gathered once per tile, and again only where strokes changed."""

    def __init__(self, source: FeatureSource) -> None:
        self._source = source
        self._whole = slice(0, source.image.planes.shape_yx[0]), slice(0, source.image.planes.shape_yx[1])
        self._labels: dict[Key, NDArray[np.uint8]] = {}
        self._gathered: dict[Key, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        #: Tiles whose strokes changed.
        self._missing: dict[Key, tuple[Index, Tile]] = {}

    def compare(self, old: Strokes, new: Strokes) -> None:
        """Find the tiles in which strokes changed."""
        for index in old.planes.keys() | new.planes.keys():
            before, after = old.planes.get(index), new.planes.get(index)
            if before is after:
                continue
            for tile in self._source.tiles(self._whole):
                window = self._source.image.image_window(tile.rows, tile.columns)
                if not np.array_equal(_part(before, window), _part(after, window)):
                    self._note(index, tile, _part(after, window))

    def _note(self, index: Index, tile: Tile, labels: NDArray[np.uint8]) -> None:
        key = key_of(index, tile)
        if labels.any():
            self._labels[key], self._missing[key] = labels, (index, tile)
        else:
            for kept in (self._labels, self._gathered, self._missing):
                kept.pop(key, None)

    def gather(self, urgent: Collection[Key] | None) -> bool:
        """Take the features of one more tile with strokes, if there is any worth the time.

        Parameters
        ----------
        urgent
            Tiles whose features may be computed for it; None for all. Those of other tiles must be known already.
        """
        known = (key for key, (index, tile) in self._missing.items() if self._source.has(index, tile))
        worth = (key for key in self._missing if urgent is None or key in urgent)
        key = next(known, None) or next(worth, None)
        if key is None:
            return False
        index, tile = self._missing.pop(key)
        labels = self._labels[key]
        rows, columns = _evenly(labels)
        top, left = (part.start for part in self._source.image.image_window(tile.rows, tile.columns))
        points = self._source.image.network_points(rows + top, columns + left)
        self._gathered[key] = self._source.features(index, tile).at(*points), labels[rows, columns].astype(np.int64) - 1
        return True

    def collected(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features NF and class numbers N to learn from, equally many of each class if there are many."""
        parts = [self._gathered[key] for key in sorted(self._gathered)]
        if not parts:
            return np.zeros((0, len(self._source.importance)), np.float32), np.zeros(0, np.int64)
        features, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
        painted = np.unique(classes)
        chosen = np.concatenate([spread(np.flatnonzero(classes == k), MAX_PIXELS // len(painted)) for k in painted])
        return features[chosen], classes[chosen]


def spread(items: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """At most ``n`` of the items, evenly spaced; the same for the same items."""
    if len(items) <= n:
        return items
    return items[np.arange(n) * len(items) // n]


def _evenly(labels: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of labelled pixels, of each class at most :data:`_MAX_PER_TILE`."""
    flat = labels.ravel()
    chosen = np.concatenate([spread(np.flatnonzero(flat == value), _MAX_PER_TILE)
                             for value in np.unique(flat[flat > 0])])
    rows, columns = np.unravel_index(chosen, labels.shape)
    return rows, columns


def _part(labels: NDArray[np.uint8] | None, window: tuple[slice, slice]) -> NDArray[np.uint8]:
    if labels is None:
        return np.zeros([part.stop - part.start for part in window], np.uint8)
    return labels[window]
