"""How often each accident is tried: a few times by default, often where a campaign asks for it.

    python benchmarks/faults.py

sets the numbers; docs/robustness.md reports what came out.
"""

from __future__ import annotations

import os
from pathlib import Path

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
from napari_cellbrush.engine.model import Model, ModelCard, new_model

PROGRAMS = Path(__file__).parent / "programs"


def times(name: str, default: int) -> int:
    """How often: from the environment, for example CELLBRUSH_KILLS=100."""
    return int(os.environ.get(f"CELLBRUSH_{name}", default))


def tiny_model(name: str = "tiny") -> Model:
    """A small model with random weights that says it was trained."""
    card = ModelCard(name=name, classes=DEFAULT_CLASSES, in_channels=1, any_channels=True, n_steps=1,
                     network=NetworkConfig(depth=3, base_filters=8))
    return new_model(card, 0)
