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


F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("rates", "first", "without"),
    [
        ({F32: 95}, F32, F32),  # none of 16 bits
        ({BF16: 268, F32: 134}, BF16, BF16),  # Zen 5
        ({BF16: 100, F32: 100}, BF16, BF16),  # as many products, with half the memory's work
        ({F16: 186, BF16: 45, F32: 89}, F16, F32),  # Emerald Rapids in a virtual machine without AMX
        ({F16: 186, BF16: 1100, F32: 89}, BF16, BF16),  # the same with AMX
        ({F16: 186, BF16: 186, F32: 93}, F16, BF16),
        ({F16: 186}, F16, BF16),  # CLEARFOLD_KERNEL=avx512_fp16: what is left is torch's products
    ],
)
def test_on_a_processor_the_fastest_is_taken_and_of_equals_the_narrowest(
    rates: dict[torch.dtype, float], first: torch.dtype, without: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "rates", lambda: dict(rates))
    monkeypatch.setattr(hardware, "_products_rate", {BF16: 300, F32: 160}.get)
    assert hardware.fast_dtype(torch.device("cpu")) == hardware.take_dtype("auto", torch.device("cpu")) == first
    assert hardware.fast_dtype(torch.device("cpu"), float16=False) == without


@pytest.mark.parametrize(("rates", "dtype"), [({BF16: 168, F32: 302}, F32), ({BF16: 600, F32: 302}, BF16)])
def test_without_kernels_what_torch_multiplies_fastest_is_taken(
    rates: dict[torch.dtype, float], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "rates", dict)
    monkeypatch.setattr(hardware, "_products_rate", rates.get)
    assert hardware.fast_dtype(torch.device("cpu")) == hardware.take_dtype("auto", torch.device("cpu")) == dtype


def test_rates_are_measured() -> None:
    assert all(1e8 < rate < 1e14 for rate in (*kernels.rates().values(), hardware._products_rate(F32)))
    assert kernels.rates().keys() == {own.factors for own in kernels.available().values()}


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_taken_where_the_gpu_has_it_without_emulation(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported)
    assert hardware.fast_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_precision_that_is_named_is_taken_whatever_is_fast(name: str, dtype: torch.dtype) -> None:
    assert hardware.take_dtype(name, torch.device("cpu")) == dtype


@pytest.mark.parametrize("name", ["half", "double", ""])
def test_another_precision_is_refused(name: str) -> None:
    with refused(DeviceError, f'dtype = "{name}" must be one of "auto", "float32", "bfloat16", "float16"'):
        hardware.take_dtype(name, torch.device("cpu"))


def test_float16_is_refused_on_a_processor_where_no_kernel_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", dict)
    monkeypatch.setattr(kernels, "why", lambda: "this processor runs avx2")
    there = "this processor runs avx2"
    with refused(DeviceError, f'dtype = "float16" needs a GPU or a processor that runs avx512_fp16 ({there}): use "auto"'):
        hardware.take_dtype("float16", torch.device("cpu"))


def test_a_gpu_multiplies_float16_whatever_the_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", dict)
    assert hardware.take_dtype("float16", torch.device("cuda")) == torch.float16
