from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig, TrainingConfig
from napari_cellbrush.engine import model_file
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.model_file import (
    DEFAULT_BASE,
    add_to_library,
    export_model,
    file_name_for,
    find_model,
    import_model,
    library_folder,
    list_models,
    read_card,
    read_model,
    remove_model,
    save_model,
    scan_models,
)
from napari_cellbrush.errors import ModelFileError

BUNDLED_FILES = sorted(model_file.BUNDLED.glob("*.safetensors"))
TINY = NetworkConfig(depth=3, base_filters=8)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def tiny_model(name: str = "tiny", **card: Any) -> Model:
    return new_model(ModelCard(name=name, classes=DEFAULT_CLASSES, in_channels=1, network=TINY, **card), seed=0)


@pytest.fixture
def model() -> Model:
    return tiny_model(training=TrainingConfig(max_steps=7), base_name="cells", base_hash="ab" * 32,
                      labelled_pixels={"cell": 12}, score=0.5, description="µ \u202e <b>\n")


@pytest.fixture
def file(tmp_path: Path, model: Model) -> Path:
    return save_model(model, tmp_path / "good.safetensors")


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty library, with an empty folder of bundled models."""
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(model_file, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    return tmp_path / "home" / "models"


# ---------------------------------------------------------------------------------------------------- one file


def test_a_model_comes_back_bit_by_bit(file: Path, model: Model) -> None:
    back = read_model(file)
    assert back.weights_hash == model.weights_hash
    assert back.card == model.card == read_card(file)
    assert not back.network.training
    assert all(parameter.requires_grad for parameter in back.network.parameters())


def test_reading_draws_no_random_number(file: Path) -> None:
    before = torch.random.get_rng_state()
    read_model(file)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_read_model_survives_its_file(file: Path) -> None:
    back = read_model(file)
    before = back.weights_hash
    file.write_bytes(b"\0" * file.stat().st_size)
    assert back.weights_hash == before


def test_a_model_whose_settings_have_names_of_an_earlier_version_is_read(file: Path, model: Model) -> None:
    def as_earlier(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        card = json.loads(metadata["cellbrush"])
        del card["training"]["base_worth_strokes"]
        card["training"].update(base_weight=10.0, patch_size_px=252)
        metadata["cellbrush"] = json.dumps(card)

    rewritten(file, as_earlier)
    assert read_model(file).card == model.card


def test_half_precision_halves_the_file_and_rounds_the_weights(tmp_path: Path, file: Path, model: Model) -> None:
    half = save_model(model, tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.6 * file.stat().st_size
    back = read_model(half).network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert back[name].dtype == tensor.dtype
        torch.testing.assert_close(back[name], tensor, rtol=2**-10, atol=2**-24)


def test_an_existing_file_is_never_replaced(file: Path, model: Model) -> None:
    before = file.read_bytes()
    with pytest.raises(ModelFileError, match="exists already"):
        save_model(tiny_model("other"), file)
    assert file.read_bytes() == before


def test_a_broken_model_is_not_saved(tmp_path: Path, model: Model) -> None:
    with torch.no_grad():
        model.network.head.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelFileError, match=r"head\.weight.*no numbers"):
        save_model(model, tmp_path / "nan.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_suffix_is_asked_for(tmp_path: Path, model: Model) -> None:
    with pytest.raises(ModelFileError, match=r"Call it net\.safetensors"):
        save_model(model, tmp_path / "net.pt")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, model: Model, small_disk: Callable[[int], Any]) -> None:
    with small_disk(10_000), pytest.raises(ModelFileError, match="full"):
        save_model(model, tmp_path / "a.safetensors")
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


# --------------------------------------------------------------------------------------------- damaged, hostile


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> None:
    """Save the file again after ``change`` spoilt its tensors or metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors, metadata)
    save_file(tensors, file, metadata)


def card_with(**changes: Any) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata["cellbrush"] = json.dumps({**json.loads(metadata["cellbrush"]), **changes})

    return change


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda t, m: t.pop("head.bias"), "'head.bias' is missing"),
    (lambda t, m: t.update(extra=torch.zeros(3)), "'extra' does not belong"),
    (lambda t, m: t.update({"head.bias": torch.zeros(4)}), r"'head.bias' has the shape \(4,\), its card says \(3,\)"),
    (lambda t, m: t.update({"head.bias": torch.zeros(3, dtype=torch.float64)}), "'head.bias' has the type F64"),
    (lambda t, m: t.update({"head.bias": torch.zeros(3, dtype=torch.int64)}), "'head.bias' has the type I64"),
    (lambda t, m: t["head.bias"].fill_(float("nan")), "'head.bias' holds values that are no numbers"),
    (lambda t, m: t["head.weight"].fill_(float("-inf")), "'head.weight' holds values that are no numbers"),
    (lambda t, m: t["down.0.norm1.running_var"].fill_(-1), "negative variance"),
    (lambda t, m: m.pop("cellbrush"), "no model of napari-cellbrush"),
    (lambda t, m: m.clear(), "no model of napari-cellbrush"),
    (lambda t, m: m.update(format="2"), "format 2, this version reads 1. Update"),
    (lambda t, m: m.update(format="9" * 5000), "format number"),
    (lambda t, m: m.pop("format"), "format number"),
    (lambda t, m: m.update(cellbrush="no json"), "card is invalid"),
    (lambda t, m: m.update(cellbrush="[" * 100_000), "card is invalid"),
    (lambda t, m: m.update(cellbrush="9" * 100_000), "card is invalid"),
    (card_with(in_channels=10**12), "card is invalid, in_channels"),
    (card_with(in_channels=2), "down.0.conv1.weight"),
    (card_with(network={"depth": 3, "base_filters": 10**9}), "network.base_filters"),
    (card_with(network={"depth": 3, "base_filters": 8, "activation": "sigmoid"}), "sigmoid"),
    (card_with(classes=[]), "classes"),
    (card_with(later="?"), "unknown entry 'later'. Update"),
    (card_with(tuned_on=[["x"]]), "card is invalid, tuned_on"),
    (card_with(tuned_on={"x": 0}), "card is invalid, tuned_on"),
    (card_with(tuned_on={"x": None}), "card is invalid, tuned_on"),
])
def test_a_hostile_or_broken_content_gets_a_sentence(
    file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any], sentence: str
) -> None:
    rewritten(file, change)
    with pytest.raises(ModelFileError, match=sentence) as caught:
        read_model(file)
    assert file.name in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.remedy


@pytest.mark.parametrize(("content", "sentence"), [
    (b"", "does not fit a file of 0 bytes"),
    (b"\1\2\3", "does not fit"),
    (struct.pack("<Q", 10**12) + b"{}", "header of 1000000000000 bytes does not fit"),
    (struct.pack("<Q", 2**64 - 1) + b"{}", "does not fit"),
    (struct.pack("<Q", 2**21) + b" " * 2**21, "the most is"),
    (struct.pack("<Q", 1000) + b"[" * 1000, "not a usable model"),
    (struct.pack("<Q", 8) + b"{}      " + b"junk", "not a usable model"),
    (b"PK\3\4" + b"\0" * 100, "pickled"),
    (b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickled"),
    (b"a,b\n1,2\n" * 10, "does not fit"),
])
def test_a_file_of_another_kind_gets_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (read_model, read_card):
        with pytest.raises(ModelFileError, match=sentence):
            read(path)


def test_a_tensor_that_claims_more_than_the_file_has_is_refused(tmp_path: Path, file: Path) -> None:
    n = struct.unpack("<Q", file.read_bytes()[:8])[0]
    header = json.loads(file.read_bytes()[8 : 8 + n])
    header["head.bias"] = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + file.read_bytes()[8 + n :])
    with pytest.raises(ModelFileError, match="not a usable model"):
        read_model(file)


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory in the Unix way")
def test_a_huge_network_on_a_card_is_not_built_for_small_tensors(file: Path) -> None:
    import resource

    rewritten(file, card_with(network={"depth": 5, "base_filters": 128}))  # 2 GB of weights
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match="its card says"):
        read_model(file)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 200e6


@same_folder
@given(data=st.data())
def test_any_truncated_file_gets_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    whole = cached_file()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelFileError):
        read_model(path)


@same_folder
@given(place=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_changed_byte_in_the_header_is_read_or_refused_but_never_crashes(
    tmp_path: Path, place: int, value: int
) -> None:
    content = bytearray(cached_file())
    content[place] = value
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    with suppress(ModelFileError):
        read_model(path)


_CACHE: list[bytes] = []


def cached_file() -> bytes:
    import tempfile

    if not _CACHE:
        with tempfile.TemporaryDirectory() as folder:
            _CACHE.append(save_model(tiny_model(), Path(folder) / "m.safetensors").read_bytes())
    return _CACHE[0]


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda path: None, "does not exist"), (lambda path: path.mkdir(), "is a folder")])
def test_a_missing_file_is_named(tmp_path: Path, make: Callable[[Path], Any], sentence: str) -> None:
    path = tmp_path / "gone.safetensors"
    make(path)
    with pytest.raises(ModelFileError, match=rf"gone\.safetensors {sentence}"):
        read_model(path)


def test_loading_never_unpickles(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    read_model(file)


# ------------------------------------------------------------------------------------------------- the library


def test_the_library_lists_bundled_and_own_models_by_header_alone(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model("cells"), model_file.BUNDLED / "cells.safetensors")
    add_to_library(tiny_model(), "mine")
    monkeypatch.setattr(model_file, "read_model", None)
    assert [(e.name, e.bundled, e.card.name) for e in list_models()] == [("cells", True, "cells"),
                                                                         ("mine", False, "mine")]


@pytest.mark.parametrize("path", BUNDLED_FILES, ids=lambda path: path.stem)
def test_a_bundled_model_reads_and_says_where_it_comes_from(path: Path) -> None:
    card = read_model(path).card
    assert card.name == path.stem
    assert card.description


def test_a_taken_name_counts_up_and_nothing_is_overwritten(library: Path) -> None:
    save_model(tiny_model("cells"), model_file.BUNDLED / "cells.safetensors")
    paths = [add_to_library(tiny_model(), name) for name in ("cells", "Cells", "cells-2")]
    assert [p.stem for p in paths] == ["cells-2", "Cells-3", "cells-2-2"]
    assert [read_card(p).name for p in paths] == ["cells-2", "Cells-3", "cells-2-2"]
    assert find_model("cells").parent == model_file.BUNDLED


def test_a_file_dropped_in_under_a_bundled_name_gets_a_number(library: Path) -> None:
    save_model(tiny_model("cells"), model_file.BUNDLED / "cells.safetensors")
    library.mkdir(parents=True)
    save_model(tiny_model("other"), library / "cells.safetensors")
    assert [(e.name, e.bundled) for e in list_models()] == [("cells", True), ("cells-2", False)]
    assert find_model("cells-2") == library / "cells.safetensors"


def test_a_broken_file_is_skipped_and_reported(library: Path) -> None:
    add_to_library(tiny_model(), "good")
    (library / "bad.safetensors").write_bytes(b"?")
    (library / "notes.txt").write_text("not a model")
    entries, errors = scan_models()
    assert [e.name for e in entries] == ["good"]
    assert ["bad.safetensors" in str(e) for e in errors] == [True]


def test_an_empty_library_is_no_error(library: Path) -> None:
    assert not library.exists()
    assert list_models() == []


def test_models_go_out_and_come_in_bit_by_bit(tmp_path: Path, library: Path) -> None:
    add_to_library(tiny_model(), "mine")
    out = export_model("mine", tmp_path / "shared.safetensors")
    with pytest.raises(ModelFileError, match="exists already"):
        export_model("mine", out)
    back = import_model(out)
    assert back.parent == library_folder()
    assert back.stem == "mine-2"  # named by its card
    assert back.read_bytes() == out.read_bytes()


def test_a_broken_file_is_not_imported(tmp_path: Path, library: Path, file: Path) -> None:
    rewritten(file, lambda tensors, _: tensors["head.bias"].fill_(float("nan")))
    with pytest.raises(ModelFileError, match="no numbers"):
        import_model(file)
    assert list_models() == []


def test_only_own_models_can_be_removed_and_only_by_name(tmp_path: Path, file: Path) -> None:
    save_model(tiny_model("cells"), model_file.BUNDLED / "cells.safetensors")
    own = add_to_library(tiny_model(), "mine")
    with pytest.raises(ModelFileError, match="part of napari-cellbrush"):
        remove_model("cells")
    for name in (str(file), "../good", "nobody"):
        with pytest.raises(ModelFileError, match="no model called"):
            remove_model(name)
    assert remove_model("mine") == own
    assert file.exists()
    assert [e.name for e in list_models()] == ["cells"]


def test_a_model_is_found_by_name_or_path_and_its_absence_explained(file: Path) -> None:
    own = add_to_library(tiny_model(), "mine")
    assert find_model("mine") == own
    assert find_model(file) == find_model(str(file)) == file
    with pytest.raises(ModelFileError, match=r"no model called 'yours'.*mine"):
        find_model("yours")
    with pytest.raises(ModelFileError, match="--base scratch"):
        find_model(DEFAULT_BASE)


@same_folder
@given(name=st.text(min_size=1, max_size=128))
def test_any_name_gives_a_file_inside_the_library(tmp_path: Path, name: str) -> None:
    plain = file_name_for(name)
    path = tmp_path / f"{plain}.safetensors"
    assert path.parent == tmp_path
    assert path.name == f"{plain}.safetensors"
    assert 0 < len(path.name.encode()) <= 255
    assert plain == plain.strip(" .")
    assert not set('<>:"/\\|?*') & set(plain)
    path.touch()


@pytest.mark.parametrize(("name", "plain"), [
    ("nuclei 2025-03 (HeLa)", "nuclei 2025-03 (HeLa)"), ("../../etc/passwd", "_.._etc_passwd"), ("CON", "model_CON"),
    ("com1.x", "model_com1.x"), ("...", "model"), ("细胞", "细胞"), ("a\0b\nc", "a_b_c")])
def test_file_names_stay_readable_and_safe(name: str, plain: str) -> None:
    assert file_name_for(name) == plain


def test_the_library_lives_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "elsewhere"))
    assert library_folder() == tmp_path / "elsewhere" / "models"
    monkeypatch.delenv("CELLBRUSH_HOME")
    assert library_folder().parts[-2:] == ("napari-cellbrush", "models") or sys.platform == "win32"


def test_a_library_that_cannot_be_made_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file, no folder")
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "occupied"))
    with pytest.raises(ModelFileError, match="CELLBRUSH_HOME"):
        add_to_library(tiny_model(), "mine")


def test_the_weights_hash_depends_on_every_weight(model: Model) -> None:
    before = model.weights_hash
    with torch.no_grad():
        model.network.head.bias[0] += float(np.float32(1e-6))
    assert model.weights_hash != before


def test_reading_a_model_does_not_load_torchs_compiler() -> None:
    """It takes seconds to load, and a window that is closed meanwhile waits for it."""
    program = ("import sys\nfrom napari_cellbrush.engine.model_file import DEFAULT_BASE, find_model, read_model\n"
               "read_model(find_model(DEFAULT_BASE))\nprint('torch._dynamo' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
