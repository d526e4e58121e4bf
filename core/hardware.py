"""Which device to compute on and in which precision, from what the machine reports. Computes nothing itself."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core import kernels


class DeviceError(ValueError):
    """A device was asked for that this machine does not have."""


def take(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; anything else is taken at its word.

    Raises DeviceError at once when the device is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        taken = torch.device(device)
    except RuntimeError:
        raise DeviceError(f'device = "{device}" is not a device: use "auto", "cpu", "cuda" or "cuda:1"') from None
    if taken.type not in ("cpu", "cuda"):
        raise DeviceError(f'device = "{device}" is not supported: use "auto", "cpu" or "cuda"')
    if taken.type == "cuda" and (taken.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(
            f'device = "{device}" needs a CUDA GPU, and torch {torch.__version__} sees {found} here: use "auto" or "cpu", '
            "or install the NVIDIA driver and a CUDA build of torch"
        )
    return taken


def take_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is `fast_dtype`'s, else "float32", "bfloat16" or "float16". Raises DeviceError for any other."""
    if dtype == "auto":
        return fast_dtype(device)
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in named:
        names = ", ".join(f'"{name}"' for name in ("auto", *named))
        raise DeviceError(f'dtype = "{dtype}" must be one of {names}')
    if dtype == "float16" and device.type != "cuda" and kernels.take(torch.float16, device) is None:
        raise DeviceError(f'dtype = "float16" needs a GPU or a processor that runs avx512_fp16 ({kernels.why()}): use "auto"')
    return named[dtype]


def fast_dtype(device: torch.device, float16: bool = True) -> torch.dtype:
    """What the device multiplies fastest, as measured on a processor, and of what is nearly as fast that of the fewest bits.

    To report an instruction is not to be fast at it: an Emerald Rapids without AMX multiplies bfloat16 at half the rate of float32.
    float16: whether it may be that, whose numbers end at 65504.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    found = kernels.rates()
    if not float16:
        found.pop(torch.float16, None)
    if not found:
        found = {dtype: _products_rate(dtype) for dtype in (torch.bfloat16, torch.float32)}
    narrow = [dtype for dtype in (torch.float16, torch.bfloat16, torch.float32) if dtype in found]
    return next(dtype for dtype in narrow if found[dtype] >= NEARLY * max(found.values()))


NEARLY = 0.85
"""A share of the best rate that is as good: what is half as wide takes half as long in memory."""


@functools.cache
def _products_rate(dtype: torch.dtype) -> float:
    """Of torch's products in a processor: the best of a few."""
    a, b = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    took = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b)
        took.append(time.perf_counter() - started)
    return a.numel() * b.shape[1] / min(took)


def activations(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of what a network that multiplies in `dtype` passes from layer to layer: what its products read, half the memory's work.

    Rounding it costs nothing that can be measured: with or without, the shipped weights give the same PSNR to 0.0003 dB.
    """
    own = kernels.take(dtype, device)
    return own.factors if own else dtype


def threads() -> int:
    """How many threads an operator computes with in the calling thread; at first, the processor's cores."""
    return torch.get_num_threads()


def compute_on(threads: int) -> None:
    """From now on, operators that the calling thread runs compute with so many threads."""
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """What the calling thread computes inside, it computes alone.

    For threads that compute now and then: libgomp gives each thread that ever computed on several a team of its own, and once all teams
    together are larger than the processor, none waits awake any more for its next piece of work: falling asleep and waking up, a hundred
    times a picture, cost a quarter of the time, and more beside a program that takes the core meanwhile.
    """
    before = threads()
    compute_on(1)
    try:
        yield
    finally:
        compute_on(before)


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors free instead of giving it back and asking anew, page by page, at every step.

    For processes that do nothing else than train or denoise: it saves them a sixth of their time. Only glibc has the switch; elsewhere
    nothing happens.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_ARENA_MAX, 1)  # others give memory back at once, and each comes to keep what its greediest thread needed
    mallopt(M_MMAP_THRESHOLD, 1 << 26)  # larger tensors are given back, or a service would keep what its largest picture took
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
