from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_cellbrush.config import NetworkConfig
from napari_cellbrush.engine import training, training_state
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.model_file import list_models, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.events import (
    BaseScoring,
    Preparing,
    TrainingNote,
    TrainingResumed,
    TrainingStarted,
    TrainingStep,
    ValidationScored,
)
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.fine_tuning import outcome_in_words
from napari_cellbrush.session import SCRATCH, TunedModel, sizes_in_words


@pytest.fixture
def painted(viewer, workspace, image, person):
    """An image with some background and some cells labelled."""
    viewer.add_image(image, name="cells")
    layer = workspace.annotate.bench.annotating.new_annotation(workspace.session.image.key)
    for value, rows in ((1, (3, 40, 80)), (2, (20, 60, 100))):
        for row in rows:
            layer.data[row - 3 : row + 3, 20:30] = value
    layer.refresh()
    person.wait(lambda: all(workspace.session.painted[:2]))
    workspace.session.set_options(segment_after_training=False)
    workspace.show_tab("finetune")
    return workspace


def finished(workspace, person):
    person.wait(lambda: not workspace.session.training.busy)
    return workspace.session.training.notice


# --------------------------------------------------------------------------------------------- the button


def test_the_button_is_grey_and_says_what_is_missing_until_two_classes_are_painted(viewer, workspace, image, person):
    workspace.show_tab("finetune")
    dock = workspace.finetune
    assert not dock.run.button.isEnabled()
    assert "Open an image" in dock.run.reason.text()
    viewer.add_image(image, name="cells")
    assert "New annotation" in dock.run.reason.text()
    workspace.show_tab("annotate")
    person.click(workspace.annotate.new)
    person.drag([(40, 40), (40, 60)])
    person.wait(lambda: workspace.session.painted[0])
    assert dock.run.reason.text() == "Paint at least two classes (so far: background)."
    person.key(Qt.Key.Key_2)
    person.drag([(60, 40), (60, 60)])
    person.wait(lambda: dock.run.button.isEnabled())
    assert dock.run.reason.text() == ""


def test_one_click_trains_saves_the_model_and_chooses_it_for_segmenting(painted, person):
    dock = painted.finetune
    assert dock.run.button.text() == "Fine-tune"
    person.click(dock.run.button)
    assert dock.run.button.text() == "Stop and keep best"
    notice = finished(painted, person)
    assert notice.kind == "success", notice
    assert "cells model" in notice.text
    assert dock.run.button.text() == "Fine-tune"
    assert painted.session.model == "cells model"
    assert painted.segment.model.currentText() == "cells model"
    assert painted.session.base == "tiny"
    card = {entry.name: entry.card for entry in list_models()}["cells model"]
    assert card.base_name == "tiny"
    assert card.labelled_pixels == dict(zip(("background", "cell", "boundary"), painted.session.painted, strict=True))


def test_the_same_strokes_give_the_same_model_as_the_engine_called_by_hand(painted, person):
    labels = painted.annotate.bench.annotating.snapshot(painted.session.image.key)
    person.click(painted.finetune.run.button)
    assert finished(painted, person).kind == "success"
    entries = {entry.name: entry for entry in list_models()}
    base = read_model(entries["tiny"].path)
    data = painted.annotate.bench.book.layer(painted.session.image.key).data
    runs.load_torch()  # the same number of threads: sums in another order are other sums
    generator = training.train(base, [Planes(data, "YX")], [labels], painted.session.training_config,
                               classes=painted.session.classes)
    while True:
        try:
            next(generator)
        except StopIteration as end:
            expected = end.value.model
            break
    mine = read_model(entries["cells model"].path)
    assert mine.weights_hash == expected.weights_hash


def test_progress_curve_and_score_are_live(painted, person, monkeypatch):
    """A training of known events: what is shown is what was yielded."""
    go_on = []

    def train(base, *args, stop, **kwargs):
        for what in ("sizes", "head"):
            yield Preparing(what)
            while not go_on:
                time.sleep(0.01)
            go_on.clear()
        yield BaseScoring(4)
        while not go_on:
            time.sleep(0.01)
        go_on.clear()
        yield TrainingStarted("CPU", "float32", 10, 100, 20, "", 0.5, (40.2,))
        yield TrainingStep(1, 10, 0.9, 1e-3, 1.0, 9.0)
        while not go_on:
            time.sleep(0.01)
        go_on.clear()
        while not go_on:
            time.sleep(0.01)
            yield TrainingStep(2, 10, 0.8, 1e-3, 2.0, 8.0)
        yield ValidationScored(2, 0.75, 0.75)
        return training.TrainingResult(base, True, 0.5, 0.75, "", "steps", 2, 2.0)

    monkeypatch.setattr(training, "train", train)
    dock = painted.finetune
    person.click(dock.run.button)
    person.wait(lambda: dock.run.notice.text() == "Measuring how large objects are…")
    go_on.append(True)
    person.wait(lambda: dock.run.notice.text() == "Fitting a first answer to your classes…")
    go_on.append(True)
    person.wait(lambda: dock.run.notice.text() == "Scoring the base on your strokes…")
    go_on.append(True)
    person.wait(lambda: painted.session.training.count == "step 1 of 10")
    assert dock.teachers.text() == "Learns from strokes on 'cells'."
    assert "Objects are taken to be 40 px across." in dock.run.notice.text()
    assert not dock.curve.isVisible()  # one point is no curve
    go_on.append(True)
    person.wait(lambda: painted.session.training.count == "step 2 of 10")
    assert dock.run.count.text() == "Step 2 of 10, about 8 s left"
    assert dock.run.progress.value() == 200
    assert dock.curve is not None
    assert dock.curve.isVisible()
    assert "before 0.50" in dock.score.text()
    go_on.append(True)
    assert finished(painted, person).text.startswith("Done: better than before")
    assert "before 0.50  →  after 0.75" in dock.score.text()
    assert not dock.run.progress.isVisible()


def test_without_enough_strokes_the_dock_says_why_there_is_no_score(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    person.click(workspace.annotate.new)
    person.drag([(40, 40), (40, 60)])
    person.key(Qt.Key.Key_2)
    person.drag([(60, 40), (60, 60)])
    person.wait(lambda: all(workspace.session.painted[:2]))
    workspace.session.set_options(segment_after_training=False)
    workspace.session.training_config = workspace.session.training_config.replace(held_out_fraction=0.2)
    workspace.show_tab("finetune")
    person.click(workspace.finetune.run.button)
    assert finished(workspace, person).kind == "success"
    assert "No score: " in workspace.finetune.no_score.text()
    assert "strokes" in workspace.finetune.no_score.text()
    assert not workspace.finetune.score.isVisible()


def test_with_enough_strokes_base_and_tuned_model_are_scored_and_shown(painted, person):
    painted.session.training_config = painted.session.training_config.replace(held_out_fraction=0.3, validate_every=2)
    person.click(painted.finetune.run.button)
    finished(painted, person)
    scored = painted.session.tuned
    assert f"before {scored.base_score:.2f}  →  after {scored.score:.2f}" in painted.finetune.score.text()
    assert scored.improved == (scored.score >= scored.base_score)
    assert (painted.session.model == "cells model") == scored.improved


def test_a_worse_model_is_said_to_be_worse_and_the_base_stays_chosen(painted, person, monkeypatch):
    def train(base, *args, **kwargs):
        yield TrainingStarted("CPU", "float32", 10, 100, 20, "", 0.8)
        return training.TrainingResult(base, False, 0.8, 0.6, "", "steps", 2, 2.0)

    monkeypatch.setattr(training, "train", train)
    painted.session.set_options(segment_after_training=True)
    person.click(painted.finetune.run.button)
    notice = finished(painted, person)
    assert notice.kind == "warning"
    assert "worse than its base" in notice.text
    assert "'tiny' stays chosen" in notice.text
    assert painted.session.model == "tiny"
    assert not painted.session.segmentation.busy
    assert not painted.finetune.revert.isVisible()


def test_who_had_all_of_the_image_segmented_gets_all_of_it_anew(viewer, painted, person):
    session = painted.session
    session.set_options(segment_after_training=True, output="classes")
    # Only a part of the image is in view.
    viewer.scene.camera.zoom *= 4
    person.click(painted.finetune.run.button)
    finished(painted, person)
    person.wait(lambda: not session.segmentation.busy)
    assert "the view of" in session.segmentation.notice.text
    assert not viewer.layers["cells classes"].data.all()
    session.choose_model("tiny")
    painted.finetune.bench.segmenting.start("layer")
    person.wait(lambda: not session.segmentation.busy)
    person.click(painted.finetune.run.button)
    finished(painted, person)
    person.wait(lambda: not session.segmentation.busy)
    assert session.model == "cells model-2"
    assert "the view of" not in session.segmentation.notice.text
    for name, model in (("cells classes", "tiny"), ("cells classes [1]", "cells model-2")):
        assert layers.note_of(viewer.layers[name])["provenance"]["model"] == model
        assert viewer.layers[name].data.all()
    # Of another kind of result there was nothing.
    session.set_options(output="probabilities")
    person.click(painted.finetune.run.button)
    finished(painted, person)
    person.wait(lambda: not session.segmentation.busy)
    assert "the view of" in session.segmentation.notice.text


def test_revert_goes_back_to_the_model_before_and_keeps_the_new_one(painted, person):
    person.click(painted.finetune.run.button)
    finished(painted, person)
    assert painted.finetune.revert.text() == "Revert to 'tiny'"
    painted.session.set_options(segment_after_training=True)
    # A run with the tuned model is under way.
    painted.session.segmentation.begin("Segmenting…")
    person.click(painted.finetune.revert)
    assert painted.session.model == "tiny"
    painted.session.segmentation.end("Stopped.")
    assert "Segment uses 'tiny' again. 'cells model' stays" in painted.finetune.run.notice.text()
    person.wait(lambda: "with 'tiny' in" in painted.session.segmentation.notice.text)
    assert "cells model" in {entry.name for entry in list_models()}
    assert not painted.finetune.revert.isVisible()


def test_training_twice_starts_from_the_base_again_and_overwrites_nothing(painted, person):
    for _ in range(2):
        person.click(painted.finetune.run.button)
        assert finished(painted, person).kind == "success"
    cards = {entry.name: entry.card for entry in list_models()}
    assert {"cells model", "cells model-2"} <= cards.keys()
    assert cards["cells model-2"].base_name == "tiny"


def test_continuing_from_ones_own_model_is_a_choice_of_the_base(painted, person):
    person.click(painted.finetune.run.button)
    finished(painted, person)
    dock = painted.finetune
    dock.base.setCurrentIndex(dock.base.findData("cells model"))
    dock.base.activated.emit(dock.base.currentIndex())
    dock.name.setText("second round")
    person.click(dock.run.button)
    finished(painted, person)
    assert {entry.name: entry.card for entry in list_models()}["second round"].base_name == "cells model"


def test_scratch_takes_the_networks_shape_from_the_settings(painted, person):
    painted.session.choose_base(SCRATCH)
    painted.session.training_config = painted.session.training_config.replace(
        network=NetworkConfig(depth=3, base_filters=8, batch_norm=False).model_dump())
    person.click(painted.finetune.run.button)
    assert finished(painted, person).kind == "success"
    card = {entry.name: entry.card for entry in list_models()}["cells model"]
    assert (card.network.depth, card.network.base_filters, card.network.batch_norm) == (3, 8, False)


def test_all_painted_images_are_trained_on(viewer, painted, person, image, monkeypatch):
    viewer.add_image(image[:100, :90], name="more")
    viewer.add_image(image, name="not painted")
    bench = painted.annotate.bench
    keys = {entry.name: entry.key for entry in painted.session.images}
    layer = bench.annotating.new_annotation(keys["more"])
    layer.data_setitem((np.array([5, 6]), np.array([7, 7])), np.uint8(2))
    person.wait(lambda: len(painted.session.painted_images()) == 2)
    tasks = []

    def fine_tune(task, stop):
        tasks.append(task)
        raise RuntimeError("enough")
        yield

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    person.click(painted.finetune.run.button)
    finished(painted, person)
    assert {planes.name for planes in tasks[0].images} == {"cells", "more"}
    assert {labels.shape for labels in tasks[0].labels} == {(120, 150), (100, 90)}


def test_models_of_a_session_are_on_a_timeline_to_compare_and_to_go_back_to(viewer, painted, person):
    dock, session = painted.finetune, painted.session
    session.training_config = session.training_config.replace(learning_rate=3e-3)
    assert dock.history is None
    person.click(dock.run.button)
    finished(painted, person)
    assert dock.history.choice.currentText() == "cells model"
    assert dock.history.details.text() == "No score, 6 labelled pieces."
    assert not dock.history.use.isEnabled()  # it is in use
    layer = painted.annotate.bench.annotating.layer_of(session.image.key)
    layer.data_setitem((np.array([110, 111]), np.array([7, 7])), np.uint8(1))
    person.wait(lambda: session.painted[0] > 180)
    person.click(dock.run.button)
    finished(painted, person)
    history = dock.history
    assert [history.choice.itemData(i) for i in range(history.choice.count())] == ["cells model-2", "cells model"]
    history.choice.setCurrentIndex(1)
    history.choice.activated.emit(1)
    person.click(history.compare)
    person.wait(lambda: not session.comparison.busy)
    assert "of the view differ" in session.comparison.notice.text
    person.wait(lambda: "cells difference" in viewer.layers)
    entries = {entry.name: entry for entry in list_models()}
    maps = [segment_array(read_model(entries[name].path), Planes(viewer.layers["cells"].data, "YX"))
            for name in ("cells model-2", "cells model")]
    np.testing.assert_array_equal(viewer.layers["cells difference"].data, np.where(maps[0] != maps[1], maps[1], 0))
    person.click(history.use)
    assert session.model == "cells model"
    assert not history.use.isEnabled()
    # What differs from the model that is chosen no longer does.
    assert not session.comparison.notice.text
    assert not viewer.layers["cells difference"].visible


# ------------------------------------------------------------------------------------- stopping, failing


def test_stop_keeps_the_best_within_a_step_and_a_second(painted, person):
    painted.session.training_config = painted.session.training_config.replace(max_steps=5000, patience=0)
    dock = painted.finetune
    person.click(dock.run.button)
    person.wait(lambda: len(painted.session.training_events) > 3)
    steps = [e for e in painted.session.training_events if isinstance(e, TrainingStep)]
    one_step = steps[-1].seconds_elapsed / steps[-1].step
    began = time.monotonic()
    person.click(dock.run.button)
    assert dock.run.notice.text() == "Stopping…" or not painted.session.training.busy
    notice = finished(painted, person)
    assert time.monotonic() - began < 2 * one_step + 2
    assert notice.text.startswith("Stopped after")
    assert painted.session.tuned.ended == "stopped"
    assert painted.session.model == "cells model"


def test_a_stopped_training_can_be_continued_to_the_same_model(painted, person):
    dock, session = painted.finetune, painted.session
    session.training_config = session.training_config.replace(max_steps=12)
    person.click(dock.run.button)
    finished(painted, person)
    whole = read_model({entry.name: entry.path for entry in list_models()}["cells model"])
    assert not dock.resume.isVisible()
    dock.name.setText("in two parts")
    person.click(dock.run.button)
    person.wait(lambda: any(isinstance(event, TrainingStep) for event in session.training_events))
    person.click(dock.run.button)
    finished(painted, person)
    n_done = session.tuned.n_steps
    assert 1 <= n_done < 12
    assert dock.resume.text() == f"Continue after step {n_done} of 12"
    person.click(dock.resume)
    finished(painted, person)
    assert any(isinstance(event, TrainingResumed) for event in session.training_events)
    assert list(dock.curve._loss.x) == list(range(1, 13))
    assert session.tuned.ended == "steps"
    assert read_model({entry.name: entry.path for entry in list_models()}["in two parts-2"]).weights_hash == (
        whole.weights_hash)
    assert not dock.resume.isVisible()


def test_a_training_that_a_crash_left_is_offered_and_starts_anew_if_strokes_changed(painted, person):
    dock, session = painted.finetune, painted.session
    outline = training_state.Outline("lost", 7, 3, ("cells",))
    runs.unfinished_file().parent.mkdir(parents=True, exist_ok=True)
    training_state.write_state(training_state.TrainingState(outline, {"the strokes": "others"}, {}),
                               runs.unfinished_file())
    painted.annotate.bench.look_around()
    person.wait(lambda: dock.resume.isVisible())
    person.click(dock.resume)
    finished(painted, person)
    assert any("the strokes" in event.text for event in session.training_events if isinstance(event, TrainingNote))
    assert session.tuned.name == "lost"
    assert not runs.unfinished_file().exists()


def test_any_error_at_any_step_leaves_the_dock_idle_with_a_sentence_and_the_models_as_they_were(painted, person,
                                                                                               monkeypatch, caplog):
    def failing(error, step):
        def train(base, *args, **kwargs):
            if step == 0:
                raise error
            yield TrainingStarted("CPU", "float32", 3, 100, 0, "none", None)
            for number in (1, 2, 3):
                if number == step:
                    raise error
                yield TrainingStep(number, 3, 0.5, 1e-3, 1, 1)

        return train

    dock = painted.finetune
    files = {entry.path: entry.path.read_bytes() for entry in list_models() if not entry.bundled}
    for error in (RuntimeError("CUDA out of memory"), ValueError("bad"), MemoryError(), KeyError("k")):
        for step in (0, 2, 3):
            caplog.clear()
            monkeypatch.setattr(training, "train", failing(error, step))
            before = painted.session.training.notice
            person.click(dock.run.button)
            notice = finished(painted, person)
            assert notice is not before, (error, step)
            assert notice.kind == "error", (error, step)
            assert "fine-tuning" in notice.text, (error, step)
            assert dock.run.notice.text() == notice.text
            assert dock.run.button.text() == "Fine-tune"
            assert dock.run.button.isEnabled()
            assert "Traceback" in caplog.text, (error, step)
            assert painted.session.model == "tiny"
    assert {entry.path: entry.path.read_bytes() for entry in list_models() if not entry.bundled} == files


def test_after_a_failure_the_next_run_works(painted, person, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(training, "train", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("CUDA error")))
        person.click(painted.finetune.run.button)
        assert finished(painted, person).kind == "error"
    person.click(painted.finetune.run.button)
    assert finished(painted, person).kind == "success"


@pytest.fixture
def unsaved(painted, person, cellbrush_home):
    """A model named "precious" that could not be saved; call it to make room."""
    library = cellbrush_home / "models"
    elsewhere = library.rename(cellbrush_home / "aside")
    library.write_text("a file where the folder should be")
    # The base must still be found.
    painted.session.choose_base(SCRATCH)
    painted.finetune.name.setText("precious")
    person.click(painted.finetune.run.button)
    notice = finished(painted, person)
    assert notice.kind == "error"
    assert "'precious' is ready but could not be saved" in notice.text

    def make_room():
        library.unlink()
        elsewhere.rename(library)

    return make_room


def test_a_model_that_cannot_be_saved_is_kept_under_its_name_until_it_is(painted, person, unsaved):
    dock = painted.finetune
    dock.name.clear()
    assert not dock.run.button.isEnabled()
    assert dock.run.reason.text() == "Save 'precious' first, or discard it."
    person.click(dock.save_again)
    assert finished(painted, person).kind == "error"
    assert dock.save_again.isVisible()
    unsaved()
    person.click(dock.save_again)
    assert finished(painted, person).kind == "success"
    assert painted.session.model == "precious"
    assert not dock.save_again.isVisible()
    assert not dock.discard.isVisible()
    assert dock.run.button.isEnabled()


def test_a_model_that_cannot_be_saved_can_be_discarded(painted, person, unsaved):
    unsaved()
    person.click(painted.finetune.discard)
    assert "'precious' is discarded" in painted.finetune.run.notice.text()
    assert not painted.finetune.save_again.isVisible()
    assert painted.finetune.run.button.isEnabled()
    assert "precious" not in {entry.name for entry in list_models()}


def test_strokes_painted_during_training_are_kept_and_do_not_reach_it(viewer, painted, person):
    painted.session.training_config = painted.session.training_config.replace(max_steps=5000, patience=0)
    layer = viewer.layers["cells annotation"]
    before = layer.data.copy()
    painted.session.choose_class(1)
    person.click(painted.finetune.run.button)
    person.wait(lambda: len(painted.session.training_events) > 2)
    person.drag([(110, column) for column in range(30, 120, 10)])
    person.click(painted.finetune.run.button)
    finished(painted, person)
    assert (layer.data[110, 40:110] == 2).all()
    assert np.array_equal(layer.data[:105], before[:105])
    card = {entry.name: entry.card for entry in list_models()}["cells model"]
    assert sum(card.labelled_pixels.values()) == np.count_nonzero(before)


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(("values", "words"), [
    ((True, 0.5, 0.75, "", "steps"), "Done: better than before on the held-out strokes. Saved as 'm'."),
    ((True, 0.5, 0.5, "", "steps"), "Done: as good as before on the held-out strokes. Saved as 'm'."),
    ((True, None, 0.75, "", "steps"), "Done: 0.75 on the held-out strokes. Saved as 'm'."),
    ((True, None, None, "few", "steps"), "Done. Saved as 'm'."),
    ((True, None, None, "few", "time"), "Ended by the time limit after 9 steps. Saved as 'm'."),
    ((True, None, 0.75, "", "no_progress"),
     "Ended after 9 steps, because the score rose no longer: 0.75 on the held-out strokes. Saved as 'm'."),
    ((False, 0.5, 0.25, "", "stopped"),
     "Stopped after 9 steps: worse than its base on the held-out strokes. 'before' stays chosen. Saved as 'm'."),
    ((True, 0.5, 0.5, "", "time"), "Ended by the time limit after 9 steps: as good as before on the held-out strokes. "
     "With more time it may learn more. Saved as 'm'."),
])
def test_outcomes_in_words(values, words):
    improved, base, score, reason, ended = values
    assert outcome_in_words(TunedModel("m", improved, base, score, reason, ended, 9, "before")) == words


@pytest.mark.parametrize(("interval", "words"), [
    ((0.37, 1.0), "Done: 0.73 instead of 0.69 on the held-out strokes, which may be chance. Saved as 'm'."),
    ((0.71, 0.75), "Done: better than before on the held-out strokes. Saved as 'm'."),
])
def test_a_gain_within_the_range_of_the_score_may_be_chance(interval, words):
    assert outcome_in_words(TunedModel("m", True, 0.69, 0.73, "", "steps", 9, "before", interval)) == words


@pytest.mark.parametrize(("names", "sizes", "words"), [
    (("a", "b"), (), ""),
    (("a", "b"), (40.2, 39.9), " Objects are taken to be 40 px across."),
    (("a", "b"), (40.2, 70), " Objects are taken to be 40 px across in 'a', 70 px across in 'b'."),
    (tuple("abcde"), (40, 70, 41, 50, 60), " Objects are taken to be 40 to 70 px across."),
])
def test_sizes_in_words(names, sizes, words):
    assert sizes_in_words(sizes, names) == words


# ---------------------------------------------------------------------------------------------- corrections


@pytest.fixture
def corrections_given(monkeypatch):
    """What each training is told to be corrections: numbers of pixels per image, None where nothing is known."""
    given, train = [], training.train

    def listening(*args, corrections, **kwargs):
        given.append([None if part is None else int(np.count_nonzero(part)) for part in corrections])
        return train(*args, corrections=corrections, **kwargs)

    monkeypatch.setattr(training, "train", listening)
    return given


def train_once(workspace, person):
    person.wait(workspace.finetune.run.button.isEnabled)
    person.click(workspace.finetune.run.button)
    notice = finished(workspace, person)
    assert notice.kind != "error", notice
    return notice


def test_what_is_painted_after_the_first_answer_corrects_it(painted, person, corrections_given):
    layer = painted.annotate.bench.annotating.layer_of(painted.session.image.key)
    train_once(painted, person)
    assert painted.session.tuned.improved
    layer.data[110:112, 40:50] = 1
    layer.data[20, 20:30] = 1  # another class where something was painted before is no answer's fault
    train_once(painted, person)
    layer.data[115:117, 40:50] = 2
    train_once(painted, person)
    assert painted.session.training_events[0].n_corrections == 40
    assert corrections_given == [[None], [20], [40]]


def test_what_is_painted_while_the_model_learns_corrects_nothing(painted, person, corrections_given):
    layer = painted.annotate.bench.annotating.layer_of(painted.session.image.key)
    person.click(painted.finetune.run.button)
    layer.data[110:112, 40:50] = 1
    assert finished(painted, person).kind == "success"
    train_once(painted, person)
    assert corrections_given == [[None], [0]]


def test_who_segments_first_is_asked_whether_only_errors_are_painted(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    session, bench = workspace.session, workspace.annotate.bench
    workspace.show_tab("finetune")
    session.choose_model("tiny")
    session.choose_base("tiny")
    person.wait(lambda: not session.why_not_segment())
    bench.segmenting.start()
    person.wait(lambda: not session.segmentation.busy)
    assert "Only errors" not in workspace.finetune.teachers.text()
    layer = bench.annotating.new_annotation(session.image.key)
    layer.data[10:12, 20:30], layer.data[40:42, 20:30] = 1, 2
    layer.refresh()
    person.wait(lambda: "tick 'Only errors painted'" in workspace.finetune.teachers.text())
    workspace.finetune.config._editors["only_errors_painted",].widget.click()
    assert session.training_config.only_errors_painted
    person.wait(lambda: "Only errors" not in workspace.finetune.teachers.text())


def test_who_paints_first_is_not_asked(painted, person):
    bench = painted.annotate.bench
    painted.session.choose_model("tiny")
    bench.segmenting.start()
    person.wait(lambda: not painted.session.segmentation.busy)
    painted.finetune._refresh_run()
    assert painted.finetune.teachers.text() == "Learns from strokes on 'cells'."


def test_strokes_of_another_layer_correct_nothing(painted, person, corrections_given):
    bench, key = painted.annotate.bench, painted.session.image.key
    train_once(painted, person)
    bench.annotating.replace(key, bench.annotating.snapshot(key))
    train_once(painted, person)
    assert corrections_given == [[None], [None]]


def test_corrections_stay_what_they_are_when_a_class_is_removed(painted, person, corrections_given):
    bench, key = painted.annotate.bench, painted.session.image.key
    train_once(painted, person)
    bench.annotating.layer_of(key).data[110:112, 40:50] = 1
    bench.annotating.remove_class(2)
    painted.session.choose_base("tiny")
    train_once(painted, person)
    assert corrections_given == [[None], [20]]


def test_an_answer_that_was_never_chosen_is_not_corrected(painted, person, corrections_given, monkeypatch):
    listening = training.train

    def worse(*args, **kwargs):
        result = yield from listening(*args, **kwargs)
        return replace(result, improved=False)

    monkeypatch.setattr(training, "train", worse)
    for _ in range(2):
        train_once(painted, person)
    assert corrections_given == [[None], [None]]
