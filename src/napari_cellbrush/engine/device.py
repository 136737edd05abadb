"""Which device computes, chosen by launching a real convolution, and in which precision.

Being compiled for CUDA or having a GPU in the machine says little; a kernel that gives the right answer says all.
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from napari_cellbrush.config import DeviceName
from napari_cellbrush.errors import DeviceError

#: Half precision must beat float32, and channels first channels last, by this factor before it is used.
_WORTHWHILE = 1.2
#: Measurements that run side by side disturb each other, and may choose differently.
_choosing = threading.Lock()


@dataclass(frozen=True)
class Device:
    """Where to compute, and how."""

    kind: str
    name: str
    memory_bytes: int | None
    #: Reduced precision that is faster here; None where float32 is.
    half: torch.dtype | None
    channels_last: bool
    #: Why a faster device is not used, as a sentence for the user; empty if there is nothing to say.
    fallback_reason: str = ""

    @property
    def torch_device(self) -> torch.device:
        """The same for torch."""
        return torch.device(self.kind)

    @property
    def precision(self) -> str:
        """For the user: "bfloat16", "float16" or "float32"."""
        return "float32" if self.half is None else str(self.half).removeprefix("torch.")

    @property
    def description(self) -> str:
        """One line for the dock."""
        memory = f", {self.memory_bytes / 2**30:.0f} GB" if self.memory_bytes else ""
        return f"{self.name} ({self.kind.upper()}{memory}, {self.precision})"


def choose_device(name: DeviceName = "auto") -> Device:
    """The fastest device that works, or the one asked for; the same for as long as the process lives.

    Raises
    ------
    DeviceError
        If a device was asked for by name and a convolution on it fails.
    """
    with _choosing:
        return _choice(name)


@functools.cache
def _choice(name: DeviceName) -> Device:
    if name == "cpu":
        return _cpu("")
    if name != "auto":
        problem = _problem(name)
        if problem:
            raise DeviceError(f"The device '{name}' cannot be used: {problem}", "Choose 'auto' or 'cpu'")
        return _cuda() if name == "cuda" else _mps()
    problems = {kind: _problem(kind) for kind in ("cuda", "mps")}
    if not problems["cuda"]:
        return _cuda()
    if not problems["mps"]:
        return _mps()
    return _cpu(problems["cuda"] if platform.system() != "Darwin" else problems["mps"])


def free_memory(device: Device) -> int:
    """Bytes that can be allocated now."""
    if device.kind == "cuda":
        # What torch holds without using it is free to torch.
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + unused
    return int(psutil.virtual_memory().available)


#: How torch and the libraries under it say that memory ran out, in lower case.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out; most are plain RuntimeErrors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


@contextlib.contextmanager
def autocast(device: Device) -> Iterator[None]:
    """Run convolutions in the device's reduced precision, if it has one. Thread-local, so enter it in the worker."""
    with torch.autocast(device.kind, device.half or torch.bfloat16, enabled=device.half is not None):
        yield


def _problem(kind: str) -> str:
    """Why a device cannot be used; empty if a convolution on it gives what the CPU gives."""
    available = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if not available:
        if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
            return "this build of PyTorch has no GPU support"
        return f"PyTorch finds no {kind.upper()} device"
    try:
        image, weight = _example()
        found = torch.nn.functional.conv2d(image.to(kind), weight.to(kind)).cpu()
        expected = torch.nn.functional.conv2d(image, weight)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "" if torch.allclose(found, expected, rtol=1e-2, atol=1e-2) else "it gives wrong results"


def _example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 8, 16, 16, generator=generator), torch.randn(8, 8, 3, 3, generator=generator)


def _cuda() -> Device:
    properties = torch.cuda.get_device_properties(0)
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return Device("cuda", properties.name, int(properties.total_memory), *_fastest("cuda", half))


def _mps() -> Device:
    return Device("mps", "Apple GPU", int(torch.mps.recommended_max_memory()), None, channels_last=False)


def _cpu(reason: str) -> Device:
    sentence = f"No GPU is used: {reason}" if reason else ""
    return Device("cpu", _cpu_name(), int(psutil.virtual_memory().total), *_fastest("cpu", torch.bfloat16), sentence)


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "CPU"


@functools.cache
def _fastest(kind: str, half: torch.dtype) -> tuple[torch.dtype | None, bool]:
    """The reduced precision, if it is worth it, and whether channels should come last: measured, not read from flags.

    A processor may have half precision in its list of instructions and yet take ten times as long with it. Channels
    come last unless that is clearly slower: another order sums in another order, so chance must not choose it.
    """
    plain, last, reduced = _convolution_seconds(kind, ((torch.float32, False), (torch.float32, True), (half, True)))
    if reduced * _WORTHWHILE < min(plain, last):
        return half, True
    return None, last < plain * _WORTHWHILE


def _convolution_seconds(kind: str, variants: Sequence[tuple[torch.dtype, bool]]) -> list[float]:
    """Seconds of a convolution as the network's second level has them, per type and order; about 50 ms in all.

    Variants take turns and the best of each counts. On a CPU one thread measures its own time, so that other programs
    disturb it little: several threads wait for each other, and for whoever holds a core.
    """
    batch, size = (4, 256) if kind == "cuda" else (1, 96)
    clock = time.perf_counter if kind == "cuda" else time.thread_time
    runs = [_convolution(kind, dtype, last, batch, size) for dtype, last in variants]
    seconds = [math.inf] * len(runs)
    with torch.inference_mode(), _one_thread():
        for turn in range(6):
            for position, run in enumerate(runs):
                began = clock()
                run()
                # The first turn only makes libraries choose and compile their kernels.
                seconds[position] = min(seconds[position], clock() - began if turn else math.inf)
    return seconds


def _convolution(kind: str, dtype: torch.dtype, channels_last: bool, batch: int, size: int) -> Callable[[], None]:
    order = torch.channels_last if channels_last else torch.contiguous_format
    image = torch.ones(batch, 64, size, size, dtype=dtype, device=kind).to(memory_format=order)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype, device=kind).to(memory_format=order)

    def run() -> None:
        torch.nn.functional.conv2d(image, weight)
        if kind == "cuda":
            torch.cuda.synchronize()

    return run


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
