"""A model: a network together with the card that says what it is.

The card holds everything needed to use the network rightly on a new image; the file format of both is written in
:mod:`.model_file`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from napari_cellbrush.config import ClassDefinition, NetworkConfig, Settings, TrainingConfig, without_retired
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.errors import ModelError

#: How images are normalised; the one scheme there is, named in every card so that another can follow.
NORMALISATION = "percentile-1-99.8"
#: Images are reduced and enlarged at most this much.
SCALES = (1 / 8, 3.0)
#: Images are rescaled until their objects are this much larger than those the base was trained on: it finds about as
#: many or more, and draws them better. (Training images at their true diameters, average precision at 0.5 for objects
#: of 20, 24 and 29 px: phase contrast 0.780, 0.841, 0.870, at 0.75 0.299, 0.375, 0.447; bright field 0.625, 0.669,
#: 0.701; tissue 0.694, 0.712, 0.705. At 34 px phase contrast has 0.865 and 0.473, tissue 0.696.)
SEEN_AS = 1.2
#: Objects that are at least as large as those, up to this many times, are seen as they are. (What a base measures is
#: larger than the true median, in bright field by a fifth: what it takes to be 20 to 24 px needs to be enlarged, too.)
SEEN_AS_THEY_ARE = 1.4


class ModelCard(Settings):
    """What a model file says about its weights."""

    name: str = Field(min_length=1, max_length=128)
    classes: tuple[ClassDefinition, ...] = Field(min_length=2, max_length=255)
    in_channels: int = Field(ge=1, le=1024)
    #: True for bundled bases: their one channel is spread over however many an image has.
    any_channels: bool = False
    network: NetworkConfig = NetworkConfig()
    #: Median diameter, in network pixels, of the objects that its base was trained to see; None if it works at any
    #: image's scale.
    diameter_px: float | None = Field(None, gt=0)
    #: Of the objects in the images it was tuned on, in their pixels, by the median; None if nobody knows.
    image_diameter_px: float | None = Field(None, gt=0)
    #: What it measures itself where they have this diameter, by which other images are measured in relation; None: all
    #: are taken as alike.
    measured_as_px: float | None = Field(None, gt=0)
    #: Fingerprints of these images, and the diameter of the objects of each.
    tuned_on: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    normalisation: str = NORMALISATION
    training: TrainingConfig | None = None
    #: Names of the base chain, first ancestor first.
    base_name: str = ""
    base_hash: str = ""
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    #: Optimiser steps that made these weights; 0 says that they are random.
    n_steps: int = Field(0, ge=0)
    #: Labelled pixels per class name.
    labelled_pixels: dict[str, int] = Field(default_factory=dict)
    base_score: float | None = None
    score: float | None = None
    #: Plain text: what it was trained on, credits, licence, limits.
    description: str = ""

    @field_validator("training", mode="before")
    @classmethod
    def _without_retired(cls, training: Any) -> Any:
        return without_retired(training) if isinstance(training, dict) else training

    @model_validator(mode="before")
    @classmethod
    def _with_one_diameter(cls, values: Any) -> Any:
        """Cards of earlier versions list fingerprints of images that have all the same diameter."""
        tuned_on = values.get("tuned_on") if isinstance(values, dict) else None
        if not isinstance(tuned_on, list | tuple) or not all(isinstance(entry, str) for entry in tuned_on):
            return values
        diameter_px = values.get("image_diameter_px")
        return {**values, "tuned_on": dict.fromkeys(tuned_on, diameter_px) if diameter_px else {}}

    def scales_for(self, diameters_px: Sequence[float] | None, n_images: int) -> tuple[float, ...]:
        """:meth:`scale_for` of images with these diameters, in their order; 1 for all where nobody knows them."""
        return tuple(map(self.scale_for, diameters_px or (None,) * n_images))

    def scale_for(self, diameter_px: float | None) -> float:
        """Network pixels per pixel of an image whose objects have this diameter; 1 where it is unknown.

        A network takes objects of the size that its base was trained on, or a little larger, as they are
        (:data:`SEEN_AS_THEY_ARE`). Others are enlarged or reduced to :data:`SEEN_AS` times that size.
        """
        if self.diameter_px is None or not diameter_px:
            return 1.0
        if 1 <= diameter_px / self.diameter_px < SEEN_AS_THEY_ARE:
            return 1.0
        return min(max(SEEN_AS * self.diameter_px / diameter_px, SCALES[0]), SCALES[1])


@dataclass(frozen=True)
class Model:
    """A network on the CPU in float32, and its card."""

    network: UNet
    card: ModelCard

    @property
    def n_classes(self) -> int:
        """How many classes it tells apart."""
        return len(self.card.classes)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of names, shapes and float32 bytes of all weights, in the order of their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def for_channels(self, n_channels: int) -> Model:
        """This model for images with ``n_channels``: itself, or with its first layer spread evenly over them.

        Spreading keeps the answer on an image whose channels are all equal.

        Raises
        ------
        ModelError
            If the model was made for another number of channels and is no base for any number.
        """
        if n_channels == self.card.in_channels:
            return self
        if not self.card.any_channels:
            raise ModelError(
                f"The image has {n_channels} channel(s), the model '{self.card.name}' needs {self.card.in_channels}",
                "Choose a model made for such images, or set which axis holds the channels")
        return with_channels(self, n_channels)


def build_network(card: ModelCard) -> UNet:
    """A freshly initialised network of the shape a card describes."""
    shape = card.network
    dropout = card.training.dropout if card.training else 0.0
    return UNet(card.in_channels, n_outputs(card), shape.base_filters, shape.depth, shape.batch_norm, dropout)


def n_outputs(card: ModelCard) -> int:
    """Logit channels: one per class, or a single one for a sigmoid."""
    if card.network.activation == "softmax":
        return len(card.classes)
    if len(card.classes) != 2:
        raise ModelError(f"A sigmoid tells one class from background, got {len(card.classes)} classes",
                         "Choose softmax, or keep two classes")
    return 1


def class_logits(outputs: Tensor) -> Tensor:
    """BKHW logits of a network's outputs, for softmax.

    A sigmoid of one output z is the softmax of (0, z): with the zero put in front, every loss and every
    probability is written once.
    """
    if outputs.shape[1] > 1:
        return outputs
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1)


def new_model(card: ModelCard, seed: int) -> Model:
    """A model with random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(build_network(card).eval(), card)


def with_channels(model: Model, n_channels: int) -> Model:
    """A copy of the model whose first layer takes ``n_channels``, each with an equal share of the old weights."""
    card = model.card.replace(in_channels=n_channels, any_channels=False)
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    mean = state["down.0.conv1.weight"].sum(dim=1, keepdim=True) / n_channels
    state["down.0.conv1.weight"] = mean.repeat(1, n_channels, 1, 1)
    return Model(_network_with(card, state), card)


def with_classes(model: Model, classes: tuple[ClassDefinition, ...], seed: int) -> Model:
    """A copy of the model that answers ``classes``: known names keep their weights, new ones start at random.

    Where no class is a boundary any more, the rims of objects are objects too: those classes start from the mean of
    what they and the boundary were.
    """
    old = model.card.classes
    card = model.card.replace(classes=[c.model_dump() for c in classes])
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    if [c.name for c in classes] != [c.name for c in old]:
        fresh = new_model(card, seed).network.head
        weight, bias = fresh.weight.detach().clone(), fresh.bias.detach().clone() if fresh.bias is not None else None
        positions = {c.name: position for position, c in enumerate(old)}
        has_rims = any(c.role == "boundary" for c in classes)
        rims = [] if has_rims else [position for position, c in enumerate(old) if c.role == "boundary"]
        if card.network.activation == "softmax":
            for position, definition in enumerate(classes):
                if definition.name in positions:
                    sources = [positions[definition.name], *(rims if definition.role == "object" else [])]
                    weight[position] = state["head.weight"][sources].mean(dim=0)
                    if bias is not None:
                        bias[position] = state["head.bias"][sources].mean()
        state["head.weight"] = weight
        if bias is not None:
            state["head.bias"] = bias
    return Model(_network_with(card, state), card)


def with_dropout(model: Model, dropout: float) -> Model:
    """The same weights with another share of dropout while training."""
    network = model.network
    copy = UNet(network.in_channels, network.n_classes, network.base_filters, network.depth, network.batch_norm,
                dropout)
    copy.load_state_dict(network.state_dict())
    return replace(model, network=copy)


def knows_all(model: Model, classes: tuple[ClassDefinition, ...]) -> bool:
    """Whether every class has a name that the model was trained for."""
    return len(known_classes(model, classes)) == len(classes)


def meant_classes(known: Sequence[ClassDefinition], classes: Sequence[ClassDefinition]) -> Tensor | None:
    """How answers about known classes become answers about others.

    Returns
    -------
    Tensor or None
        Known classes × classes: 1 where one means the other. The boundary of objects, where nobody asks for it, is
        theirs. None where a class is not known, or a known one could be any of several.
    """
    names = [definition.name for definition in classes]
    objects = [number for number, definition in enumerate(classes) if definition.role == "object"]
    meant = torch.zeros(len(known), len(classes))
    for number, definition in enumerate(known):
        if definition.name in names:
            meant[number, names.index(definition.name)] = 1
        elif definition.role == "boundary" and len(objects) == 1:
            meant[number, objects[0]] = 1
        else:
            return None
    return meant if bool(meant.any(dim=0).all()) else None


def known_classes(model: Model, classes: tuple[ClassDefinition, ...]) -> frozenset[int]:
    """Numbers, from 0 on, of the classes whose name the model was trained for."""
    names = {c.name for c in model.card.classes}
    return frozenset(number for number, c in enumerate(classes) if c.name in names)


def _network_with(card: ModelCard, state: dict[str, Any]) -> UNet:
    network = build_network(card)
    network.load_state_dict(state)
    return network.eval()
