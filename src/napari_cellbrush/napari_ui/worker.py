"""The only user of threads: runs a generator of the engine beside the window and hands over what it yields.

The thread holds no Qt object and no layer, and the window never waits for it: events travel through a short queue
(a full one makes the thread wait) that a timer of the window empties. Every job ends in exactly one of finished,
stopped and failed, whatever the generator raises: a RuntimeError, as most of torch's errors are, is no exception.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_cellbrush.errors import CellbrushError, DeviceError, OutOfMemory
from napari_cellbrush.events import StopToken

#: What a job does, given the token that stops it: yields events, returns its result.
Work = Callable[[StopToken], Generator[Any, None, Any]]

#: Milliseconds between two looks into the queue; layers are repainted at most this often.
DRAIN_MS = 100
#: Events that may wait; the thread pauses when the window is slower than it is.
QUEUE_LENGTH = 32
#: Milliseconds of one look that may go into handling events, so that painting stays fluent.
DRAIN_BUDGET_MS = 40
#: Seconds that a closing window waits for its threads.
CLOSING_S = 0.4

#: How much lower the priority of threads is that compute for long, in steps of ``nice``.
NICENESS = 5

_log = logging.getLogger(__name__)
#: Seconds between two looks at whether the device is free.
_LOOK_EVERY_S = 0.1


class _Turn:
    """Whose turn it is, and whether anybody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._n_waiting = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits."""
        return self._n_waiting > 0

    def take(self, is_ending: Callable[[], bool]) -> bool:
        """Wait for the turn; False if whoever waits is to end before it comes."""
        self._count(1)
        try:
            while not self._lock.acquire(timeout=_LOOK_EVERY_S):
                if is_ending():
                    return False
            return True
        finally:
            self._count(-1)

    def give(self) -> None:
        """Let the next one have it."""
        self._lock.release()

    def _count(self, change: int) -> None:
        with self._counting:
            self._n_waiting += change


#: Two trainings at once would be slower than one after the other, and some devices crash.
_device_turn = _Turn()


@dataclass(frozen=True)
class _Outcome:
    result: Any = None
    error: CellbrushError | None = None


class WorkThread:
    """The thread's side of a job; plain Python, so it may outlive every window."""

    def __init__(self, work: Work, doing: str, exclusive: bool, to_the_end: bool = False,
                 patient: bool = False) -> None:
        self.stop = StopToken()
        self.outcome: _Outcome | None = None
        self._events: queue.Queue[Any] = queue.Queue(QUEUE_LENGTH)
        self._work = work
        self._doing = doing
        self._exclusive = exclusive
        self._to_the_end = to_the_end
        self._patient = patient and exclusive
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"cellbrush: {doing}", daemon=True)

    def start(self) -> None:
        """Begin."""
        _process.threads.add(self)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.outcome is not None and not self._thread.is_alive()

    def take(self) -> list[Any]:
        """Everything that waits now."""
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return events

    def abandon(self) -> None:
        """Nobody listens any more: stop soon, drop what is left."""
        self.stop.stop()
        self._abandoned.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait, without an end if no number is given; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def keeps_work(self) -> bool:
        """Whether something would be lost if it were cut off, such as a file that is being written."""
        return self._to_the_end

    @property
    def _unwanted(self) -> bool:
        """Whether nobody listens any more, because the window is closed or the process is about to end."""
        return self._abandoned.is_set() or not threading.main_thread().is_alive()

    def _run(self) -> None:
        if self._exclusive:
            _stand_back()
        try:
            self.outcome = _Outcome(result=self._exhaust())
        except CellbrushError as error:
            _log.info("Ended while %s", self._doing, exc_info=True)
            self.outcome = _Outcome(error=_freed(error))
        except BaseException as error:  # nobody above in this thread could tell the person
            _log.exception("Unexpected error while %s", self._doing)
            self.outcome = _Outcome(error=_in_words(_freed(error), self._doing))

    def _exhaust(self) -> Any:
        # What the work holds on to (images, a model) must go when it ends, not when the job is forgotten.
        work, self._work = self._work, _nothing
        if not self._exclusive:
            return self._drive(work)
        if not _device_turn.take(self._is_ending):
            return None
        try:
            return self._drive(work)
        finally:
            _device_turn.give()

    def _is_ending(self) -> bool:
        return self.stop.stopped or self._unwanted

    def _let_others_go_first(self) -> None:
        """Give the device to whoever waits for it, and go on afterwards."""
        if _device_turn.is_wanted:
            _device_turn.give()
            while _device_turn.is_wanted and not self._is_ending():
                time.sleep(_LOOK_EVERY_S)
            # Who is to end computes nothing any more; but the turn is given back once in any case.
            _device_turn.take(lambda: False)

    def _drive(self, work: Work) -> Any:
        generator = work(self.stop)
        try:
            while self._to_the_end or not self._unwanted:
                self._post(next(generator))
                if self._patient:
                    self._let_others_go_first()
        except StopIteration as end:
            return end.value
        finally:
            generator.close()
        return None

    def _post(self, event: Any) -> None:
        while not self._unwanted:
            try:
                self._events.put(event, timeout=0.1)
                return
            except queue.Full:
                continue


class Job(QObject):
    """A generator that runs in its own thread.

    Parameters
    ----------
    work
        Called in the thread with a :class:`~napari_cellbrush.events.StopToken`.
    doing
        What it does, for messages: "fine-tuning".
    exclusive
        Whether it computes on the device, which only one job at a time may do.
    to_the_end
        Whether it goes on when its window closes, which waits for it as long as for others.
    patient
        Whether other jobs that wait for the device go first, between two of its events.
    parent
        Qt parent; a job dies with it.
    """

    #: One event of the generator.
    received = Signal(object)
    #: A group of events was received: time to repaint.
    drained = Signal()
    #: The generator ran to its end, and what it returned.
    finished = Signal(object)
    #: It ended because :meth:`stop` was called, and what it returned nevertheless.
    stopped = Signal(object)
    #: It raised; a :class:`~napari_cellbrush.errors.CellbrushError` with a sentence for the person.
    failed = Signal(object)

    def __init__(self, work: Work, doing: str, *, exclusive: bool = False, to_the_end: bool = False,
                 patient: bool = False, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.thread_side = WorkThread(work, doing, exclusive, to_the_end, patient)
        self._waiting: list[Any] = []
        self._timer = QTimer(self)
        self._timer.setInterval(DRAIN_MS)
        self._timer.timeout.connect(self._drain)

    def start(self) -> None:
        """Start the thread."""
        self.thread_side.start()
        self._timer.start()

    def stop(self) -> None:
        """Ask the generator to end with what it has."""
        self.thread_side.stop.stop()

    def close(self) -> None:
        """End without any further signal."""
        self._timer.stop()
        self.thread_side.abandon()

    def _drain(self) -> None:
        # In this order: once there is an outcome, nothing more can enter the queue.
        outcome = self.thread_side.outcome
        self._waiting += self.thread_side.take()
        began = time.perf_counter()
        n_handled = 0
        for event in self._waiting:
            self.received.emit(event)
            n_handled += 1
            late = 1000 * (time.perf_counter() - began) > DRAIN_BUDGET_MS
            if late or not self._timer.isActive():
                break
        del self._waiting[:n_handled]
        if n_handled:
            self.drained.emit()
        if outcome is not None and not self._waiting and self._timer.isActive():
            self._timer.stop()
            self._end(outcome)

    def _end(self, outcome: _Outcome) -> None:
        if outcome.error is not None:
            self.failed.emit(outcome.error)
        elif self.thread_side.stop.stopped:
            self.stopped.emit(outcome.result)
        else:
            self.finished.emit(outcome.result)
        self.deleteLater()


def close_all(threads: list[WorkThread]) -> None:
    """End threads whose window is gone, waiting for all of them together no longer than :data:`CLOSING_S`."""
    for thread in threads:
        thread.abandon()
    deadline = time.monotonic() + CLOSING_S
    for thread in threads:
        if not thread.join(max(0.0, deadline - time.monotonic())):
            _log.info("A thread was still computing when its window closed")
    threads.clear()


def close_with(window: QObject, threads: list[WorkThread]) -> None:
    """End threads as soon as their window is destroyed; plain Python, because nothing of Qt is left by then."""
    def close(_: Any = None) -> None:
        _process.closers.discard(close)
        close_all(threads)

    # Held here, because PyQt calls it even after Python's collector has cleared it, and crashes.
    _process.closers.add(close)
    window.destroyed.connect(close)


class _OneBlasThread:
    """While anybody holds it, numpy's BLAS has one thread; only the window's thread may hold and release it.

    Its threads wait for each other by spinning: beside a window that draws, small products took ten times as long
    (measured). Who is gone without a word holds it no longer.
    """

    def __init__(self) -> None:
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._limit = contextlib.ExitStack()
        self._is_limited = False

    def hold(self, holder: object) -> None:
        """Limit it, unless somebody does already."""
        from threadpoolctl import threadpool_limits

        self._holders.add(holder)
        if not self._is_limited:
            self._is_limited = True
            self._limit.enter_context(threadpool_limits(limits=1, user_api="blas"))

    def release(self, holder: object) -> None:
        """Give it its threads back, unless somebody else holds it still."""
        self._holders.discard(holder)
        if not self._holders:
            self._is_limited = False
            self._limit.close()

    def is_held_by(self, holder: object) -> bool:
        """Whether that one holds it."""
        return holder in self._holders


one_blas_thread = _OneBlasThread()


class _Process:
    """All threads of this process, and its end.

    A thread that the interpreter cuts off inside of torch takes the whole process down with it, so the interpreter
    waits for all. But nobody should wait for a step of a training that takes long once the program was quit.
    """

    def __init__(self) -> None:
        self.threads: weakref.WeakSet[WorkThread] = weakref.WeakSet()
        self.closers: set[Callable[..., None]] = set()
        self.was_quit = False
        atexit.register(self._end)

    def _end(self) -> None:
        for thread in list(self.threads):
            if thread.keeps_work or not self.was_quit:
                thread.join()
        if not all(thread.join(0) for thread in list(self.threads)):
            # What is to be kept is on the disk by now, and every file is written whole or not at all.
            logging.shutdown()
            for stream in filter(None, (sys.stdout, sys.stderr)):  # a program without a console has none
                stream.flush()
            os._exit(0)


_process = _Process()


def note_quit() -> None:
    """The person quit the program: when it ends, no step of a run is waited for, only files being written."""
    _process.was_quit = True


@contextlib.contextmanager
def memory_in_words(doing: str) -> Iterator[None]:
    """For copies that the window itself makes: too little memory becomes a sentence, as it does in a job."""
    try:
        yield
    except MemoryError as error:
        raise _in_words(error, doing) from error


def _stand_back() -> None:
    """Let the window's thread go first where cores are few; only Linux knows priorities of single threads."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


def _nothing(stop: StopToken) -> Generator[Any, None, None]:
    yield from ()


def _freed(error: BaseException) -> Any:
    """The error without the local variables of its frames, which would keep tensors alive on the device."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    return error


def _in_words(error: BaseException, doing: str) -> CellbrushError:
    detail = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, MemoryError):
        return OutOfMemory(f"The memory ran out while {doing}{': ' if detail else ''}{detail}",
                           "Close other programs or layers, or work on a smaller part of the image")
    if "out of memory" in detail.lower():
        return OutOfMemory(f"The memory ran out while {doing}", "Close other programs, choose a smaller input or tile "
                           "size in the advanced settings, or choose the CPU as device")
    if isinstance(error, ImportError | OSError) and "torch" in str(error).lower():
        return DeviceError(f"PyTorch could not be loaded: {detail}", "Install it again: pip install --force-reinstall "
                           "torch")
    kind = type(error).__name__
    return CellbrushError(f"Something unexpected went wrong while {doing} ({kind}{': ' if detail else ''}{detail})",
                          "Nothing of yours is lost, try again; if it comes back, report it with the log")
