from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from napari_cellbrush.config import (
    AugmentationConfig,
    AutosaveConfig,
    InferenceConfig,
    NetworkConfig,
    ObjectsConfig,
    Settings,
    TrainingConfig,
    classes_from_names,
    load_config,
)
from napari_cellbrush.errors import ConfigError

ALL = [NetworkConfig, AugmentationConfig, TrainingConfig, InferenceConfig, ObjectsConfig, AutosaveConfig]


@pytest.mark.parametrize("settings", ALL)
def test_every_setting_has_a_title_and_a_help_text(settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.title, name
        assert nested or field.description, name


@pytest.mark.parametrize("settings", ALL)
def test_every_number_is_bounded_on_both_sides(settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        if field.annotation in (int, float):
            kinds = {type(bound).__name__ for bound in field.metadata}
            assert kinds & {"Ge", "Gt"}, name
            assert kinds & {"Le", "Lt"}, name


def test_the_papers_and_the_usual_ranges_are_reachable() -> None:
    for depth in (3, 5):
        NetworkConfig(depth=depth, base_filters=128, batch_norm=False, activation="sigmoid")
    for rate, batch, dropout, size in ((1e-5, 1, 0.0, 128), (3e-3, 32, 0.5, 1024)):
        TrainingConfig(learning_rate=rate, batch_size=batch, dropout=dropout, patch_px=size, optimiser="sgd",
                       momentum=0.99)


def test_a_value_out_of_bounds_is_named_with_its_value() -> None:
    with pytest.raises(ConfigError, match=r"'learning_rate' is 5.0.*0.003"):
        TrainingConfig().replace(learning_rate=5.0)
    with pytest.raises(ConfigError, match=r"network.depth"):
        TrainingConfig.read({"network": {"depth": 9}})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rat"):
        TrainingConfig.read({"learning_rat": 1e-4})


def test_settings_cannot_change_behind_ones_back() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().seed = 3  # type: ignore[misc]


def test_repr_shows_only_what_differs_from_the_default() -> None:
    assert repr(TrainingConfig(seed=7)) == "TrainingConfig(seed=7)"


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"settings{suffix}"
    toml = 'seed = 3\n[augmentation]\nflips = false\n'
    path.write_text(toml if suffix == ".toml" else json.dumps({"seed": 3, "augmentation": {"flips": False}}))
    config = load_config(path)
    assert (config.seed, config.augmentation.flips, config.batch_size) == (3, False, TrainingConfig().batch_size)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"seed": -1}', '{"seeds": 1}', "\x00"])
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


def test_a_missing_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json"):
        load_config(tmp_path / "missing.json")


def test_class_names_get_roles_a_biologist_means() -> None:
    classes = classes_from_names(["background", "nucleus", "boundary"])
    assert [c.role for c in classes] == ["background", "object", "boundary"]


@pytest.mark.parametrize("names", [["one"], ["a", "a"], ["a", ""], []])
def test_unusable_class_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError):
        classes_from_names(names)


def test_smoothing_is_meant_in_pixels_as_the_network_sees_them():
    assert ObjectsConfig(smoothing_px=1.5).at_scale(0.5).smoothing_px == 3
    assert ObjectsConfig(smoothing_px=1.5).at_scale(3).smoothing_px == 0.5
    assert ObjectsConfig(smoothing_px=15).at_scale(0.1).smoothing_px == 20
