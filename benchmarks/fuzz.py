"""The readers of files under a coverage-guided fuzzer: damage that reaches new lines of a reader is damaged further.

    pip install atheris
    python benchmarks/fuzz.py KIND [-max_total_time=600] [other options of libFuzzer]

KIND is one of those that ``tests/faults/test_hostile_files.py`` damages at random ("plain tiff", "model", …). Whatever
is neither read nor refused with a sentence, takes longer than ten seconds or a gigabyte ends the run, and the file
that did it is left in the working folder. One kind a process, because the fuzzer ends it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

#: What is watched for new lines: our readers and those under them that are written in Python.
WATCHED = ["napari_cellbrush.config", "napari_cellbrush.engine.image_file", "napari_cellbrush.engine.model_file",
           "napari_cellbrush.engine.session_folder", "napari_cellbrush.engine.session_folders",
           "napari_cellbrush.engine.shapes", "napari_cellbrush.export.mask_tiff", "tifffile", "zipfile"]

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
with atheris.instrument_imports(include=WATCHED):
    from test_hostile_files import FILES

    from napari_cellbrush.errors import CellbrushError


def main() -> None:
    """Let the fuzzer call the reader until its time is up."""
    kind = sys.argv.pop(1)
    make, name, read = FILES[kind]
    # In memory where there is such a folder: a million files are written.
    folder = Path(tempfile.mkdtemp(prefix="cellbrush-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    os.environ["CELLBRUSH_HOME"] = str(folder / "home")
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(make(folder))
    (folder / "given").mkdir()

    def attempt(content: bytes) -> None:
        (folder / "given" / name).write_bytes(content)
        with contextlib.suppress(CellbrushError):
            read(folder / "given" / name)

    options = ["-rss_limit_mb=2048", "-timeout=10", "-max_len=100000", *sys.argv[1:]]
    atheris.Setup([sys.argv[0], *options, str(corpus)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
