from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from napari_cellbrush.engine.atomic import check_writable, free_path, written_whole
from napari_cellbrush.errors import ExportError, ModelFileError


def test_a_finished_file_has_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.bin") as hidden:
        hidden.write_bytes(b"new")
        assert not (tmp_path / "a.bin").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_whatever_goes_wrong_leaves_nothing_behind_and_the_old_file_untouched(
    tmp_path: Path, error: BaseException, overwrite: bool
) -> None:
    if overwrite:
        (tmp_path / "a.bin").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def write_half() -> None:
        with written_whole(tmp_path / "a.bin", overwrite=overwrite) as hidden:
            hidden.write_bytes(b"half")
            raise error

    with pytest.raises(ExportError if isinstance(error, OSError) else type(error)):
        write_half()
    assert sorted(tmp_path.iterdir()) == before
    assert not overwrite or (tmp_path / "a.bin").read_bytes() == b"old"


def test_an_existing_file_is_refused_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match="exists already"), written_whole(path):
        pass
    assert path.read_bytes() == b"old"
    with written_whole(path, overwrite=True) as hidden:
        hidden.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_somebody_else_writes_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", _no_links)
    path = tmp_path / "a.bin"

    def write() -> None:
        with written_whole(path) as hidden:
            hidden.write_bytes(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(ExportError, match="exists already"):
        write()
    assert path.read_bytes() == b"theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_system_without_hard_links_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", _no_links)
    with written_whole(tmp_path / "a.bin") as hidden:
        hidden.write_bytes(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.bin", b"new")]


def _no_links(self: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_missing_folder_is_named_in_the_error_of_the_right_class(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nowhere does not exist"), \
            written_whole(tmp_path / "nowhere" / "a.bin", error=ModelFileError):
        pass


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ExportError, match="cannot be written"):
        check_writable(tmp_path / "a.bin")


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="permissions work differently there")
def test_others_may_read_the_file_as_far_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with written_whole(tmp_path / "a.bin") as hidden:
            hidden.write_bytes(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_a_free_path_counts_up(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "a-2.bin").touch()
    assert free_path(path).name == "a-3.bin"
