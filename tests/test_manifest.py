"""What npe2's own validation does not see; measured to fail silently otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from npe2 import PluginManifest
from npe2.manifest.contributions import MenuCommand

import napari_cellbrush
from napari_cellbrush.config import AutosaveConfig
from napari_cellbrush.napari_ui import sample_data

PACKAGE = Path(napari_cellbrush.__file__).parent


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_distribution("napari-cellbrush")


def test_every_command_can_be_imported(manifest):
    manifest.validate_imports()


def test_menus_widgets_and_samples_name_commands_and_menus_that_exist(manifest):
    from napari._app_model.constants._menus import MenuId  # nothing public lists them

    contributions = manifest.contributions
    commands = {command.id for command in contributions.commands or ()}
    submenus = {submenu.id for submenu in contributions.submenus or ()}
    bad = [menu for menu in contributions.menus if menu not in {str(m) for m in MenuId.contributables()} | submenus]
    for items in contributions.menus.values():
        bad += [item for item in items
                if (item.command not in commands if isinstance(item, MenuCommand) else item.submenu not in submenus)]
    for group in (contributions.widgets, contributions.readers, contributions.writers, contributions.sample_data):
        bad += [item.command for item in group or () if item.command not in commands]
    assert not bad


def test_everything_the_plugin_promises_is_in_the_manifest(manifest):
    contributions = manifest.contributions
    assert [w.display_name for w in contributions.widgets] == ["Workspace", "Annotate", "Fine-tune", "Segment",
                                                               "Correct", "Export"]
    titles = {c.id: c.title for c in contributions.commands}
    in_menus = {menu: [titles[item.command] for item in items] for menu, items in contributions.menus.items()}
    assert in_menus == {"napari/layers/segment": ["Segment with Cellbrush"], "napari/layers/data": ["Export mask"]}
    assert len(contributions.sample_data) == 2


def test_preferences_are_those_of_the_settings():
    # As it is written, because older versions of npe2 leave this part out.
    manifest = yaml.safe_load((PACKAGE / "napari.yaml").read_text(encoding="utf-8"))
    offered = manifest["contributions"]["configurations"]["autosave"]["properties"]
    assert set(offered) == set(AutosaveConfig.model_fields)
    for name, field in AutosaveConfig.model_fields.items():
        bounds = {type(bound).__name__: getattr(bound, type(bound).__name__.lower()) for bound in field.metadata}
        assert offered[name]["title"] == field.title
        assert offered[name]["description"] == field.description
        assert offered[name]["default"] == field.default
        assert (offered[name].get("minimum"), offered[name].get("maximum")) == (bounds.get("Ge"), bounds.get("Le"))


def test_the_manifest_on_top_is_the_one_in_the_package(manifest):
    top = PACKAGE.parents[1] / "napari.yaml"
    if not top.exists():
        pytest.skip("not run from a checkout")
    assert top.samefile(PACKAGE / "napari.yaml")


def test_importing_what_the_manifest_names_loads_no_torch(manifest):
    modules = sorted({str(c.python_name).partition(":")[0] for c in manifest.contributions.commands})
    program = f"import sys\nfor m in {modules}: __import__(m)\nprint('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("sample", [sample_data.immunohistochemistry, sample_data.nuclei])
def test_samples_need_no_network(sample: Callable, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a sample asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    ((data, named, kind),) = sample()
    assert kind == "image"
    assert data.shape[:2] == (512, 512)
    assert np.ptp(data) > 100
    assert named["name"]


def test_made_up_nuclei_are_the_same_every_time():
    assert np.array_equal(sample_data.synthetic_nuclei(5, 64), sample_data.synthetic_nuclei(5, 64))


def test_named_functions_are_where_the_manifest_says(manifest):
    for command in manifest.contributions.commands:
        module, _, name = str(command.python_name).partition(":")
        assert callable(getattr(import_module(module), name))
