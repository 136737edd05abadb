"""Programs that meet with an accident."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from accidents import PROGRAMS


@pytest.fixture
def start(qapp: object) -> Callable[..., subprocess.Popen[str]]:
    """Start one of the programs, in a window of its own; the fixture's application keeps the virtual screen up."""
    def started(program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, str(PROGRAMS / program), *arguments], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    return started
