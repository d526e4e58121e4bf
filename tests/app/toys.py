"""Stand-ins for the tests of the service: a model that does as it is told, and pictures made on the spot."""

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from core import Cancelled, Region

DEADLINE_SECONDS = 300.0


class Toy:
    """A stand-in for a Denoiser. `work(pixels, sigma, keep_going)` makes the answer; by default the same picture."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, work: Callable[..., Tensor] | None = None, name: str = "toy", sigma: float = 10 / 255, blind: bool = False) -> None:
        self.name, self.blind = name, blind
        self.card: dict[str, Any] = {"title": f"The {name}", "architecture": "none", "recipe": {}}
        self.asked: list[tuple[float | None, float]] = []
        self._work = work
        self._sigma = sigma

    def estimate(self, pixels: Tensor) -> float:
        return self._sigma

    def found(self, pixels: Tensor, clean: Tensor) -> float:
        return self._sigma / 2

    def __call__(self, pixels: Tensor, sigma: float | None, strength: float = 1.0, keep_going: Callable[[], bool] = lambda: True) -> Tensor:
        self.asked.append((sigma, strength))
        steps = 1 if pixels.is_floating_point() else torch.iinfo(pixels.dtype).max
        seen = pixels / steps
        clean = seen if self._work is None else self._work(seen, sigma, keep_going)
        return clean if steps == 1 else clean.mul(steps).round().to(pixels.dtype)

    def over(
        self,
        pixels: Tensor,
        sigma: float | None,
        strength: float = 1.0,
        keep_going: Callable[[], bool] = lambda: True,
        arrived: Callable[[int], object] = lambda rows: None,
    ) -> float:
        arrived(len(pixels))
        pixels.copy_(self(pixels, sigma, strength, keep_going))
        return self.found(pixels, pixels) if sigma is None else sigma

    def region(self, pixels: Tensor, region: Region, sigma: float | None, strength: float, keep_going: Callable[[], bool]) -> Tensor:
        x, y, width, height = region
        return self(pixels, sigma, strength, keep_going)[y : y + height, x : x + width]


class Gate:
    """Work that begins, and goes on tile after tile until it is opened or told to stop."""

    def __init__(self) -> None:
        self.began, self.opened, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, pixels: Tensor, sigma: float, keep_going: Callable[[], bool]) -> Tensor:
        self.began.set()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.opened.wait(0.001):
            if not keep_going():
                self.stopped.set()
                raise Cancelled
            assert time.monotonic() < deadline, "nobody opened the gate"
        return pixels


def noise(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    values = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.frombytes("RGB", (width, height), values.numpy().tobytes())


def encoded(picture: Image.Image, format: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, format)
    return file.getvalue()


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` gives as soon as that is true; fails past the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        threading.Event().wait(0.02)
    return value
