"""Which device computes, chosen by launching a real convolution, and in which precision.

Being compiled for CUDA or having a GPU in the machine says little; a kernel that gives the right answer says all.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from napari_cellbrush.config import DeviceName
from napari_cellbrush.errors import DeviceError

#: Half precision must beat float32 by this factor before it is used on a CPU.
_WORTHWHILE = 1.2


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


@functools.cache
def choose_device(name: DeviceName = "auto") -> Device:
    """The fastest device that works, or the one asked for.

    Raises
    ------
    DeviceError
        If a device was asked for by name and a convolution on it fails.
    """
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
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out; most are plain RuntimeErrors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


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
    return Device("cuda", properties.name, int(properties.total_memory), half, channels_last=True)


def _mps() -> Device:
    return Device("mps", "Apple GPU", int(torch.mps.recommended_max_memory()), None, channels_last=False)


def _cpu(reason: str) -> Device:
    slow, fast = _convolution_seconds(torch.float32), _convolution_seconds(torch.bfloat16)
    half = torch.bfloat16 if fast * _WORTHWHILE < slow else None
    sentence = f"No GPU is used: {reason}" if reason else ""
    return Device("cpu", platform.processor() or "CPU", None, half, channels_last=True, fallback_reason=sentence)


def _convolution_seconds(dtype: torch.dtype) -> float:
    """The best of a few convolutions as the network's middle levels have them; about 10 ms in all."""
    image = torch.randn(1, 64, 96, 96, dtype=dtype).to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(64, 64, 3).to(dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(5):
            began = time.perf_counter()
            convolution(image)
            seconds.append(time.perf_counter() - began)
    return min(seconds)
