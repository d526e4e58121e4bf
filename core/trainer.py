"""The training loop of the denoiser: photographs in, weights and their card out. Knows nothing of terminals or HTTP.

One step is five verbs: take a batch, forward, loss, backward, train. All a run's choices are one `Recipe`; what it tells while it goes is
one `Progress` after each step, and it stops when `stop` says so. A run is resumed to the very same losses, because a batch is told by
(seed, step) and the checkpoint holds everything else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import data, hardware, metrics, noise, weights
from core.networks import MULTIPLE, correct, multiply_adds, unet
from core.nn import L1, Module, Muon, Tape, clip


class TrainingError(RuntimeError):
    """Training can't start or go on; the message is for users and says what was kept."""


@dataclass(frozen=True)
class Recipe:
    """One run. `sigma` is the range of noise levels in [0, 1] image units, `photographic` the share of pictures that get a camera's noise
    in place of Gaussian noise (see `core.noise`); sizes are in pixels, times in seconds.
    """

    data: tuple[Path, ...]
    out: Path
    steps: int = 7000
    batch: int = 16
    patch: int = 96
    sigma: tuple[float, float] = (0.0, 55 / 255)
    photographic: float = 0.0
    lr: float = 1e-3
    warm_up: int = 200
    average: float = 0.999
    clip: float = 0.3
    seed: int = 0
    initial: Path | None = None
    validation: Path | None = None
    evaluate_every: int = 500
    checkpoint_seconds: float = 180.0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluate_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} (={getattr(self, name)}) must be at least 1")
        if self.patch < MULTIPLE or self.patch % MULTIPLE:
            raise TrainingError(f"patch (={self.patch}) must be a multiple of {MULTIPLE}, and not 0: try 96")
        if not 0 <= self.sigma[0] <= self.sigma[1] <= 1:
            raise TrainingError(f"sigma (={self.sigma}) must be a range inside [0, 1]: (0, 0.2) is 0 to 51 in 8-bit steps")
        if not 0 <= self.photographic <= 1:
            raise TrainingError(f"photographic (={self.photographic}) must be a share from 0 to 1: try 0.3")
        if not self.lr > 0:
            raise TrainingError(f"lr (={self.lr}) must be above 0: try 1e-3")
        if not self.clip > 0:
            raise TrainingError(f"clip (={self.clip}) must be above 0: try 0.3")
        if self.out.suffix != ".safetensors" or self.out.is_dir():
            raise TrainingError(f"out (={self.out}) must be a file that ends in .safetensors: try model.safetensors")

    @property
    def checkpoint(self) -> Path:
        return self.out.with_suffix(".checkpoint")

    def lr_at(self, step: int) -> float:
        """A straight warm-up, then straight down to a thousandth."""
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        gone = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.lr * (1 - 0.999 * gone)


@dataclass(frozen=True)
class Progress:
    """What a run tells after each step. `psnr` in dB is the averaged weights' on the validation pictures, when they were just measured."""

    step: int
    steps: int
    loss: float
    psnr: float | None
    pixels_per_second: float
    seconds_left: float


def train(
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
) -> Path:
    """Trains to the recipe's last step, or until `stop`, and writes the averaged weights with their card to `recipe.out`.

    Returns that path. Raises TrainingError, DataError, WeightsError or DeviceError; a loss that is not finite raises TrainingError and
    leaves the weights and the checkpoint of before.
    """
    hardware.keep_freed_memory()
    device = hardware.take(recipe.device)
    factors = hardware.take_dtype(recipe.dtype, device)
    dtype = hardware.activations(factors, device)
    training, validation = _pictures(recipe)
    run = _Run.resumed(recipe, device) if resume else _Run.started(recipe, device)
    run.network.multiply_in(factors, dtype)
    loss = L1()
    started, first = time.monotonic(), run.step
    saved = started

    for noisy, clean, sigma in _batches(recipe, training, run.step):
        noisy, clean, sigma = noisy.to(device), clean.to(device), sigma.to(device)
        tape: Tape = []
        denoised = correct(run.network, noisy, sigma, tape)
        value = loss.forward(denoised, clean).item()
        if not math.isfinite(value):
            raise run.lost(recipe, f"the loss is {value}")
        run.network.derive(loss.backward(denoised, clean).to(dtype), tape)
        run.update(recipe)

        ended = run.step == recipe.steps or stop()
        psnr = None
        if ended or run.step % recipe.evaluate_every == 0:
            psnr = run.evaluate(validation, factors)
        now = time.monotonic()
        pace = (now - started) / (run.step - first)
        report(Progress(run.step, recipe.steps, value, psnr, recipe.batch * recipe.patch**2 / pace, pace * (recipe.steps - run.step)))
        if psnr is not None or now - saved > recipe.checkpoint_seconds:
            run.save(recipe)
            saved = now
        if ended:
            break
    return recipe.out


class _Run:
    """All that changes while training: step, weights, their moving average, the optimiser's means."""

    def __init__(self, network: Module, device: torch.device) -> None:
        self.network = network.to(device)
        self.average = {p.name: p.value.clone() for p in network.param()}
        self.rule = Muon(multiply_in=hardware.fast_dtype(device))
        self.step = self.saved = 0
        self.psnr: dict[str, float] = {}

    @classmethod
    def started(cls, recipe: Recipe, device: torch.device) -> _Run:
        if recipe.initial is not None:
            return cls(weights.load(recipe.initial)[0], device)
        return cls(unet(torch.Generator().manual_seed(recipe.seed)), device)

    @classmethod
    def resumed(cls, recipe: Recipe, device: torch.device) -> _Run:
        if not recipe.checkpoint.exists():
            raise TrainingError(f"{recipe.checkpoint} does not exist: there is nothing to resume, start anew")
        tensors, metadata = weights.read(recipe.checkpoint)
        kept, asked = json.loads(metadata["recipe"]), _plain(recipe)
        free = {"data", "out", "validation", "initial", "checkpoint_seconds", "device", "steps"}  # a run may be made longer or shorter
        for name in kept.keys() - free:
            if kept[name] != asked[name]:
                raise TrainingError(
                    f"{name} (={asked[name]}) differs from the checkpoint's (={kept[name]}): resume with the same, or start anew"
                )

        def part(kind: str) -> dict[str, Tensor]:
            return {name.removeprefix(kind): value.to(device) for name, value in tensors.items() if name.startswith(kind)}

        run = cls(unet(), device)
        run.network.load(part("now."))
        run.average = part("average.")
        run.step = run.saved = int(metadata["step"])
        run.rule.resume(part("rule."), run.step)
        return run

    def update(self, recipe: Recipe) -> None:
        """One step of the optimiser, and the moving average's; the average is shorter at the start, where weights change fast."""
        self.rule.lr = recipe.lr_at(self.step)
        clip(self.network.param(), recipe.clip)
        self.network.train(self.rule)
        self.step += 1
        keep = min(recipe.average, self.step / (self.step + 9))
        for name, value, _ in self.network.param():
            self.average[name].lerp_(value, 1 - keep)

    def evaluate(self, pictures: list[Tensor], factors: torch.dtype) -> float:
        """Mean PSNR in dB of the averaged weights at sigma 25/255, which is told them, the same noise each time."""
        network = unet()
        network.load(self.average)
        device = next(iter(self.average.values())).device
        network.to(device, hardware.weights(factors, device)).multiply_in(factors, hardware.activations(factors, device))
        total = 0.0
        for i, clean in enumerate(pictures):
            noisy = noise.add_gaussian(clean, 25 / 255, data.generator_of(0, i))
            denoised = correct(network, noisy[None].to(device), 25 / 255)
            total += metrics.psnr(metrics.to_8bit(denoised[0].cpu()), clean)
        self.psnr[str(self.step)] = round(total / len(pictures), 3)
        return total / len(pictures)

    def save(self, recipe: Recipe) -> None:
        tensors = {f"now.{p.name}": p.value for p in self.network.param()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"rule.{name}": value for name, value in self.rule.state().items()}
        if not all(value.isfinite().all() for value in tensors.values()):  # the last step's; its loss was still finite
            raise self.lost(recipe, "a weight is NaN or infinite")
        weights.write(recipe.checkpoint, tensors, {"recipe": json.dumps(_plain(recipe)), "step": str(self.step)})
        weights.save(recipe.out, {name: value.half() for name, value in self.average.items()}, self.card(recipe))
        self.saved = self.step

    def lost(self, recipe: Recipe, what: str) -> TrainingError:
        """Numbers are no longer finite; to resume would only meet them again."""
        anew = f"from {recipe.out} (initial), which holds the weights of step {self.saved}" if self.saved else "anew: nothing was saved yet"
        return TrainingError(f"{what} at step {self.step}: lower lr (={recipe.lr}) and start {anew}")

    def card(self, recipe: Recipe) -> weights.Card:
        return {
            "title": recipe.out.stem,
            "architecture": "unet",
            "summary": "Removes a camera's noise from photographs, and finds its level by itself."
            if recipe.photographic
            else "Removes white Gaussian noise of a known or estimated level from photographs.",
            **({"blind": True} if recipe.photographic else {}),
            "multiply_adds_a_pixel": round(multiply_adds(self.network)),
            "weights": sum(p.value.numel() for p in self.network.param()),
            "data": [folder.name for folder in recipe.data],
            "recipe": {
                "steps": f"{self.step} of {recipe.steps}",
                "pixels": self.step * recipe.batch * recipe.patch**2,
                "batch": f"{recipe.batch} of {recipe.patch}x{recipe.patch}",
                "loss": "L1",
                "optimiser": f"Muon {recipe.lr:g}, warm-up over {recipe.warm_up} steps, linear decay, moving average {recipe.average}, "
                f"derivatives clipped to {recipe.clip:g}",
                "noise": f"Gaussian, sigma {recipe.sigma[0] * 255:g} to {recipe.sigma[1] * 255:g} in 8-bit steps, uniform"
                + f"; a camera's in {recipe.photographic:.0%}, the level told in {noise.TOLD:.0%}" * (recipe.photographic > 0),
                "started from": recipe.initial.name if recipe.initial else "random weights",
                "seed": recipe.seed,
            },
            "figures": {},
        }


def _pictures(recipe: Recipe) -> tuple[data.Photographs, list[Tensor]]:
    """The training pictures, and at most 12 to validate on: of the validation folder, or else one in eight held out, 8 at most."""
    paths = data.find(recipe.data)
    if recipe.validation is not None:
        apart = data.find([recipe.validation])
        held = apart[:: max(1, len(apart) // 12)][:12]
    else:
        apart = held = paths[:: max(8, len(paths) // 8)][:8]
    seen = {path.resolve() for path in apart}  # the validation folder may lie inside one of the others
    paths = [path for path in paths if path.resolve() not in seen]
    with ThreadPoolExecutor() as readers:
        validation = [_whole(picture) for picture in readers.map(data.read, held) if min(picture.shape[:2]) >= MULTIPLE]
        if not paths or not validation:
            folders = ", ".join(map(str, recipe.data))
            raise data.DataError(f"{folders}: two pictures are needed at least, one to train on and one to validate on")
        training = data.Photographs(list(readers.map(data.read, paths)), recipe.patch)
    return training, validation


def _whole(picture: Tensor) -> Tensor:
    """Floats in [0, 1], cut to the size the network takes."""
    H, W = (size // MULTIPLE * MULTIPLE for size in picture.shape[:2])
    return picture[:H, :W].float() / 255


def _batches(recipe: Recipe, pictures: data.Photographs, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(noisy, clean, sigma) of each step from `first` on.

    Made in the training thread: it takes a hundredth of a step, and a second thread's parallel loops would make OpenMP's workers, more
    than there are cores then, sleep between the products (measured: half the speed).
    """
    for step in range(first, recipe.steps):
        generator = data.generator_of(recipe.seed, step)
        clean = data.vary(pictures.batch(recipe.batch, generator), generator)
        low, high = recipe.sigma
        sigma = low + (high - low) * torch.rand(recipe.batch, 1, 1, 1, generator=generator)
        noisy, sigma = noise.add_either(clean, sigma, recipe.photographic, generator)
        yield noisy, clean, sigma


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON knows it."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))  # type: ignore[no-any-return]
