"""Every error a user can meet, as one tree.

A message says what was found, then what to do about it. Code below the docks and the command line never
prints: it raises one of these, and whoever talks to a person shows ``str(error)``.
"""

from __future__ import annotations


class CellbrushError(Exception):
    """Base of all errors raised on purpose by napari-cellbrush.

    Parameters
    ----------
    problem
        What was got and what is needed, as one sentence without a full stop at its end.
    remedy
        What the person can do about it, as one sentence without a full stop at its end.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}. {remedy}." if remedy else f"{problem}.")


class ConfigError(CellbrushError):
    """A setting, or a file of settings, that cannot be used."""


class ImageError(CellbrushError):
    """An image whose shape, axes, type or values cannot be used."""


class AnnotationError(CellbrushError):
    """Labels that do not fit their image, or from which nothing can be learnt."""


class ModelError(CellbrushError):
    """A model that does not fit the image or the request."""


class ModelFileError(ModelError):
    """A model file that is missing, damaged, hostile or from a newer version."""


class SessionFileError(CellbrushError):
    """Saved work that is missing, damaged, hostile, from a newer version, or that could not be written."""


class ExportError(CellbrushError):
    """A file that could not be written, or that would lose information."""


class DeviceError(CellbrushError):
    """A device that was asked for and cannot be used."""


class OutOfMemory(DeviceError):
    """A device without enough memory, even for the smallest tile or batch."""


class TrainingDiverged(CellbrushError):
    """A training whose loss is no longer a number."""


class TrainingStateError(CellbrushError):
    """A kept state of a training that is missing, damaged, cannot be written, or does not fit."""
