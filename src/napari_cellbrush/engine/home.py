"""Where a person's own data live."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home_folder() -> Path:
    """The folder of models and sessions; ``CELLBRUSH_HOME`` overrides it. It may not exist yet."""
    home = os.environ.get("CELLBRUSH_HOME") or platformdirs.user_data_dir("napari-cellbrush", appauthor=False)
    return Path(home)
