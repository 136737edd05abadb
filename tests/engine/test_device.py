from __future__ import annotations

import pytest
import torch

from napari_cellbrush.engine import device as device_module
from napari_cellbrush.engine.device import autocast, choose_device, free_memory, is_out_of_memory
from napari_cellbrush.errors import DeviceError


@pytest.fixture(autouse=True)
def forget_choices() -> None:
    choose_device.cache_clear()


def test_the_cpu_is_always_there_and_says_what_it_is() -> None:
    device = choose_device("cpu")
    assert device.kind == "cpu"
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


@pytest.mark.parametrize("half_seconds", [0.5, 2.0])
def test_half_precision_is_used_only_where_it_is_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch,
                                                                      half_seconds: float) -> None:
    monkeypatch.setattr(device_module, "_convolution_seconds",
                        lambda dtype: half_seconds if dtype == torch.bfloat16 else 1.0)
    assert (choose_device("cpu").half is not None) == (half_seconds < 1)


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory"), True),
    (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
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
