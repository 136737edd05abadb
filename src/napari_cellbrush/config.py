"""Every setting once: its type, title, help, unit, bounds and default.

The docks' forms, the command line, the configuration file and the model file all read these classes; none of
them repeats a default or a bound. The values are frozen: change one with :meth:`Settings.replace`, which
validates again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from napari_cellbrush.errors import ConfigError

LossName = Literal["cross_entropy", "dice", "cross_entropy_dice", "focal", "tversky"]
OptimiserName = Literal["adamw", "adam", "sgd"]
OutputActivation = Literal["softmax", "sigmoid"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32"]
OutputKind = Literal["classes", "objects", "probabilities"]
ClassRole = Literal["background", "object", "boundary"]
#: "made_by" in the provenance of a mask that follows strokes: no model alone makes it.
MADE_BY_LIVE = "live"
#: classes: 0 unlabelled, k class k. objects: instance masks, 0 background, ids ≥ 1.
LabelKind = Literal["classes", "objects"]


def _setting(default: Any, title: str, help: str, *, unit: str = "", zero: str = "", advanced: bool = True,
             **bounds: Any) -> Any:
    """A pydantic field that also knows its unit, what 0 means in a word, and whether the first screen shows it."""
    extra: dict[str, JsonValue] = {"unit": unit, "zero": zero, "advanced": advanced}
    return Field(default, title=title, description=help, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed, validated like a new one.

        Raises
        ------
        ConfigError
            If a value is unknown or out of bounds.
        """
        return self.read({**self.model_dump(), **changes})

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Build from plain values, with errors in words.

        Raises
        ------
        ConfigError
            If a name is unknown or a value is out of bounds.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_first_problem(error), "Correct the setting, or leave it out for its default") from error

    def __repr__(self) -> str:
        changed = {name: value for name, value in self if value != type(self).model_fields[name].default}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    return f"Setting '{name}' is {first['input']!r}: {first['msg']}"


class ClassDefinition(Settings):
    """One class a user paints. Label value 0 is "unlabelled"; class number k of a list has label value k + 1."""

    name: str = Field(title="Name", min_length=1, max_length=64)
    color: str = Field(title="Colour", pattern=r"^#[0-9a-fA-F]{6}$")
    role: ClassRole = Field("object", title="Role", description="What the class means when objects are counted.")


DEFAULT_CLASSES = (
    ClassDefinition(name="background", color="#4c78a8", role="background"),
    ClassDefinition(name="cell", color="#f2b134", role="object"),
    ClassDefinition(name="boundary", color="#e4572e", role="boundary"),
)

#: Colours offered to classes that a user adds.
CLASS_COLORS = ("#4c78a8", "#f2b134", "#e4572e", "#54a24b", "#b279a2", "#72b7b2", "#ff9da6", "#9d755d", "#bab0ac")


def classes_from_names(names: list[str]) -> tuple[ClassDefinition, ...]:
    """Classes with default colours and roles: the first is background, one called "boundary" separates objects.

    Raises
    ------
    ConfigError
        If there are fewer than two names, more than 255, or one is empty or given twice.
    """
    if not 2 <= len(names) <= 255 or len(set(names)) != len(names):
        raise ConfigError(f"Got the class names {names}, need 2 to 255 different ones",
                          "List background first, for example background,cell,boundary")
    known = {c.name: c for c in DEFAULT_CLASSES}

    def define(position: int, name: str) -> ClassDefinition:
        role = "background" if position == 0 else known[name].role if name in known else "object"
        color = known[name].color if name in known else CLASS_COLORS[position % len(CLASS_COLORS)]
        return ClassDefinition.read({"name": name, "color": color, "role": role})

    return tuple(define(position, name) for position, name in enumerate(names))


class NetworkConfig(Settings):
    """The shape of a new U-Net. A fine-tuned one keeps the shape of its base."""

    depth: int = _setting(4, "Depth", "How often the network halves the image; deeper sees more context.",
                          unit="levels", ge=3, le=5)
    base_filters: int = _setting(32, "Base filters", "Feature channels of the first level; doubled at each level.",
                                 ge=8, le=128)
    batch_norm: bool = _setting(True, "Batch normalisation", "Normalise features in training (folded away later).")
    activation: OutputActivation = _setting(
        "softmax", "Output", "softmax: classes exclude each other. sigmoid: one class against background.")


class AugmentationConfig(Settings):
    """How training patches are varied so that few strokes teach a lot."""

    elastic_sigma_px: float = _setting(
        10.0, "Elastic deformation", "Standard deviation of the random displacements on a 3×3 grid "
        "(Ronneberger 2015: 10); 0 switches it off.", unit="px", ge=0, le=50)
    rotation_deg: float = _setting(180.0, "Rotation", "Largest random rotation either way.", unit="°", ge=0, le=180)
    flips: bool = _setting(True, "Flips", "Mirror patches at random.")
    scale_range: float = _setting(0.2, "Scale", "Largest random enlargement or reduction, as a fraction.",
                                  ge=0, le=0.9)
    plain_share: float = _setting(0.3, "Undeformed share", "Share of the patches that are only mirrored and turned by "
                                  "right angles: deforming interpolates, and blurs texture as fine as a pixel.",
                                  ge=0, le=1)
    gain: float = _setting(0.2, "Contrast", "Largest random change of contrast, as a fraction.", ge=0, le=0.9)
    offset: float = _setting(0.1, "Brightness", "Largest random shift of brightness, as a fraction of the image's "
                             "range.", ge=0, le=1)
    gamma: float = _setting(0.2, "Gamma", "Largest random change of gamma, as a fraction.", ge=0, le=0.9)
    noise: float = _setting(0.05, "Noise", "Largest standard deviation of added noise, as a fraction of the image's "
                            "range.", ge=0, le=1)
    blur_px: float = _setting(1.0, "Blur", "Largest standard deviation of a Gaussian blur.", unit="px", ge=0, le=5)


class TrainingConfig(Settings):
    """How a model learns from strokes."""

    max_minutes: float = _setting(1.0, "Time", "Stop after this long, with the best model so far.", unit="min",
                                  advanced=False, gt=0, le=1440)
    max_steps: int = _setting(150, "Steps", "Stop after this many optimiser steps, with the best model so far.",
                              advanced=False, ge=1, le=1_000_000)
    diameter_px: float = _setting(0.0, "Object diameter", "Typical diameter of the painted objects, in image pixels, "
                                  "by which images are rescaled for the base; 0 measures it.", unit="px",
                                  zero="automatic", advanced=False, ge=0, le=2000)
    only_errors_painted: bool = _setting(False, "Only errors painted", "You painted only where masks of the model you "
                                         "start from were wrong: what it says everywhere else is believed. Not if it "
                                         "takes other things for cells than you do.", advanced=False)
    learning_rate: float = _setting(3e-4, "Learning rate", "Largest step size, reached after the warm-up; a model "
                                    "from scratch takes five times as large ones.",
                                    ge=1e-5, le=3e-3)
    optimiser: OptimiserName = _setting("adamw", "Optimiser", "adamw, adam, or sgd as in the 2015 paper.")
    momentum: float = _setting(0.99, "Momentum", "Momentum of sgd (Ronneberger 2015: 0.99).", ge=0, lt=1)
    weight_decay: float = _setting(1e-4, "Weight decay", "Pull of all weights towards zero.", ge=0, le=1)
    loss: LossName = _setting("cross_entropy", "Loss", "What training makes small, on labelled pixels alone.")
    class_balance: bool = _setting(True, "Balance classes", "Give every class the same total weight in the loss, "
                                   "however much of it is painted.")
    border_weight: float = _setting(0.0, "Border weight", "How much more a labelled pixel counts that lies between two "
                                    "painted cells which touch (Ronneberger 2015: 10), so that cells come apart; 0 "
                                    "switches it off.", ge=0, le=100)
    border_sigma_px: float = _setting(5.0, "Border reach", "How fast the border weight falls as the gap between two "
                                      "cells widens (Ronneberger 2015: 5), in pixels as the network sees them.",
                                      unit="px", ge=0.5, le=50)
    batch_size: int = _setting(4, "Batch size", "Patches per optimiser step.", unit="patches", ge=1, le=32)
    patch_px: int = _setting(128, "Patch size", "Side of the square patches that are learnt from, in pixels as the "
                             "network sees them; rounded up to a size it can take.", unit="px", ge=64, le=1024)
    dropout: float = _setting(0.0, "Dropout", "Share of features hidden at random at the end of the contracting "
                              "path.", ge=0, le=0.5)
    fit_head: bool = _setting(True, "Fit the head first", "Where the base does not know all classes, fit its last "
                              "layer to the strokes before anything else learns.")
    base_worth_strokes: float = _setting(
        150.0, "Remember the base", "How many strokes of each class the base's own answers are worth where nothing is "
        "painted, if it knows all classes: so many if it calls cell what you do, far fewer if not. It also "
        "tells how frequent balanced classes are. With 0 a few strokes can undo what it knew.", unit="strokes", ge=0,
        le=1000)
    warmup_steps: int = _setting(10, "Warm-up", "Steps over which the learning rate rises from zero.", unit="steps",
                                 ge=0, le=10_000)
    gradient_clip: float = _setting(1.0, "Gradient clip", "Largest norm of the gradient; 0 switches it off.",
                                    ge=0, le=100)
    ema_decay: float = _setting(0.98, "Averaging", "Share of the averaged weights (EMA) kept at each step; 0 "
                                "switches averaging off.", ge=0, le=0.9999)
    held_out_fraction: float = _setting(0.2, "Held-out share", "Share of the strokes kept away from training to "
                                        "score the model.", ge=0, le=0.5)
    validate_every: int = _setting(10, "Score every", "Steps between two scores on the held-out strokes.",
                                   unit="steps", ge=1, le=10_000)
    patience: int = _setting(8, "Patience", "Scores without a better one before training stops; 0 never stops.",
                             unit="scores", ge=0, le=1000)
    seed: int = _setting(0, "Seed", "Start of all random numbers: same seed, same device, same model.", ge=0,
                         le=2**31 - 1)
    network: NetworkConfig = Field(NetworkConfig(), title="Network (only for a model from scratch)")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), title="Augmentation")


class ObjectsConfig(Settings):
    """How objects are found in class probabilities. A pixel's score is P(cell) minus P(boundary), after smoothing."""

    smoothing_px: float = _setting(1.25, "Smoothing", "Standard deviation of the Gaussian that smooths probabilities, "
                                   "and with them outlines, in pixels as the network sees them; 0 leaves them as they "
                                   "are.", unit="px", ge=0, le=20)
    least_certainty: float = _setting(0.9, "Least certainty", "How sure the model must be, where it is surest, that "
                                      "there is an object; lower finds fainter ones, and more that are none.",
                                      advanced=False, ge=0, le=1)
    least_dip: float = _setting(0.5, "Part at dips of", "Two objects are parted where the score between them dips by "
                                "this much below both; lower parts more.", ge=0.05, le=1)
    neck_px: float = _setting(12.0, "Cut necks", "Without a boundary class, the score falls towards the rim over this "
                              "distance, which parts cells joined by a narrower neck; 0 leaves them together.",
                              unit="px", ge=0, le=200)
    max_hole_px: int = _setting(20, "Fill holes", "Holes of one object up to this wide and high are filled.", unit="px",
                                ge=0, le=1000)
    min_object_px: int = _setting(16, "Smallest object", "Objects with fewer pixels are left out.", unit="px",
                                  advanced=False, ge=0, le=10_000_000)
    clear_border: bool = _setting(False, "Clear border", "Leave out objects that touch the image's border.",
                                  advanced=False)

    def at_scale(self, scale: float) -> Self:
        """The same for an image of which the network saw ``scale`` pixels per pixel: what is noise to the network."""
        return self.replace(smoothing_px=min(self.smoothing_px / scale, 20.0))


class InferenceConfig(Settings):
    """How a model is run over an image. Tile size and precision change rounding alone, the rest the result."""

    tile_size_px: int = _setting(0, "Tile size", "Side of the square the network reads at once; 0 chooses one that "
                                 "fits the free memory.", unit="px", zero="automatic", ge=0, le=8192)
    precision: Precision = _setting("auto", "Precision", "auto: half precision where the device is faster with it.")
    mirrored: bool = _setting(False, "Mirror images too", "Show the network every part of the image mirrored "
                              "in each way as well, and take the mean: most masks become a little better, in four "
                              "times the time.")
    diameter_px: float = _setting(0.0, "Object diameter", "Typical diameter of the objects to find, in image pixels, "
                                  "by which images are rescaled for the model; 0 measures it; a tuned model uses "
                                  "that of its own images where others look alike.", unit="px", zero="automatic",
                                  advanced=False, ge=0, le=2000)
    objects: ObjectsConfig = Field(ObjectsConfig(), title="Objects")


class AutosaveConfig(Settings):
    """Whether strokes are saved by themselves, beside the files of the person."""

    enabled: bool = _setting(True, "Save strokes by itself", "Keep a copy of strokes, classes and settings in the "
                             "program's own folder, so that nothing is lost if the computer fails.", advanced=False)
    interval_s: int = _setting(10, "Interval", "Seconds between two saves; nothing is written where nothing changed.",
                               unit="s", advanced=False, ge=2, le=30)


class LiveConfig(Settings):
    """How the mask follows the brush."""

    learn: bool = _setting(True, "Keep learning", "Fine-tune on the strokes in the background, and show what the tuned "
                           "model says where it is better on the held-out strokes.", advanced=False)
    feature_memory_mb: int = _setting(1024, "Feature memory", "Memory for what is known of the image; about 150 MB for "
                                      "each million pixels, more with several channels. With too little, parts are "
                                      "computed again when the view comes back to them.", unit="MB", ge=64, le=262_144)


#: Settings of earlier versions that mean nothing any more.
_RETIRED_SETTINGS = frozenset({"base_weight", "patch_size_px"})


def without_retired(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version saved, without those that this one has no more."""
    return {name: value for name, value in values.items() if name not in _RETIRED_SETTINGS}


def load_config(path: Path) -> TrainingConfig:
    """Read training settings from a JSON or TOML file; what is not named keeps its default.

    Raises
    ------
    ConfigError
        If the file cannot be read, is neither JSON nor TOML, or holds an unknown name or a value out of bounds.
    """
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"Cannot read the settings file {path}: {error}", "Give a JSON or TOML file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The settings file {path} holds a {type(values).__name__}, need names with values",
                          "See the command line's documentation for an example")
    return TrainingConfig.read(values)
