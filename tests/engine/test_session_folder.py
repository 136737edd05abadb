"""Sessions on the disk: what is written, what is read back, what is refused, what is left after an accident."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine import session_folder, session_folders
from napari_cellbrush.engine.session_folder import (
    CARD_NAME,
    CHUNK_PX,
    CHUNKS_NAME,
    Painted,
    SavedSession,
    SessionCard,
    SessionWriter,
    identify,
    read_card,
    read_labels,
)
from napari_cellbrush.engine.session_folders import (
    KEPT_DAYS,
    KEPT_PER_IMAGE,
    export_session,
    find_session,
    import_session,
    list_sessions,
    new_session,
    tidy,
)
from napari_cellbrush.errors import SessionFileError

IMAGE = np.random.default_rng(0).integers(0, 255, (1200, 1300), np.uint8)


def card_of(image: NDArray[Any] = IMAGE, name: str = "cells") -> SessionCard:
    return SessionCard(image=identify(image, "YX", name), classes=DEFAULT_CLASSES)


def scribbled(shape: tuple[int, ...] = IMAGE.shape, seed: int = 0) -> NDArray[np.uint8]:
    """Strokes in some squares and nothing in others."""
    strokes = np.zeros(shape, np.uint8)
    random = np.random.default_rng(seed)
    for _ in range(3):
        row, column = (int(random.integers(0, n - 30)) for n in shape[-2:])
        strokes[..., row : row + 30, column : column + 30] = random.integers(1, 4)
    return strokes


def saved(path: Path, strokes: NDArray[Any], card: SessionCard | None = None) -> SavedSession:
    return SavedSession(path, SessionWriter(path).save(card or card_of(), {"strokes": Painted(strokes)}))


def read(path: Path, shape: tuple[int, ...] = IMAGE.shape) -> NDArray[Any]:
    return read_labels(path, read_card(path), "strokes", shape=shape)


# ------------------------------------------------------------------------------------------------ round trips


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), dtype=st.sampled_from([np.uint8, np.uint16, np.uint32]))
def test_any_labels_come_back_exactly(data: st.DataObject, dtype: Any, tmp_path: Path) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple))
    strokes = data.draw(arrays(dtype, shape))
    path = tmp_path / str(time.monotonic_ns())
    SessionWriter(path).save(card_of(), {"strokes": Painted(strokes)})
    back = read(path, shape)
    assert back.dtype == dtype
    assert np.array_equal(back, strokes)


def test_ids_of_any_type_come_back_exactly_or_are_refused(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [256, 65_535, 70_000]])
    for dtype in (np.int32, np.int64, np.uint64):
        SessionWriter(tmp_path / str(dtype)).save(card_of(), {"objects": Painted(ids.astype(dtype))})
        path = tmp_path / str(dtype)
        assert np.array_equal(read_labels(path, read_card(path), "objects", shape=(2, 3)), ids)
    for value in (-1, 2**32):
        with pytest.raises(SessionFileError, match="values from"):
            SessionWriter(tmp_path / "bad").save(card_of(), {"objects": Painted(np.array([[value, 0]]))})


def test_only_squares_that_changed_are_written_and_those_nobody_needs_are_removed(tmp_path: Path) -> None:
    strokes = scribbled()
    writer = SessionWriter(tmp_path)
    first = writer.save(card_of(), {"strokes": Painted(strokes)})
    strokes[5, 5] = 3
    second = writer.save(card_of(), {"strokes": Painted(strokes, ((slice(5, 6), slice(5, 6)),))})
    changed = {k for k in second.labels["strokes"].chunks
               if first.labels["strokes"].chunks.get(k) != second.labels["strokes"].chunks[k]}
    assert changed == {"0,0"}
    assert {path.name for path in (tmp_path / CHUNKS_NAME).iterdir()} == set(second.labels["strokes"].chunks.values())
    assert np.array_equal(read(tmp_path), strokes)


def test_a_dab_on_a_huge_layer_writes_little(tmp_path: Path) -> None:
    strokes = np.zeros((8192, 8192), np.uint8)
    strokes[::700, :] = 1
    writer = SessionWriter(tmp_path)
    writer.save(card_of(), {"strokes": Painted(strokes)})
    strokes[4000:4010, 4000:4010] = 2
    writer.save(card_of(), {"strokes": Painted(strokes, ((slice(4000, 4010), slice(4000, 4010)),))})
    assert 0 < writer.bytes_written < 40_000


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    strokes = scribbled()
    writer = SessionWriter(tmp_path)
    first = writer.save(card_of(), {"strokes": Painted(strokes)})
    assert writer.save(card_of(), {"strokes": Painted(strokes)}) is first
    assert writer.bytes_written == 0


def test_rubbed_out_squares_are_empty_again(tmp_path: Path) -> None:
    strokes = scribbled()
    writer = SessionWriter(tmp_path)
    writer.save(card_of(), {"strokes": Painted(strokes)})
    strokes[:] = 0
    card = writer.save(card_of(), {"strokes": Painted(strokes)})
    assert card.labels["strokes"].chunks == {}
    assert not read(tmp_path).any()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1199), st.integers(1, 300), st.integers(0, 1299),
                          st.integers(1, 300)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_boxes_name_every_square_they_touch(tmp_path: Path, strokes_at: list[tuple[int, ...]]) -> None:
    shape = (3, 1200, 1300)
    strokes = np.zeros(shape, np.uint8)
    writer = SessionWriter(tmp_path / str(time.monotonic_ns()))
    writer.save(card_of(), {"strokes": Painted(strokes)})
    boxes = tuple((slice(z, z + 1), slice(y, min(y + h, 1200)), slice(x, min(x + w, 1300)))
                  for z, y, h, x, w in strokes_at)
    for value, box in enumerate(boxes, start=1):
        strokes[box] = value
    writer.save(card_of(), {"strokes": Painted(strokes, boxes)})
    assert np.array_equal(read(writer.path, shape), strokes)


# ------------------------------------------------------------------------------------------------ the image


def test_an_image_is_known_by_its_pixels_under_any_name() -> None:
    one, other = identify(IMAGE, "YX", "cells", "/a.tif"), identify(IMAGE.copy(), "", "copy", "/b.tif")
    assert one.key == other.key
    changed = IMAGE.copy()
    changed[600, 650] += 1
    assert identify(changed, "YX", "cells", "/a.tif").key != one.key
    assert identify(IMAGE.astype(np.uint16), "YX", "cells").key != one.key


def test_looking_at_a_huge_image_reads_little_of_it() -> None:
    class Spy:
        shape, dtype, n_pixels = (50, 3, 40_000, 30_000), np.dtype(np.uint16), 0

        def __getitem__(self, place: tuple[slice, ...]) -> NDArray[Any]:
            sizes = [len(range(*part.indices(n))) for part, n in zip(place, self.shape, strict=True)]
            self.n_pixels += int(np.prod(sizes))
            return np.zeros(sizes, np.uint16)

    spy = Spy()
    identify(spy, "ZCYX", "huge")
    assert 0 < spy.n_pixels <= 27 * 3 * 64 * 64


# -------------------------------------------------------------------------------------------------- accidents


def test_a_full_disk_leaves_the_last_save_readable(tmp_path: Path, small_disk: Any) -> None:
    strokes = scribbled()
    writer = SessionWriter(tmp_path)
    writer.save(card_of(), {"strokes": Painted(strokes)})
    noisy = np.random.default_rng(0).integers(0, 4, IMAGE.shape, np.uint8)
    with small_disk(2000), pytest.raises(SessionFileError, match="disk is full"):
        writer.save(card_of(), {"strokes": Painted(noisy)})
    assert np.array_equal(read(tmp_path), strokes)
    writer.save(card_of(), {"strokes": Painted(noisy)})
    assert np.array_equal(read(tmp_path), noisy)


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="nothing is read-only for root")
def test_a_read_only_folder_is_said_in_words(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SessionFileError, match=r"cannot be (made|written)"):
        SessionWriter(tmp_path / "session").save(card_of(), {"strokes": Painted(scribbled())})


@pytest.mark.parametrize("broken", ["write", "link", "card"])
def test_a_save_that_breaks_anywhere_leaves_the_last_one(broken: str, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    strokes = scribbled()
    writer = SessionWriter(tmp_path)
    writer.save(card_of(), {"strokes": Painted(strokes)})
    changed = scribbled(seed=1)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        if broken == "card":
            patch.setattr(SessionWriter, "_write_card", fail)
        else:
            patch.setattr(Path, "write_bytes" if broken == "write" else "hardlink_to", fail)
        with pytest.raises(MemoryError):
            writer.save(card_of(), {"strokes": Painted(changed)})
    assert np.array_equal(read(tmp_path), strokes)
    writer.save(card_of(), {"strokes": Painted(changed)})
    assert np.array_equal(read(tmp_path), changed)


# ----------------------------------------------------------------------------------------------------- hostile


def written(path: Path, **changes: Any) -> Path:
    """A session whose card was tampered with."""
    session = saved(path, scribbled())
    values = session.card.model_dump(mode="json")
    for name, value in changes.items():
        if name == "labels":
            values["labels"]["strokes"] |= value
        else:
            values[name] = value
    (path / CARD_NAME).write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(("changes", "said"), [
    ({"labels": {"shape": [10**6, 10**6]}}, "1,000,000,000,000 pixels"),
    ({"labels": {"shape": [0, 5]}}, "damaged"),
    ({"labels": {"chunks": {"0,0": "../../../etc/passwd"}}}, "damaged"),
    ({"labels": {"chunks": {"../x": "0" * 64}}}, "damaged"),
    ({"labels": {"chunks": {"99,0": "0" * 64}}}, "outside"),
    ({"labels": {"chunks": {"0,0,0": "0" * 64}}}, "outside"),
    ({"labels": {"dtype": "object"}}, "damaged"),
    ({"format": 3}, "Update napari-cellbrush"),
    ({"format": "1; import os"}, "damaged"),
    ({"classes": []}, "damaged"),
    ({"image": None}, "damaged"),
])
def test_a_card_that_claims_nonsense_is_refused_in_words(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SessionFileError, match=said) as caught:
        read_card(written(tmp_path, **changes))
    assert caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"x", b"[1, 2]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_card_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_bytes(content)
    with pytest.raises(SessionFileError):
        read_card(tmp_path)


def test_a_square_that_unpacks_to_more_than_its_size_takes_no_memory(tmp_path: Path) -> None:
    path = written(tmp_path, labels={"chunks": {"0,0": "0" * 64}})
    (path / CHUNKS_NAME / ("0" * 64)).write_bytes(zlib.compress(bytes(100_000_000)))
    with pytest.raises(SessionFileError, match="damaged"):
        read(path)


def test_a_square_with_other_values_is_refused(tmp_path: Path) -> None:
    session = saved(tmp_path, scribbled())
    chunk = next((tmp_path / CHUNKS_NAME).iterdir())
    chunk.write_bytes(zlib.compress(bytes(CHUNK_PX * CHUNK_PX)))
    with pytest.raises(SessionFileError, match="other values"):
        read(tmp_path)
    chunk.unlink()
    with pytest.raises(SessionFileError, match="missing"):
        read_labels(tmp_path, session.card, "strokes", shape=IMAGE.shape)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_card_with_any_bytes_changed_is_read_or_refused_in_words(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "session"
    if not path.exists():
        saved(path, scribbled((40, 40)), card_of(IMAGE[:40, :40]))
        (tmp_path / "good").write_bytes((path / CARD_NAME).read_bytes())
    content = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (path / CARD_NAME).write_bytes(content)
    with contextlib.suppress(SessionFileError):
        read_labels(path, read_card(path), "strokes", shape=(40, 40))


# -------------------------------------------------------------------------------------------------- the folder


def test_sessions_are_found_by_image_newest_first_and_by_the_beginning_of_their_name() -> None:
    card = card_of()
    paths = []
    for day in (1, 3, 2):
        path = new_session(card.image).with_name(f"2020010{day}-000000-aaaaaa")
        saved(path, scribbled())
        values = read_card(path).replace(saved=f"2020-01-0{day}T00:00:00+00:00")
        (path / CARD_NAME).write_text(values.model_dump_json())
        paths.append(path)
    other = saved(new_session(card_of(IMAGE[:500]).image), scribbled((500, 1300)), card_of(IMAGE[:500]))
    found, errors = list_sessions(card.image)
    assert [session.path.name[6:8] for session in found] == ["03", "02", "01"]
    assert errors == []
    assert len(list_sessions()[0]) == 4
    assert find_session("20200103").path == paths[1]
    assert find_session(other.path.name).path == other.path
    with pytest.raises(SessionFileError, match="3 sessions begin with '202001'"):
        find_session("202001")


def test_of_sessions_saved_within_a_second_the_last_is_the_newest() -> None:
    """Strokes that replace others: what the person saw last is what is offered."""
    paths = [new_session(card_of().image) for _ in range(6)]
    for path in paths:
        saved(path, scribbled())
    assert [session.path for session in list_sessions(card_of().image)[0]] == paths[::-1]


def test_the_newest_sessions_of_an_image_are_never_deleted_by_themselves() -> None:
    card, long_ago = card_of(), datetime.now(UTC) - timedelta(days=KEPT_DAYS + 1)
    for number in range(KEPT_PER_IMAGE + 2):
        path = new_session(card.image)
        saved(path, scribbled())
        moment = long_ago + timedelta(minutes=number)
        (path / CARD_NAME).write_text(read_card(path).replace(saved=moment.isoformat()).model_dump_json())
    assert len(tidy(card.image)) == 2
    assert len(list_sessions(card.image)[0]) == KEPT_PER_IMAGE
    assert tidy(card.image) == []


def test_a_younger_session_stays_however_many_there_are() -> None:
    for _ in range(KEPT_PER_IMAGE + 3):
        saved(new_session(card_of().image), scribbled())
    assert tidy(card_of().image) == []


# ----------------------------------------------------------------------------------------------------- moving


def test_a_session_moves_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strokes = scribbled()
    file = export_session(saved(new_session(card_of().image), strokes), tmp_path / "mine")
    assert file.name == "mine.cellbrush.zip"
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "another computer"))
    session = import_session(file)
    assert list_sessions(card_of(name="renamed").image)[0] == [session]
    assert np.array_equal(read(session.path), strokes)
    assert session.card.classes == DEFAULT_CLASSES


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    session = saved(new_session(card_of().image), scribbled())
    file = export_session(session, tmp_path / "mine.cellbrush.zip")
    before = file.read_bytes()
    with pytest.raises(SessionFileError, match="exists already"):
        export_session(session, file)
    assert file.read_bytes() == before


def test_names_in_a_zip_never_become_paths(tmp_path: Path) -> None:
    session = saved(new_session(card_of().image), scribbled())
    file = export_session(session, tmp_path / "mine.cellbrush.zip")
    with zipfile.ZipFile(file, "a") as archive:
        for name in ("../evil", "/tmp/evil", "chunks/../../evil", "C:\\evil", "chunks/evil"):
            archive.writestr(name, b"evil")
    before = set(tmp_path.rglob("*"))
    imported = import_session(file)
    new = {path for path in tmp_path.rglob("*") if path not in before and path.is_file()}
    assert all(imported.path in path.parents for path in new)
    assert not [path for path in new if "evil" in path.name]


@pytest.mark.parametrize("damage", ["cut", "deflated", "no card", "wrong chunk", "bomb", "no zip", "missing"])
def test_a_damaged_zip_is_refused_in_words_and_leaves_nothing(damage: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    session = saved(new_session(card_of().image), scribbled())
    file = export_session(session, tmp_path / "mine.cellbrush.zip")
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "elsewhere"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "no zip":
        file.write_bytes(b"PK but no zip")
    elif damage == "missing":
        file.unlink()
    else:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        first = next(name for name in members if name.startswith(CHUNKS_NAME))
        kind = zipfile.ZIP_DEFLATED if damage in ("deflated", "bomb") else zipfile.ZIP_STORED
        if damage == "no card":
            del members[CARD_NAME]
        elif damage == "wrong chunk":
            members[first] = zlib.compress(bytes(CHUNK_PX**2))
        elif damage == "bomb":
            members[CARD_NAME] = bytes(10**8)
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    with pytest.raises(SessionFileError) as caught:
        import_session(file)
    assert caught.value.remedy
    assert list_sessions()[0] == []
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------------- kill -9


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine.session_folder import Painted, SessionCard, SessionWriter, identify

path = Path(sys.argv[1])
card = SessionCard(image=identify(np.zeros((1200, 1300)), "YX", "x"), classes=DEFAULT_CLASSES)
random, strokes, writer = np.random.default_rng(0), np.zeros((1200, 1300), np.uint8), SessionWriter(path)
for number in range(100000):
    # The number stands in every square, so that a mixture of two saves cannot be taken for one.
    for row in (0, 512, 1024):
        for column in (0, 512, 1024):
            strokes[row, column : column + 4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
            strokes[row + 1, column] = 1
    writer.save(card, {"strokes": Painted(strokes)})
    print(number, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_its_last_save(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(_WRITER)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(b"kills").digest()[:4], "little"))
    for kill in range(4):
        path = tmp_path / f"session{kill}"
        with subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(random.uniform(0, 0.2)))
            process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            told = process.stdout.read().split()
        labels = read(path)
        numbers = {bytes(labels[row, column : column + 4]) for row in (0, 512, 1024) for column in (0, 512, 1024)}
        assert len(numbers) == 1
        number = int.from_bytes(numbers.pop(), "little")
        last = int(told[-1]) if told else 0
        assert number in (last, last + 1)


def test_the_modules_need_no_torch() -> None:
    names = [module.__name__ for module in (session_folder, session_folders)]
    program = f"import sys\nfor m in {names}: __import__(m)\nprint('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
