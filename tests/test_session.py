from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_cellbrush.config import DEFAULT_CLASSES, ClassDefinition
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.model import ModelCard
from napari_cellbrush.engine.model_file import ModelEntry
from napari_cellbrush.errors import CellbrushError, ConfigError, ImageError
from napari_cellbrush.events import TrainingStarted, TrainingStep
from napari_cellbrush.session import (
    SCRATCH,
    ImageEntry,
    MaskEntry,
    Phase,
    Run,
    Session,
    TunedModel,
    axes_in_words,
    duration_in_words,
)

A = ImageEntry("a", "first", (100, 200), "YX")
B = ImageEntry("b", "second", (5, 100, 200), "ZYX")
STROKES = MaskEntry("s", "strokes", (100, 200), True)


def entry(name: str, bundled: bool = False, classes: tuple[ClassDefinition, ...] = DEFAULT_CLASSES) -> ModelEntry:
    return ModelEntry(name, Path(f"{name}.safetensors"), ModelCard(name=name, classes=classes, in_channels=1), bundled)


def heard(signal) -> list:
    calls: list = []
    signal.connect(lambda *arguments: calls.append(arguments))
    return calls


def annotated() -> Session:
    session = Session()
    session.set_layers([A], [STROKES])
    session.set_annotation("a", "s")
    return session


# ---------------------------------------------------------------------------------------------- images


def test_the_first_image_is_chosen_and_stays_chosen_while_others_come_and_go():
    session = Session()
    session.set_layers([A], [])
    session.set_layers([B, A], [])
    assert session.image == A
    session.set_layers([A, B], [])
    assert session.image == A


def test_a_renamed_image_stays_chosen_under_its_new_name():
    session = Session()
    session.set_layers([A, B], [])
    chosen = heard(session.image_chosen)
    session.set_layers([ImageEntry("a", "renamed", A.shape, "YX"), B], [])
    assert session.image is not None
    assert session.image.name == "renamed"
    assert chosen


def test_when_the_chosen_image_is_removed_another_one_is_chosen_and_then_none():
    session = Session()
    session.set_layers([A, B], [])
    session.set_layers([B], [])
    assert session.image == B
    session.set_layers([], [])
    assert session.image is None


def test_telling_the_same_layers_again_changes_nothing():
    session = Session()
    session.set_layers([A], [STROKES])
    calls = heard(session.images_changed)
    session.set_layers([A], [STROKES])
    assert calls == []


def test_axes_are_kept_by_image_and_refused_if_they_do_not_fit():
    session = Session()
    session.set_layers([B, A], [])
    session.set_axes("b", "tyx")
    assert session.find_image("b").axes == "TYX"
    session.set_layers([A, B], [])  # napari's own guess again
    assert session.find_image("b").axes == "TYX"
    for wrong in ("YX", "ZZX", "QYX", "CYS", ""):
        with pytest.raises(ImageError):
            session.set_axes("b", wrong)
    assert session.find_image("b").axes == "TYX"


def test_axes_of_a_colour_image_end_in_its_colours():
    session = Session()
    session.set_layers([ImageEntry("a", "thin stack", (120, 150, 3), "YXS", rgb=True)], [])
    with pytest.raises(ImageError, match=r"shows 'thin stack' in colour.* got the axes 'YXZ'"):
        session.set_axes("a", "YXZ")
    assert session.find_image("a").axes == "YXS"
    session.set_axes("a", "YXC")
    assert session.find_image("a").axes == "YXC"


def test_annotations_are_forgotten_with_their_layer_or_their_image():
    for images, masks in (([A], []), ([], [STROKES])):
        session = annotated()
        session.set_painted("a", (1, 2, 3))
        session.set_layers(images, masks)
        assert session.annotations == {}
        assert session.painted == (0, 0, 0)


# --------------------------------------------------------------------------------------------- classes


def test_painted_pixels_are_summed_over_images():
    session = annotated()
    session.set_layers([A, B], [STROKES, MaskEntry("t", "more", B.shape, True)])
    session.set_annotation("b", "t")
    session.set_painted("a", (1, 0, 2))
    session.set_painted("b", (10, 0, 0))
    assert session.painted == (11, 0, 2)
    assert session.painted_images() == ("a", "b")
    session.set_painted("elsewhere", (5, 5, 5))
    assert session.painted == (11, 0, 2)


def test_removing_a_class_moves_the_counts_of_those_after_it():
    session = annotated()
    session.set_painted("a", (1, 2, 3))
    session.remove_class(1)
    assert [c.name for c in session.classes] == ["background", "boundary"]
    assert session.painted == (1, 3)


def test_two_classes_are_the_least_and_a_refused_removal_changes_nothing():
    session = annotated()
    session.set_painted("a", (1, 2, 3))
    session.remove_class(2)
    with pytest.raises(ConfigError, match="need 2 to 255"):
        session.remove_class(0)
    assert len(session.classes) == 2
    assert session.painted == (1, 2)


@pytest.mark.parametrize("name", ["background", " Background ", "", "x" * 65])
def test_class_names_are_different_and_neither_empty_nor_endless(name):
    session = Session()
    with pytest.raises(ConfigError):
        session.change_class(1, name=name)
    assert session.classes == DEFAULT_CLASSES


def test_changing_a_class_changes_nothing_else():
    session = Session()
    session.change_class(1, name="nucleus", color="#112233", role="boundary")
    assert session.classes[1] == ClassDefinition(name="nucleus", color="#112233", role="boundary")
    assert session.classes[::2] == DEFAULT_CLASSES[::2]


actions = st.lists(st.tuples(st.sampled_from(["add", "remove", "rename", "choose"]), st.integers(0, 12),
                             st.sampled_from(["cell", "Cell", "nucleus", "class 3", "a", ""])), max_size=40)


@given(actions)
def test_whatever_is_done_to_classes_the_table_stays_whole(steps):
    session = annotated()
    session.set_painted("a", (1, 2, 3))
    for action, position, name in steps:
        try:
            if action == "add":
                session.add_class()
            elif action == "choose":
                session.choose_class(position)
            elif position < len(session.classes) and action == "remove":
                session.remove_class(position)
            elif position < len(session.classes):
                session.change_class(position, name=name)
        except CellbrushError:
            pass
    names = [c.name.casefold() for c in session.classes]
    assert len(names) == len(set(names)) >= 2
    assert len(session.painted) == len(names)
    assert 0 <= session.current_class < len(names)
    assert sum(session.painted) <= 6


def test_an_added_class_has_a_colour_of_its_own_while_there_are_any():
    session = Session()
    for _ in range(6):
        session.add_class()
    assert len({c.color for c in session.classes}) == 9


# ---------------------------------------------------------------------------------------------- models


def test_the_bundled_base_is_the_default_and_scratch_where_there_is_none():
    session = Session()
    session.set_models([entry("cells", bundled=True), entry("mine")], "cells")
    assert (session.base, session.model) == ("cells", "cells")
    session = Session()
    session.set_models([entry("mine")], "cells")
    assert (session.base, session.model) == (SCRATCH, "mine")


def test_choices_of_models_survive_a_longer_library_and_fall_back_in_a_shorter_one():
    session = Session()
    session.set_models([entry("cells", bundled=True), entry("mine")], "cells")
    session.choose_base("mine")
    session.choose_model("mine")
    session.set_models([entry("cells", bundled=True), entry("mine"), entry("new")], "cells")
    assert (session.base, session.model) == ("mine", "mine")
    session.set_models([entry("cells", bundled=True)], "cells")
    assert (session.base, session.model) == ("cells", "cells")


def test_ones_own_base_brings_its_classes_only_while_nothing_is_painted():
    own = (DEFAULT_CLASSES[0], ClassDefinition(name="yeast", color="#123456"))
    session = annotated()
    session.set_models([entry("cells", bundled=True), entry("mine", classes=own)], "cells")
    session.set_painted("a", (1, 1, 0))
    session.choose_base("mine")
    assert session.classes == DEFAULT_CLASSES
    session.choose_base("cells")
    session.set_painted("a", (0, 0, 0))
    session.choose_base("mine")
    assert session.classes == own


def tuned(improved: bool) -> TunedModel:
    return TunedModel("new", improved, 0.7, 0.8 if improved else 0.6, "", "steps", 10, "cells")


def test_a_better_model_is_chosen_and_can_be_reverted():
    session = Session()
    session.set_models([entry("cells", bundled=True), entry("new")], "cells")
    session.finish_training(tuned(improved=True))
    assert (session.model, session.previous_model) == ("new", "cells")
    session.revert()
    assert (session.model, session.previous_model) == ("cells", "")
    assert session.base == "cells"


def test_a_worse_model_is_not_chosen():
    session = Session()
    session.set_models([entry("cells", bundled=True), entry("new")], "cells")
    session.finish_training(tuned(improved=False))
    assert (session.model, session.previous_model) == ("cells", "")


# ------------------------------------------------------------------------------------------------ runs


def test_what_is_missing_before_training_is_said_one_thing_after_the_other():
    session = Session()
    assert "Open an image" in session.why_not_train()
    session.set_layers([A], [STROKES])
    assert "New annotation" in session.why_not_train()
    session.set_annotation("a", "s")
    assert session.why_not_train() == "Paint at least two classes (so far: none)."
    session.set_painted("a", (0, 5, 0))
    assert session.why_not_train() == "Paint at least two classes (so far: cell)."
    session.set_painted("a", (7, 5, 0))
    assert "Looking for models" in session.why_not_train()
    session.set_models([])
    assert session.why_not_train() == ""
    session.segmentation.begin("")
    assert session.why_not_train() == "Wait until the segmentation has ended."


def test_what_is_missing_before_segmenting_is_said_one_thing_after_the_other():
    session = Session()
    assert "Open an image" in session.why_not_segment()
    session.set_layers([ImageEntry("a", "strange", (2,) * 7, "")], [])
    assert "axes of 'strange'" in session.why_not_segment()
    session.set_layers([A], [])
    assert "Looking for models" in session.why_not_segment()
    session.set_device("No device", "PyTorch could not be loaded.")
    assert session.why_not_segment() == "PyTorch could not be loaded."
    session.set_models([])
    assert "no model yet" in session.why_not_segment()
    session.set_models([entry("mine")])
    assert session.why_not_segment() == ""
    session.training.begin("")
    assert session.why_not_segment() == "Wait until fine-tuning has ended."


def test_a_run_goes_from_idle_to_idle_and_only_a_running_one_stops():
    run = Run()
    run.stopping()
    assert run.phase is Phase.IDLE
    run.begin("Working")
    run.advance(0.5, 3, "tile 1 of 2")
    assert (run.busy, run.fraction, run.notice.text) == (True, 0.5, "Working")
    run.stopping()
    assert (run.busy, run.phase) == (True, Phase.STOPPING)
    run.end("Done", "success")
    assert (run.busy, run.notice.kind) == (False, "success")


def test_a_dock_opened_late_finds_all_events_of_this_training_and_none_of_the_last():
    session = Session()
    started = TrainingStarted("CPU", "float32", 10, 5, 0, "", None)
    step = TrainingStep(1, 10, 0.5, 1e-3, 1, 9)
    for _ in range(2):
        session.add_training_event(started)
        session.add_training_event(step)
    assert session.training_events == [started, step]


def test_two_sessions_share_nothing():
    first, second = annotated(), Session()
    first.add_class()
    first.set_models([entry("mine")])
    first.training.begin("Working")
    assert (second.images, second.classes, second.models, second.annotations) == ((), DEFAULT_CLASSES, None, {})
    assert not second.training.busy


def test_the_session_loads_neither_qt_nor_napari_nor_torch():
    program = ("import sys, napari_cellbrush.session;"
               "print([m for m in ('qtpy', 'PyQt6', 'PySide6', 'napari', 'torch') if m in sys.modules])")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"),
                                                (7800, "2 h 10 min")])
def test_durations_in_words(seconds, words):
    assert duration_in_words(seconds) == words


def test_axes_in_words():
    assert axes_in_words("TZCYXS") == "time, depth, channel, row, column, colour"


# ------------------------------------------------------------------------------------------------ accepted objects


def test_accepted_objects_are_told_of_kept_by_layer_and_forgotten_with_it():
    session = Session()
    images, masks = [ImageEntry("a", "a", (4, 4), "YX")], [MaskEntry("o", "objects", (4, 4), True, "objects")]
    session.set_layers(images, masks)
    told = []
    session.accepted_changed.connect(told.append)
    assert "annotation" in session.why_not_train()
    session.set_accepted("o", "a", Accepted(frozenset({3})))
    session.set_accepted("o", "a", Accepted(frozenset({3})))
    assert told == ["o"]
    assert session.accepted_of("a") == {"o": Accepted(frozenset({3}))}
    assert session.taught_images() == ("a",)
    assert "annotation" not in session.why_not_train()
    session.set_layers(images, [])
    assert told == ["o", "o"]
    assert session.taught_images() == ()
    assert not session.accepted_in("o")
