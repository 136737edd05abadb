"""What a person has checked among the objects of an image: plain values, to be kept and compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Pixels beside each other in a row: index of the plane, row, first column, one after the last.
PixelRun = tuple[int, ...]
#: The largest id that is looked up in a table rather than searched for.
_DENSE_IDS = 10_000_000


@dataclass(frozen=True)
class Accepted:
    """What a person has checked: objects that are right as they are, and places where there is none."""

    #: Of objects.
    ids: frozenset[int] = frozenset()
    #: Pixels of objects that were deleted; they only count while no object is there.
    emptied: frozenset[PixelRun] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.ids or self.emptied)

    def with_objects(self, ids: Iterable[int]) -> Accepted:
        """With these objects as well."""
        return replace(self, ids=self.ids | frozenset(ids))

    def without_objects(self, ids: Iterable[int]) -> Accepted:
        """Without these objects."""
        return replace(self, ids=self.ids - frozenset(ids))

    def with_emptied(self, runs: Iterable[PixelRun]) -> Accepted:
        """With these places as well."""
        return replace(self, emptied=self.emptied | frozenset(runs))

    def in_numbers(self) -> dict[str, int]:
        """How much was checked, for the note in a mask; nothing where nothing was."""
        n_emptied = sum(stop - start for *_, start, stop in self.emptied)
        counts = {"objects_accepted_by_hand": len(self.ids), "pixels_emptied_by_hand": n_emptied}
        return {name: n for name, n in counts.items() if n}

    def covers(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which pixels belong to accepted objects; ``ids`` of any shape."""
        known, top = np.array(sorted(self.ids), np.int64), int(ids.max(initial=0))
        if not len(known) or top > _DENSE_IDS:
            return np.isin(ids, known)
        table = np.zeros(top + 1, bool)
        table[known[known <= top]] = True
        covered: NDArray[np.bool_] = table[ids]
        return covered

    def empty_at(self, index: tuple[int, ...], shape_yx: Sequence[int]) -> NDArray[np.bool_]:
        """YX: where objects of a plane were deleted."""
        empty = np.zeros(tuple(shape_yx), bool)
        for *plane, row, start, stop in self.emptied:
            if tuple(plane) == index:
                empty[row, start:stop] = True
        return empty

    def keep_only(self, ids: NDArray[Any]) -> None:
        """Take all other objects out, in place; ``ids`` is stack axes + YX."""
        for index in np.ndindex(ids.shape[:-2]):
            ids[index][~self.covers(ids[index])] = 0
