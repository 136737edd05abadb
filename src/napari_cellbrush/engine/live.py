"""The live loop: paint, and the mask follows the brush.

A generator that never ends by itself. Whoever drives it drops letters into a :class:`.live_inbox.LiveInbox` (what is
painted, what is looked at) and receives the mask tile by tile: what the view shows first, from its centre outwards,
then the rest of the plane. Before each tile it reads its letters again: new strokes and a moved view count at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import InferenceConfig
from napari_cellbrush.engine.features import TILE_PX, FeatureSource, Key, key_of
from napari_cellbrush.engine.inference import answered_window, plan_region
from napari_cellbrush.engine.instant import MAX_PIXELS, InstantHead, fit
from napari_cellbrush.engine.live_inbox import HeldOutStrokes, Index, Letters, LiveInbox, Strokes, TunedAnswer, View
from napari_cellbrush.engine.metrics import iou_from_confusion
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.predictor import TilePredictor, most_probable
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.tiling import Region, Tile, nearest_first, relative_to
from napari_cellbrush.events import HeadFitted, LiveEvent, LiveScored, LiveTile, PauseToken, StopToken

#: All rows and columns.
WHOLE = slice(None), slice(None)
#: Seconds between two looks at the stop token while there is nothing to do.
_IDLE_S = 0.1
#: The tuned model answers unless the instant one scores higher by this. Held-out strokes are few; where both are about
#: as good on them, masks of the network look better between them. A choice, not a measurement.
_HEAD_START = 0.02
#: Labelled pixels of one class that are gathered from one tile.
_MAX_PER_TILE = 1_000


def follow(source: FeatureSource, n_classes: int, inbox: LiveInbox, stop: StopToken,
           pause: PauseToken | None = None) -> Generator[LiveEvent, None, None]:
    """Answer whatever is looked at with what the strokes say, until somebody stops it.

    Parameters
    ----------
    source
        Features of the image.
    n_classes
        Of the strokes.
    inbox
        Strokes and views; held-out strokes and tuned models, if somebody learns beside.
    stop, pause
        Looked at before every tile.

    Yields
    ------
    LiveEvent
        :class:`HeadFitted` for every change of the strokes, then :class:`LiveTile`; :class:`LiveScored` where strokes
        are held out.

    Raises
    ------
    ImageError
        If the image cannot be read, or holds NaN or infinite values.
    """
    loop, pause = _Loop(source, n_classes), pause or PauseToken()
    while not stop.stopped:
        if pause.held:
            pause.wait(_IDLE_S)
            continue
        loop.read(inbox.read())
        event = loop.step()
        inbox.is_behind = loop.is_behind
        if event is not None:
            yield event
        elif loop.is_idle:
            inbox.wait(_IDLE_S)


class _Loop:
    """What the loop remembers between two steps."""

    def __init__(self, source: FeatureSource, n_classes: int) -> None:
        self._source = source
        self._n_classes = n_classes
        self._samples = _Samples(source)
        self._letters = Letters()
        #: Whether the strokes, or what is known of them, changed since the head was fitted.
        self._is_stale = False
        self._head: InstantHead | None = None
        self._n_fits = 0
        self._instant_score: float | None = None
        self._is_scored = True
        self._tuned: _TunedModel | None = None
        self._tuned_leads = False
        #: Tiles in the order of their turn; those in sight come first.
        self._order: list[Tile] = []
        self._n_seen = 0
        #: What each tile was last answered by.
        self._answered: dict[Key, object] = {}
        self.is_idle = False

    # ----------------------------------------------------------------------------------------------- letters

    def read(self, letters: Letters) -> None:
        """Take in what was dropped into the inbox."""
        before, self._letters = self._letters, letters
        if letters.strokes is not before.strokes:
            self._samples.compare(before.strokes, letters.strokes)
            self._is_stale = True
        if letters.split is not before.split:
            self._is_scored = False
        if letters.tuned is not before.tuned:
            self._is_scored = False
            self._take_tuned(letters.tuned)
        if letters.view is not None and letters.view != before.view:
            self._look(letters.view)

    def _look(self, view: View) -> None:
        shown = self._source.image.network_window(view.rows, view.columns)
        centre = (shown[0].start + shown[0].stop) / 2, (shown[1].start + shown[1].stop) / 2
        self._n_seen = len(self._source.tiles((view.rows, view.columns)))
        self._order = nearest_first(self._source.tiles(WHOLE), shown, centre)

    def _take_tuned(self, tuned: TunedAnswer | None) -> None:
        if tuned is None:
            self._tuned, self._tuned_leads = None, False
        elif self._tuned is None or self._tuned.model is not tuned.model:
            self._tuned = _TunedModel(tuned.model, self._source)

    # ------------------------------------------------------------------------------------------------- steps

    def step(self) -> LiveEvent | None:
        """Do the most urgent thing, which takes one tile's time at most; what it gave, if anything.

        An answer from the strokes in sight comes first, then the strokes elsewhere are learnt from as well, then who
        answers better is measured, and then the rest of the plane is answered.
        """
        self.is_idle = False
        seen = self._order[: self._n_seen]
        if self._samples.gather([key_of(self._index, tile) for tile in seen]):
            self._is_stale = True
            return None
        if self._is_stale:
            return self._fit()
        tile = next((tile for tile in seen if self._is_open(tile)), None)
        if tile is not None:
            return self._answer(tile, keep=True)
        if self._samples.gather(None):
            self._is_stale = True
            return None
        if not self._is_scored:
            return self._score()
        tile = next((tile for tile in self._order if self._is_open(tile)), None)
        if tile is not None:
            return self._answer(tile, keep=False)
        self.is_idle = True
        return None

    @property
    def is_behind(self) -> bool:
        """Whether what is looked at still waits for an answer."""
        return self._is_stale or any(self._is_open(tile) for tile in self._order[: self._n_seen])

    @property
    def _index(self) -> Index:
        return self._letters.view.index if self._letters.view else ()

    def _fit(self) -> LiveEvent:
        began = time.perf_counter()
        self._is_stale = False
        self._n_fits += 1
        features, classes = self._samples.collected()
        is_ready = len(np.unique(classes)) > 1
        self._head = fit(features, classes, self._n_classes, self._source.importance) if is_ready else None
        return HeadFitted(self._letters.strokes.generation, is_ready, len(classes), time.perf_counter() - began)

    def _score(self) -> LiveEvent | None:
        """Measure the instant answer on the held-out strokes, and see who is better."""
        self._is_scored = True
        split, tuned = self._letters.split, self._letters.tuned
        self._instant_score = self._samples.score(split, self._n_classes) if split else None
        scores = self._instant_score, tuned.score if tuned else None
        # Without a score for both, whoever answers goes on.
        if scores[0] is not None and scores[1] is not None:
            self._tuned_leads = scores[1] > scores[0] - _HEAD_START
        return LiveScored(self._letters.strokes.generation, *scores, self._tuned_leads)

    # ----------------------------------------------------------------------------------------------- answers

    def _is_by_tuned(self, tile: Tile) -> bool:
        """Whether the tuned model answers a tile: not where strokes are that it was not measured on yet."""
        tuned = self._letters.tuned
        return self._tuned_leads and tuned is not None and (
            self._samples.changed_in(self._index, tile) <= tuned.generation)

    def _maker(self, tile: Tile) -> object:
        return self._tuned if self._is_by_tuned(tile) else self._n_fits

    def _is_open(self, tile: Tile) -> bool:
        key = key_of(self._index, tile)
        return key not in self._answered or self._answered[key] != self._maker(tile)

    def _answer(self, tile: Tile, *, keep: bool) -> LiveEvent | None:
        began = time.perf_counter()
        index, image = self._index, self._source.image
        self._answered[key_of(index, tile)] = self._maker(tile)
        rows, columns = image.image_window(tile.rows, tile.columns)
        is_by_tuned = self._tuned is not None and self._head is not None and self._is_by_tuned(tile)
        if self._tuned is not None and is_by_tuned:
            classes = self._tuned.classes(index, (rows, columns))
        else:
            features = self._source.features(index, tile, keep=keep)
            if self._head is None:
                return None  # at least the features are there now
            classes = most_probable(image.to_image(self._head.of_tile(features), tile.rows, tile.columns))
        return LiveTile(self._letters.strokes.generation, index, rows, columns, classes, is_by_tuned,
                        tile in self._order[: self._n_seen] and not self.is_behind,
                        time.perf_counter() - began)


class _TunedModel:
    """A model made ready to answer parts of the image as segmentation without mirror images does, pixel by pixel."""

    def __init__(self, model: Model, source: FeatureSource) -> None:
        self.model = model
        planes = source.image.planes
        fitting = model.for_channels(planes.n_channels)
        self._geometry = fitting.network.geometry
        self._image = Resampled(planes, model.card.scale_for(
            model.card.tuned_on.get(planes.fingerprint(), model.card.image_diameter_px)))
        self._predictor = TilePredictor(fitting, planes.normalisation(), source.device, InferenceConfig())

    def classes(self, index: Index, region: Region) -> NDArray[np.uint8]:
        """YX uint8, 1…K, of rows and columns of the image."""
        found = np.zeros([part.stop - part.start for part in region], np.uint8)
        size = self._geometry.input_size_for(TILE_PX + 4)
        for tile in plan_region(self._image, region, self._geometry, None, self._image.network_window(*region), size):
            window = self._image.read_mirrored(index, tile.top, tile.left, tile.height, tile.width)
            answered, probabilities = answered_window(self._image, region, self._geometry, tile,
                                                      self._predictor.predict(window))
            found[relative_to(answered, region)] = most_probable(probabilities)
        return found


@dataclass(frozen=True, eq=False)
class _Gathered:
    """Features of a tile's labelled pixels."""

    index: Index
    #: Where they lie in the image, N each.
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    #: NF.
    features: NDArray[np.float32]
    #: N, from 0 on.
    classes: NDArray[np.int64]
    #: How many labelled pixels each stands for.
    counts: NDArray[np.float64]

    def within(self, planes: Mapping[Index, NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """Which of the pixels have a label there."""
        labels = planes.get(self.index)
        return np.zeros(len(self.rows), bool) if labels is None else labels[self.rows, self.columns] > 0


class _Samples:
    """Features of labelled pixels, gathered once per tile, and again only where strokes changed."""

    def __init__(self, source: FeatureSource) -> None:
        self._source = source
        self._labels: dict[Key, NDArray[np.uint8]] = {}
        self._gathered: dict[Key, _Gathered] = {}
        #: Tiles whose strokes changed since their features were gathered.
        self._missing: dict[Key, tuple[Index, Tile]] = {}
        #: In which generation the strokes of a tile last changed.
        self._changed: dict[Key, int] = {}

    def compare(self, old: Strokes, new: Strokes) -> None:
        """Find the tiles in which strokes changed."""
        for index in old.planes.keys() | new.planes.keys():
            before, after = old.planes.get(index), new.planes.get(index)
            if before is after:
                continue
            for tile in self._source.tiles(WHOLE):
                window = self._source.image.image_window(tile.rows, tile.columns)
                if not np.array_equal(_part(before, window), _part(after, window)):
                    self._changed[key_of(index, tile)] = new.generation
                    self._note(index, tile, _part(after, window))

    def _note(self, index: Index, tile: Tile, labels: NDArray[np.uint8]) -> None:
        key = key_of(index, tile)
        if labels.any():
            self._labels[key], self._missing[key] = labels, (index, tile)
        else:
            for kept in (self._labels, self._gathered, self._missing):
                kept.pop(key, None)

    def changed_in(self, index: Index, tile: Tile) -> int:
        """The last generation of strokes that are new in a tile; 0 if there never were any."""
        return self._changed.get(key_of(index, tile), 0)

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
        rows, columns, counts = _evenly(labels)
        classes = labels[rows, columns].astype(np.int64) - 1
        top, left = (part.start for part in self._source.image.image_window(tile.rows, tile.columns))
        rows, columns = rows + top, columns + left
        features = self._source.features(index, tile).at(*self._source.image.network_points(rows, columns))
        self._gathered[key] = _Gathered(index, rows, columns, features, classes, counts)
        return True

    def collected(self, within: Mapping[Index, NDArray[np.uint8]] | None = None) -> tuple[
            NDArray[np.float32], NDArray[np.int64]]:
        """Features NF and class numbers N to learn from, equally many of each class if there are many.

        Parameters
        ----------
        within
            Planes of labels; pixels without a label there are left out.
        """
        parts = self._parts()
        if not parts:
            return np.zeros((0, len(self._source.importance)), np.float32), np.zeros(0, np.int64)
        kept = np.concatenate([part.within(within) if within is not None else np.ones(len(part.rows), bool)
                               for part in parts])
        classes = np.concatenate([part.classes for part in parts])
        painted = np.unique(classes[kept])
        chosen = np.concatenate([spread(np.flatnonzero(kept & (classes == k)), MAX_PIXELS // len(painted))
                                 for k in painted] or [np.zeros(0, np.intp)])
        return np.concatenate([part.features for part in parts])[chosen], classes[chosen]

    def score(self, split: HeldOutStrokes, n_classes: int) -> float | None:
        """Mean IoU, on the held-out strokes, of a head that never saw them; None where there are too few."""
        features, classes = self.collected(split.train)
        held = [(part, part.within(split.held_out)) for part in self._parts()]
        if len(np.unique(classes)) < 2 or not any(within.any() for _, within in held):
            return None
        head = fit(features, classes, n_classes, self._source.importance)
        confusion = np.zeros((n_classes, n_classes))
        for part, within in held:
            found = head.of_pixels(part.features[within]).argmax(axis=1)
            np.add.at(confusion, (part.classes[within], found), part.counts[within])
        return iou_from_confusion(np.rint(confusion).astype(np.int64)).mean

    def _parts(self) -> list[_Gathered]:
        return [self._gathered[key] for key in sorted(self._gathered)]


def spread(items: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """At most ``n`` of the items, evenly spaced; the same for the same items."""
    if len(items) <= n:
        return items
    return items[np.arange(n) * len(items) // n]


def _evenly(labels: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Rows and columns of labelled pixels, of each class at most :data:`_MAX_PER_TILE`; how many each stands for."""
    flat = labels.ravel()
    found = [np.flatnonzero(flat == value) for value in np.unique(flat[flat > 0])]
    chosen = [spread(pixels, _MAX_PER_TILE) for pixels in found]
    rows, columns = np.unravel_index(np.concatenate(chosen), labels.shape)
    counts = [np.full(len(some), len(pixels) / len(some)) for some, pixels in zip(chosen, found, strict=True)]
    return rows, columns, np.concatenate(counts)


def _part(labels: NDArray[np.uint8] | None, window: tuple[slice, slice]) -> NDArray[np.uint8]:
    if labels is None:
        return np.zeros([part.stop - part.start for part in window], np.uint8)
    return labels[window]
