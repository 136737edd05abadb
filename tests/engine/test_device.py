from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from napari_cellbrush.engine import device as device_module
from napari_cellbrush.engine.device import autocast, choose_device, free_memory, is_out_of_memory
from napari_cellbrush.errors import DeviceError


@pytest.fixture(autouse=True)
def forget_choices() -> None:
    device_module._choice.cache_clear()
    device_module._fastest.cache_clear()


def test_the_cpu_is_always_there_and_says_what_it_is() -> None:
    device = choose_device("cpu")
    assert device.kind == "cpu"
    assert device.name
    assert device.memory_bytes > 2**28
    assert device.precision in device.description


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_fallback_to_the_cpu_says_why() -> None:
    device = choose_device("auto")
    if device.kind == "cpu":
        assert device.fallback_reason.startswith("No GPU is used: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there_is_refused_with_a_remedy() -> None:
    with pytest.raises(DeviceError, match=r"'cuda' cannot be used.*'cpu'"):
        choose_device("cuda")


def test_a_gpu_that_is_listed_but_launches_no_kernel_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may list a card for which the build has no kernels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", _no_kernel_image)
    assert "no kernel image" in device_module._problem("cuda")


def _no_kernel_image(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


@pytest.mark.parametrize(("seconds", "half", "channels_last"), [
    ([1.0, 1.0, 0.5], torch.bfloat16, True),  # half precision pays
    ([1.0, 1.0, 0.95], None, True),  # too little to be worth the rounding
    ([1.0, 1.1, 0.95], None, True),  # chance must not choose the order of channels
    ([1.0, 0.4, 0.39], None, True),  # it is the order of channels that pays
    ([1.0, 2.0, 9.0], None, False),  # the instructions exist, but are slow
])
def test_precision_and_order_are_those_measured_to_be_fastest(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], half: torch.dtype | None, channels_last: bool,
) -> None:
    monkeypatch.setattr(device_module, "_convolution_seconds", lambda kind, variants: seconds)
    device = choose_device("cpu")
    assert (device.half, device.channels_last) == (half, channels_last)


def test_the_measurement_runs_every_variant_and_takes_a_fraction_of_a_second() -> None:
    began = time.perf_counter()
    seconds = device_module._convolution_seconds("cpu", ((torch.float32, False), (torch.bfloat16, True)))
    assert all(0 < one < 1 for one in seconds)
    assert time.perf_counter() - began < 5  # 0.05 on an idle machine


def test_the_choice_is_made_once_however_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order of channels would be other sums: the same strokes would give another model."""
    measured: list[str] = []

    def measure(kind: str, variants: object) -> list[float]:
        measured.append(kind)
        time.sleep(0.05)
        return [1.0, 1.0 + len(measured), 9.0]

    monkeypatch.setattr(device_module, "_convolution_seconds", measure)
    with ThreadPoolExecutor() as pool:
        devices = list(pool.map(lambda _: choose_device(), range(4)))
    assert {device.channels_last for device in [*devices, choose_device("auto"), choose_device("cpu")]} == {False}
    assert choose_device() is choose_device("auto")
    assert len(measured) == 1


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory"), True),
    (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
    (RuntimeError("MPS backend out of memory"), True),
    (MemoryError(), True),
    (RuntimeError("shape mismatch"), False),
    (ValueError("out of memory"), False),
])
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_there_is_memory_to_work_with() -> None:
    assert free_memory(choose_device("cpu")) > 2**20


def test_autocast_uses_the_devices_precision() -> None:
    device = choose_device("cpu")
    with autocast(device):
        dtype = torch.nn.functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)).dtype
    assert dtype == (device.half or torch.float32)
