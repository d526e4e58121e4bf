"""Which device and precision are taken, on machines that are made up."""

import pytest
import torch

from core import DeviceError, hardware, kernels
from tests.core.made import refused


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (1, "cuda"), (2, "cuda")])
def test_auto_takes_a_gpu_where_there_is_one(count: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(count, monkeypatch)
    assert hardware.take() == hardware.take("auto") == torch.device(device)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there_is_taken(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2, monkeypatch)
    assert hardware.take(device) == torch.device(device)


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:7", 2)])
def test_a_gpu_that_is_not_there_is_refused(device: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(count, monkeypatch)
    message = (
        f'device = "{device}" needs a CUDA GPU, and torch {torch.__version__} sees {count} here: use "auto" or "cpu", '
        "or install the NVIDIA driver and a CUDA build of torch"
    )
    with refused(DeviceError, message):
        hardware.take(device)


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "CPU!"])
def test_what_is_no_device_is_refused(device: str) -> None:
    with refused(DeviceError, f'device = "{device}" is not a device: use "auto", "cpu", "cuda" or "cuda:1"'):
        hardware.take(device)


@pytest.mark.parametrize("device", ["mps", "meta", "xpu"])
def test_a_device_of_another_kind_is_refused(device: str) -> None:
    with refused(DeviceError, f'device = "{device}" is not supported: use "auto", "cpu" or "cuda"'):
        hardware.take(device)


@pytest.mark.parametrize(
    ("reported", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_without_kernels_bfloat16_is_taken_where_the_processor_reports_it(
    reported: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "take", lambda factors, device: None)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported)
    assert hardware.fast_dtype(torch.device("cpu")) == dtype
    assert hardware.take_dtype("auto", torch.device("cpu")) == dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_taken_where_the_gpu_has_it_without_emulation(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported)
    assert hardware.fast_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_precision_that_is_named_is_taken_whatever_is_fast(name: str, dtype: torch.dtype) -> None:
    assert hardware.take_dtype(name, torch.device("cpu")) == dtype


@pytest.mark.parametrize("name", ["float16", "double", ""])
def test_another_precision_is_refused(name: str) -> None:
    with refused(DeviceError, f'dtype = "{name}" must be "auto", "float32" or "bfloat16"'):
        hardware.take_dtype(name, torch.device("cpu"))
