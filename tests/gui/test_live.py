"""Live with real mouse strokes on a real window."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cellbrush.config import DEFAULT_CLASSES, TrainingConfig
from napari_cellbrush.engine import continuous
from napari_cellbrush.engine.annotation import Split, collect_annotation
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.model_file import find_model, list_models, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.events import (
    ContinuousScored,
    ContinuousStep,
    Improved,
    LiveTile,
    NothingToLearn,
    PauseToken,
    StopToken,
    StrokesTaken,
)
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.live import REPAINT_MS
from napari_cellbrush.napari_ui.live_runs import KeptModel, LearnTask, learn_strokes
from napari_cellbrush.napari_ui.workbench import workbench_for
from napari_cellbrush.napari_ui.worker import one_blas_thread


@pytest.fixture
def live(viewer, workspace, image, person):
    """An image with Live on, drawn and waiting for strokes."""
    viewer.add_image(image, name="cells")
    viewer.reset_view()
    QTest.qWait(50)
    person.click(workspace.annotate.live.button)
    bench = workspace.annotate.bench
    person.wait(lambda: "two classes" in bench.session.live.notice.text)
    return bench.live


def paint(viewer, person, live, value, points):
    """One stroke of a class, and the generation it gives."""
    before = live._generation
    layer = viewer.layers.selection.active
    layer.selected_label = value
    person.drag(points)
    person.wait(lambda: live._generation > before)


def paint_two_classes(viewer, person, live):
    paint(viewer, person, live, 1, [(38, 10), (40, 80), (40, 140)])
    paint(viewer, person, live, 2, [(16, 25), (24, 25)])
    paint(viewer, person, live, 2, [(60, 70), (60, 80)])


def mask(viewer):
    return viewer.layers["cells live"].data


def visible(viewer):
    return [layer.name for layer in viewer.layers if layer.visible]


def is_answered(live):
    """Whether the mask shows the newest strokes (the image is one tile)."""
    return live.answered == live._generation


def agreement(viewer, image):
    truth = np.where(image > 0.5, 2, 1)
    return (mask(viewer) == truth).mean()


def test_a_mask_follows_the_strokes_and_forgets_what_is_taken_back(viewer, live, person, image):
    assert not mask(viewer).any()
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    assert agreement(viewer, image) > 0.9
    good = mask(viewer).copy()
    # A large stroke that is wrong, and undo.
    paint(viewer, person, live, 1, [(20, 75), (20, 80)])
    paint(viewer, person, live, 1, [(60, 120), (60, 130)])
    person.wait(lambda: is_answered(live))
    assert not np.array_equal(mask(viewer), good)
    for _ in range(2):
        person.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    person.wait(lambda: is_answered(live))
    np.testing.assert_array_equal(mask(viewer), good)
    # Without any stroke there is no mask.
    for _ in range(3):
        person.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    person.wait(lambda: not mask(viewer).any())
    assert workbench_for(viewer).session.live.busy


# ------------------------------------------------------------------------------------------- on, off, keys


def test_the_key_l_makes_an_annotation_and_switches_on_and_off(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    person.key(Qt.Key.Key_L)
    session = workspace.session
    person.wait(lambda: session.live.busy and "cells annotation" in viewer.layers)
    assert workspace.annotate.live.button.isChecked()
    assert viewer.layers.selection.active.name == "cells annotation"
    person.key(Qt.Key.Key_L)
    assert not session.live.busy
    assert not workspace.annotate.live.button.isChecked()


def test_space_shows_the_image_under_the_masks_while_it_is_held(viewer, live, person):
    strokes, shown = viewer.layers["cells annotation"], viewer.layers["cells live"]
    canvas = person._canvas.native
    canvas.setFocus()
    QTest.keyPress(canvas, Qt.Key.Key_Space)
    QTest.qWait(20)
    assert not shown.visible
    assert strokes.visible
    assert strokes.mode == "pan_zoom"
    QTest.keyRelease(canvas, Qt.Key.Key_Space)
    QTest.qWait(20)
    assert shown.visible
    assert strokes.mode == "paint"


def test_without_an_image_live_says_what_it_needs(workspace):
    workspace.annotate.bench.live.switch(True)
    assert "Open an image" in workspace.session.live.notice.text
    assert not workspace.session.live.busy


def test_what_cannot_be_read_switches_live_off_with_a_sentence(viewer, workspace, person):
    viewer.add_image(np.full((60, 60), 3.0), name="flat", contrast_limits=(0, 5))
    person.click(workspace.annotate.live.button)
    person.wait(lambda: not workspace.session.live.busy)
    assert "constant" in workspace.session.live.notice.text
    assert workspace.session.live.notice.kind == "error"


def test_removing_the_mask_switches_live_off(viewer, live, person):
    viewer.layers.remove(viewer.layers["cells live"])
    person.wait(lambda: not live.is_on)
    assert "removed" in live._run.notice.text


def test_work_rests_while_the_mouse_button_is_down_and_the_stroke_is_whole(viewer, live, person):
    layer = viewer.layers["cells annotation"]
    person.press((40, 10))
    person.wait(lambda: live._pause.held)
    for column in range(11, 60):
        person.move((40, column))
    person.release((40, 60))
    person.wait(lambda: not live._pause.held)
    assert layer.data[40, 10:60].all()


# ------------------------------------------------------------------------------------- things change meanwhile


def test_another_slice_is_answered_by_the_strokes_of_the_first(viewer, workspace, image, person):
    viewer.add_image(np.stack([image, image[:, ::-1]]), name="cells")
    viewer.dims.set_current_step(0, 0)
    viewer.reset_view()
    QTest.qWait(50)
    person.click(workspace.annotate.live.button)
    live = workspace.annotate.bench.live
    person.wait(lambda: "two classes" in live._run.notice.text)
    layer = viewer.layers["cells annotation"]
    for value, row, columns in ((1, 40, (10, 140)), (2, 20, (20, 30))):
        layer.selected_label = value
        person.drag([(row, columns[0]), (row, columns[1])])
    person.wait(lambda: mask(viewer)[0].all())
    viewer.dims.set_current_step(0, 1)
    person.wait(lambda: mask(viewer)[1].all())
    assert (mask(viewer)[1] == np.where(image[:, ::-1] > 0.5, 2, 1)).mean() > 0.7


def test_another_image_waits_for_strokes_of_its_own_and_nothing_reaches_the_wrong_mask(viewer, live, workspace,
                                                                                    person, image):
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    before = mask(viewer).copy()
    other = viewer.add_image(image[:, ::-1].copy(), name="other")
    workspace.session.choose_image(str(other.unique_id))
    person.wait(lambda: "Choose an image" in live._run.notice.text)
    workspace.annotate.bench.annotating.new_annotation(str(other.unique_id))
    person.wait(lambda: "other live" in viewer.layers and "two classes" in live._run.notice.text)
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    assert viewer.layers["other live"].data.all()
    np.testing.assert_array_equal(mask(viewer), before)


def test_classes_come_and_go_meanwhile(viewer, live, workspace, person):
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    workspace.session.add_class()
    person.wait(lambda: live._subject is not None and live._subject.n_classes == 4)
    paint(viewer, person, live, 4, [(100, 5), (110, 5)])
    person.wait(lambda: (mask(viewer) == 4).any())
    workspace.annotate.bench.annotating.remove_class(3)
    person.wait(lambda: live._subject is not None and live._subject.n_classes == 3 and is_answered(live))
    assert mask(viewer).max() <= 3


def test_the_features_of_an_image_survive_a_change_of_classes(viewer, live, workspace, person):
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    source = live._known.source
    workspace.session.add_class()
    person.wait(lambda: live._subject is not None and live._subject.n_classes == 4 and is_answered(live))
    assert live._known.source is source


def test_removing_the_image_leaves_live_waiting(viewer, live, person):
    viewer.layers.remove(viewer.layers["cells"])
    person.wait(lambda: live._job is None)
    QTest.qWait(200)
    assert live.is_on
    assert "Choose an image" in live._run.notice.text


def test_a_stroke_after_a_segmentation_shows_the_live_mask_again_unless_a_person_hid_it(viewer, live, workspace,
                                                                                        person):
    def segment():
        workspace.annotate.bench.segmenting.start()
        person.wait(lambda: not workspace.session.segmentation.busy)

    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    segment()
    assert visible(viewer) == ["cells", "cells classes", "cells annotation"]
    paint(viewer, person, live, 1, [(100, 10), (100, 40)])
    assert visible(viewer) == ["cells", "cells live", "cells annotation"]
    viewer.layers["cells live"].visible = False
    segment()
    paint(viewer, person, live, 1, [(100, 60), (100, 80)])
    assert visible(viewer) == ["cells", "cells classes", "cells annotation"]
    viewer.layers["cells live"].visible = True
    segment()
    for shown in (True, False):
        viewer.layers["cells live"].visible = shown
    paint(viewer, person, live, 1, [(100, 90), (100, 110)])
    assert visible(viewer) == ["cells", "cells classes", "cells annotation"]


def test_two_windows_do_not_mix(viewer, live, person, image, make_napari_viewer):
    second = make_napari_viewer(show=True)
    second.add_image(image[:, ::-1].copy(), name="cells")
    other = workbench_for(second)
    other.look_around()
    person.wait(lambda: other.session.models)
    other.live.switch(True)
    person.wait(lambda: "two classes" in other.session.live.notice.text)
    painter = type(person)(second)
    painter.drag([(40, 10), (40, 140)])
    second.layers["cells annotation"].selected_label = 2
    painter.drag([(20, 120), (20, 130)])
    person.wait(lambda: other.live.answered > 0 and is_answered(other.live))
    assert second.layers["cells live"].data.all()
    assert not mask(viewer).any()
    other.live.switch(False)


# ------------------------------------------------------------------------------------------------- learning


@pytest.fixture
def tuned(tiny_model, monkeypatch):
    """A model that learning gives, with a perfect score, as soon as both classes have strokes."""
    model = tiny_model("tuned", seed=5)

    def learn(base, images, inbox, config, *, classes, stop, **_):
        given, measured = None, 0
        while not stop.stopped:
            generation, labels = inbox.take()
            if given is None and generation and len(np.unique(labels[0])) == 3:
                every = collect_annotation(images, labels, classes)
                some = collect_annotation(images, [np.where(np.arange(150) > 20, a, 0) for a in labels], classes)
                yield StrokesTaken(generation, 10, 10, "", False, every.n_strokes, Split(every, some, ""))
                yield Improved(generation, 1, model, 1.01, None, 0.2)
                given = model
            elif given is not None and generation > measured:
                yield ContinuousScored(generation, 2, 0.5, None, 1.01, 0.2)
            measured = generation
            inbox.wait_for_newer(generation, 0.05)
        return given

    monkeypatch.setattr(continuous, "learn_continuously", learn)
    return model


@pytest.fixture
def tuned_live(tuned, live, viewer, workspace, person):
    """Live with two classes painted, and a tuned model that scores better."""
    paint_two_classes(viewer, person, live)
    person.wait(lambda: "Tuned model: 1.01" in workspace.session.live.notice.text)
    return live


def test_the_mask_is_the_tuned_models_where_it_scores_better_and_the_model_is_kept(viewer, workspace, image, person,
                                                                                   tuned, tuned_live):
    session = workspace.session
    expected = segment_array(tuned, Planes(image, "YX"))
    person.wait(lambda: np.array_equal(mask(viewer), expected))
    made = layers.note_of(viewer.layers["cells live"])["provenance"]
    assert (made["made_by"], made["base"], made["classes"]) == ("live", "tiny", ["background", "cell", "boundary"])
    # On the disk already: the window may close now.
    kept_file = find_model("cells live")
    assert read_model(kept_file).weights_hash == tuned.weights_hash
    person.click(workspace.annotate.live.button)
    person.wait(lambda: session.model == "cells live")
    assert find_model("cells live") == kept_file
    assert "saved as 'cells live'" in session.live.notice.text
    (kept,) = session.timeline
    assert (kept.name, kept.n_strokes) == ("cells live", 2)
    person.click(workspace.segment.run.button)
    person.wait(lambda: not session.segmentation.busy)
    assert session.segmentation.notice.kind == "success"
    assert visible(viewer) == ["cells", "cells classes", "cells annotation"]


def test_a_model_that_was_chosen_while_live_was_on_stays_chosen(workspace, person, tuned_live):
    session = workspace.session
    session.choose_model("cells")
    person.click(workspace.annotate.live.button)
    person.wait(lambda: "saved as 'cells live'" in session.live.notice.text)
    assert session.model == "cells"
    assert "'cells', chosen meanwhile, stays chosen" in session.live.notice.text


def test_live_and_objects_hide_each_other(viewer, workspace, image, person, specks):
    viewer.add_image(image, name="cells")
    viewer.reset_view()
    QTest.qWait(50)
    session, bench = workspace.session, workspace.annotate.bench
    bench.segmenting.start("layer", "objects")
    person.wait(lambda: not session.segmentation.busy)
    person.click(workspace.annotate.live.button)
    person.wait(lambda: "two classes" in session.live.notice.text)
    paint_two_classes(viewer, person, bench.live)
    person.wait(lambda: "cells live" in visible(viewer))
    assert "cells objects" not in visible(viewer)
    bench.proofreading.start(str(viewer.layers["cells objects"].unique_id))
    person.wait(lambda: "cells objects" in visible(viewer))
    assert "cells live" not in visible(viewer)


def test_numpy_has_one_thread_while_live_is_on(live):
    assert one_blas_thread.is_held_by(live)
    live.switch(False)
    assert not one_blas_thread.is_held_by(live)
    live.switch(True)
    assert one_blas_thread.is_held_by(live)
    live.close()
    assert not one_blas_thread.is_held_by(live)


def test_the_mask_is_repainted_when_all_in_view_is_answered_or_after_a_while(viewer, live, monkeypatch):
    repaints = []
    monkeypatch.setattr(live._mask, "refresh", lambda **_: repaints.append(live._mask.data[0, 0]))

    def answer(value, completes_view):
        place = slice(0, 10), slice(0, 10)
        live._on_event(LiveTile(live._generation, (), *place, np.full((10, 10), value, np.uint8), False,
                                completes_view, 0.0))
        live._on_drained()

    answer(1, False)
    assert repaints == []
    answer(2, True)
    assert repaints == [2]
    QTest.qWait(REPAINT_MS + 100)
    assert repaints == [2]
    answer(3, False)
    QTest.qWait(REPAINT_MS + 100)
    assert repaints == [2, 3]


@pytest.fixture
def learning(image, tiny, monkeypatch):
    """Runs of learning that yield what the test wants, and what of them lies in the library: name and weights."""
    kept = KeptModel("cells live")

    def run(events, result):
        def learn(*_, **__):
            yield from events
            return result

        monkeypatch.setattr(continuous, "learn_continuously", learn)
        task = LearnTask(tiny, (Planes(image, "YX"),), DEFAULT_CLASSES, TrainingConfig(), "cpu",
                         continuous.StrokeInbox(), PauseToken(), kept)
        return learn_strokes(task, StopToken())

    def found():
        return [(entry.name, read_model(entry.path).weights_hash) for entry in list_models()
                if entry.name.startswith("cells live")]

    return run, found


def better(model):
    return Improved(1, 1, model, 0.9, None, 0.2)


def test_the_library_holds_the_newest_better_model_and_none_of_strokes_that_are_gone(learning, tiny_model):
    run, found = learning
    one, two, three = (tiny_model("tuned", seed=seed) for seed in (5, 6, 7))
    events = run([better(one), NothingToLearn(2, "no strokes"), better(two), better(three)], three)
    seen = [found() for _ in events]
    assert seen == [[("cells live", one.weights_hash)], [], [("cells live", two.weights_hash)],
                    [("cells live", three.weights_hash)]]
    assert found() == seen[-1]


def test_learning_that_begins_anew_leaves_no_second_model(learning, tiny_model):
    run, found = learning
    first = run([better(tiny_model("tuned", seed=5))], None)
    next(first)
    first.close()
    assert len(found()) == 1
    second = run([NothingToLearn(1, "no strokes"), better(tiny_model("tuned", seed=6))], None)
    next(second)
    assert found() == []
    next(second)
    assert [name for name, _ in found()] == ["cells live"]


def test_a_full_disk_keeps_nobody_from_learning_and_what_could_be_written_is_the_result(learning, tiny_model,
                                                                                         small_disk):
    run, found = learning
    one, two = (tiny_model("tuned", seed=seed) for seed in (5, 6))
    events = run([better(one), better(two)], two)
    next(events)
    with small_disk(1000):
        next(events)
        with pytest.raises(StopIteration) as end:
            next(events)
    assert found() == [("cells live", one.weights_hash)]
    assert end.value.value.name == "cells live"


@pytest.mark.parametrize("learning", ["learns", "rests"])
def test_fine_tuning_on_request_goes_before_learning_beside(learning, viewer, live, workspace, person):
    told = []
    person.wait(lambda: live._learning._job is not None)
    live._learning._job.received.connect(told.append)
    paint_two_classes(viewer, person, live)
    person.wait(lambda: workspace.session.why_not_train() == "")
    if learning == "rests":  # three steps are all it makes here
        person.wait(lambda: [event for event in told if isinstance(event, ContinuousStep) and event.step == 3])
        QTest.qWait(300)
    workspace.annotate.bench.fine_tuning.start("mine")
    person.wait(lambda: not workspace.session.training.busy)
    assert workspace.session.find_model("mine") is not None
    assert live.is_on


def test_keep_learning_can_be_switched_off_and_on_while_the_mask_goes_on(viewer, live, workspace, person):
    config = workspace.annotate.live.config
    person.wait(lambda: live._learning._job is not None)
    config.valueChanged.emit(config.value().replace(learn=False))
    person.wait(lambda: live._learning._job is None)
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live) and "Instant answer" in live._run.notice.text)
    config.valueChanged.emit(config.value().replace(learn=True))
    person.wait(lambda: live._learning._job is not None)
