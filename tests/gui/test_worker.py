from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Generator
from typing import Any

import pytest
from qtpy.QtTest import QTest
from threadpoolctl import threadpool_info, threadpool_limits

from napari_cellbrush.errors import CellbrushError, ImageError, OutOfMemory
from napari_cellbrush.events import StopToken
from napari_cellbrush.napari_ui.worker import NICENESS, QUEUE_LENGTH, Job, WorkThread, _OneBlasThread, close_all


class Ears:
    """Hears all signals of a job, and in which thread."""

    def __init__(self, job: Job) -> None:
        self.events: list[Any] = []
        self.ends: list[tuple[str, Any]] = []
        self.threads: set[threading.Thread] = set()
        job.received.connect(self._event)
        for name in ("finished", "stopped", "failed"):
            getattr(job, name).connect(lambda value, name=name: self._end(name, value))

    def _event(self, event: Any) -> None:
        self.events.append(event)
        self.threads.add(threading.current_thread())

    def _end(self, name: str, value: Any) -> None:
        self.ends.append((name, value))
        self.threads.add(threading.current_thread())


def run(work: Any, *, exclusive: bool = False, seconds: float = 10) -> Ears:
    job = Job(work, "testing", exclusive=exclusive)
    ears = Ears(job)
    job.start()
    wait(lambda: ears.ends, seconds)
    QTest.qWait(250)  # a second end would come with a later look
    return ears


def wait(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        QTest.qWait(5)


def test_all_events_arrive_in_order_and_in_the_windows_thread(qapp):
    def work(stop: StopToken) -> Generator[int, None, str]:
        yield from range(3 * QUEUE_LENGTH)
        return "result"

    ears = run(work)
    assert ears.events == list(range(3 * QUEUE_LENGTH))
    assert ears.ends == [("finished", "result")]
    assert ears.threads == {threading.main_thread()}


@pytest.mark.parametrize("position", [0, 1, 3], ids=["first", "middle", "last"])
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("bad"), MemoryError(), KeyError("k"),
                                   RuntimeError("mat1 and mat2 shapes cannot be multiplied"), StopIteration(),
                                   SystemExit(1), GeneratorExit()], ids=lambda e: type(e).__name__ + str(e)[:4])
def test_any_error_ends_in_one_failure_with_a_sentence(qapp, error, position, caplog):
    def work(stop: StopToken) -> Generator[int, None, None]:
        for step in range(4):
            if step == position:
                raise error
            yield step

    ears = run(work)
    assert ears.events == list(range(position))
    assert [name for name, _ in ears.ends] == ["failed"]
    problem = ears.ends[0][1]
    assert isinstance(problem, CellbrushError)
    assert "testing" in str(problem)
    assert len(problem.remedy) > 20
    assert "Traceback" in caplog.text
    assert isinstance(problem, OutOfMemory) == ("memory" in str(error) or isinstance(error, MemoryError))


def test_errors_on_purpose_keep_their_own_words(qapp):
    def work(stop: StopToken) -> Generator[int, None, None]:
        yield 1
        raise ImageError("The image is constant", "Choose another")

    assert str(run(work).ends[0][1]) == "The image is constant. Choose another."


def test_stop_ends_as_stopped_with_what_there_is(qapp):
    def work(stop: StopToken) -> Generator[int, None, str]:
        step = 0
        while not stop.stopped:
            time.sleep(0.01)
            step += 1
            yield step
        return "the best so far"

    job = Job(work, "testing")
    ears = Ears(job)
    job.start()
    wait(lambda: len(ears.events) > 3)
    began = time.monotonic()
    job.stop()
    wait(lambda: ears.ends)
    assert time.monotonic() - began < 1
    assert ears.ends == [("stopped", "the best so far")]


def test_a_slow_window_makes_the_thread_wait_instead_of_filling_memory(qapp):
    made = []

    def work(stop: StopToken) -> Generator[int, None, None]:
        for step in range(10 * QUEUE_LENGTH):
            made.append(step)
            yield step

    job = Job(work, "testing")
    ears = Ears(job)
    job.start()
    time.sleep(0.5)  # no event loop: nobody takes anything
    assert len(made) <= QUEUE_LENGTH + 1
    wait(lambda: ears.ends)
    assert len(ears.events) == 10 * QUEUE_LENGTH


def test_after_close_nothing_is_heard_and_the_thread_ends(qapp):
    def work(stop: StopToken) -> Generator[int, None, None]:
        while True:  # never looks at the token
            time.sleep(0.01)
            yield 1

    job = Job(work, "testing")
    ears = Ears(job)
    job.start()
    wait(lambda: ears.events)
    thread = job.thread_side
    job.close()
    n_events = len(ears.events)
    assert thread.join(1)
    QTest.qWait(250)
    assert len(ears.events) == n_events
    assert ears.ends == []


def test_closing_waits_for_all_threads_together_and_not_for_ever(qapp, monkeypatch):
    monkeypatch.setattr("napari_cellbrush.napari_ui.worker.CLOSING_S", 0.3)
    release = threading.Event()

    def work(stop: StopToken) -> Generator[int, None, None]:
        yield 1
        release.wait(10)

    jobs = [Job(work, "testing") for _ in range(3)]
    for job in jobs:
        job.start()
    wait(lambda: all(job.thread_side.outcome is None for job in jobs))
    QTest.qWait(150)
    began = time.monotonic()
    close_all([job.thread_side for job in jobs])
    assert time.monotonic() - began < 1
    release.set()


def test_exclusive_jobs_take_turns_and_a_waiting_one_can_be_stopped(qapp):
    running = []

    def work(stop: StopToken) -> Generator[int, None, None]:
        running.append(1)
        assert len(running) == 1
        for _ in range(20):
            time.sleep(0.01)
            yield 1
            if stop.stopped:
                break
        running.pop()

    first, second, third = (Job(work, "testing", exclusive=True) for _ in range(3))
    ears = [Ears(job) for job in (first, second, third)]
    first.start()
    wait(lambda: running)
    second.start()
    third.start()
    third.stop()
    wait(lambda: all(e.ends for e in ears))
    assert [e.ends[0][0] for e in ears] == ["finished", "finished", "stopped"]
    assert ears[2].events == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_is_over_holds_on_to_nothing(qapp, fails):
    class Tensor:
        pass

    references = []

    def work(stop: StopToken) -> Generator[int, None, None]:
        big = Tensor()
        references.append(weakref.ref(big))
        yield 1
        if fails:
            raise RuntimeError("out of memory")

    ears = run(work)
    gc.collect()
    assert ears.ends
    assert references[0]() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows priorities of single threads")
def test_a_thread_that_computes_for_long_lets_the_window_go_first():
    def look(stop):
        yield os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found = {}
    for exclusive in (True, False):
        thread = WorkThread(look, "looking", exclusive)
        thread.start()
        assert thread.join(10)
        found[exclusive] = thread.take()[0]
    assert found[True] == found[False] + NICENESS == os.getpriority(os.PRIO_PROCESS, 0) + NICENESS


def test_a_patient_job_lets_others_have_the_device_between_two_events_and_goes_on_afterwards():
    order = []

    def learn(stop):
        while not stop.stopped:
            order.append("learn")
            time.sleep(0.02)
            yield
        return "best"

    def segment(stop):
        for _ in range(3):
            order.append("segment")
            time.sleep(0.02)
            yield

    learning, segmenting = WorkThread(learn, "learning", True, patient=True), WorkThread(segment, "segmenting", True)
    learning.start()
    time.sleep(0.1)
    segmenting.start()
    assert segmenting.join(10)
    n_before = order.count("learn")
    deadline = time.monotonic() + 10
    while order.count("learn") < n_before + 2 and time.monotonic() < deadline:
        learning.take()
        time.sleep(0.02)
    learning.stop.stop()
    assert learning.join(10)
    assert learning.outcome.result == "best"
    first = order.index("segment")
    assert order[first : first + 3] == ["segment"] * 3
    assert order[-1] == "learn"


def test_blas_has_one_thread_while_anybody_holds_it() -> None:
    class Holder:
        pass

    def n_threads() -> set[int]:
        return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}

    one_blas_thread, first, second, gone = _OneBlasThread(), Holder(), Holder(), Holder()
    with threadpool_limits(limits=2, user_api="blas"):
        for holder in (first, second, second, gone):
            one_blas_thread.hold(holder)
        del gone, holder
        one_blas_thread.release(first)
        assert n_threads() == {1}
        one_blas_thread.hold(Holder())
        one_blas_thread.release(second)
        assert n_threads() == {2}
        one_blas_thread.release(second)
        assert n_threads() == {2}
