"""What all tests share: folders of their own, so that nobody's settings or models are read or written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Read when torch is first imported. On a machine that is busy with other things, two torch threads that wait for each
# other take many times longer than one, and a test would run into its time limit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read when napari is first imported, which is before any fixture.
os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="cellbrush-tests-")) / "settings.yaml")


@pytest.fixture(autouse=True)
def cellbrush_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty library of models."""
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file of this process can grow beyond some bytes: writing fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits the size of files, which Windows cannot")

    @contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
