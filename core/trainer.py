"""The training loop of the denoiser: pictures in, weights and their card out. Knows nothing of terminals or HTTP.

One step is five verbs: take a batch, forward, loss, backward, train. All a run's choices are one `Recipe`; what it tells while it goes is
one `Progress` after each step, and it stops when `stop` says so. A run is resumed to the very same losses, because a batch is told by
(seed, step) and the checkpoint holds everything else. What is learned from, clean pictures or others, is a source: see `core.methods`.
Several processes may do a run together, each with its share of every batch: see `core.ranks`. It is the same run, however many they are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import ahead, data, hardware, methods, metrics, noise, weights
from core.data import GREY
from core.networks import ARCHITECTURES, MULTIPLE, correct, deepened, has_room, multiply_adds
from core.nn import LogMSE, Module, Muon, Tape, clip, norms, scaling
from core.ranks import ALONE, Alone, Failed, Lost
from core.replay import Replay

GRAIN = 6 / 255
"""What photographs are taken to hold at most of grain and of JPEG's traces, where a recipe's `cleaner` is to clean them of it."""
ELSEWHERE = {"data", "out", "validation", "initial", "checkpoint_seconds", "device"}
"""What of a recipe may differ where, or when, the same run goes on."""
AS_PARENT = "No picture had colours: those that have it denoises as its parent does."
TRIAL_STEPS = 5
MEASURING = 0.1
"""The share of a run's time that is left for measuring."""
HIGHEST = 99.0
"""The PSNR in dB that equal pictures count with: infinity has no mean, and JSON no word for it."""


class TrainingError(RuntimeError):
    """Training can't start or go on; the message is for users and says what was kept."""


@dataclass(frozen=True)
class Recipe:
    """One run. `sigma` is the range of noise levels in [0, 1] image units, `photographic` the share of pictures that get a camera's noise
    in place of Gaussian noise (see `core.noise`), `grey` the share that loses its colours, `cleaner` the weights that first rid the
    photographs of their own grain, `untold` what a network that finds the level by itself has in its level map (None: what its parent has,
    or `noise.UNTOLD`), all of method "clean" alone; `architecture` is that of new weights, and `initial` ones keep theirs; sizes are in
    pixels, times in seconds.
    """

    data: tuple[Path, ...]
    out: Path
    method: str = "clean"
    steps: int = 7000
    batch: int = 16
    patch: int = 96
    sigma: tuple[float, float] = (0.0, 55 / 255)
    photographic: float = 0.0
    grey: float = GREY
    lr: float = 1e-3
    warm_up: int = 200
    average: float = 0.999
    clip: float = 0.3
    seed: int = 0
    architecture: str = "unet"
    initial: Path | None = None
    cleaner: Path | None = None
    untold: float | None = None
    validation: Path | None = None
    evaluate_every: int = 500
    checkpoint_seconds: float = 180.0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in methods.METHODS:
            raise TrainingError(f"method (={self.method}) must be one of {', '.join(methods.METHODS)}")
        if self.method != "clean" and self.validation is not None:
            raise TrainingError(f'validation (={self.validation}) is for method "clean": {self.method} holds out some of its own pictures')
        if self.method != "clean" and self.cleaner is not None:
            raise TrainingError(f'cleaner (={self.cleaner}) is for method "clean": {self.method} learns from noisy pictures as they are')
        if self.architecture not in ARCHITECTURES:
            raise TrainingError(f"architecture (={self.architecture}) must be one of {', '.join(ARCHITECTURES)}")
        for name in ("steps", "batch", "evaluate_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} (={getattr(self, name)}) must be at least 1")
        if self.patch < MULTIPLE or self.patch % MULTIPLE:
            raise TrainingError(f"patch (={self.patch}) must be a multiple of {MULTIPLE}, and not 0: try 96")
        if not 0 <= self.sigma[0] <= self.sigma[1] <= 1:
            raise TrainingError(f"sigma (={self.sigma}) must be a range inside [0, 1]: (0, 0.2) is 0 to 51 in 8-bit steps")
        for name in ("photographic", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} (={getattr(self, name)}) must be a share from 0 to 1: try 0.3")
        if self.untold is not None and not self.photographic:
            raise TrainingError(
                f"untold (={self.untold}) is for photographic (={self.photographic}) above 0: otherwise every level is told"
            )
        if self.untold is not None and not -1 <= self.untold <= 1:
            raise TrainingError(f"untold (={self.untold}) must be from -1 to 1: 0.05 is a level of 12 in 8-bit steps")
        if not self.lr > 0:
            raise TrainingError(f"lr (={self.lr}) must be above 0: try 1e-3")
        if not self.clip > 0:
            raise TrainingError(f"clip (={self.clip}) must be above 0: try 0.3")
        if self.out.suffix != ".safetensors" or self.out.is_dir():
            raise TrainingError(f"out (={self.out}) must be a file that ends in .safetensors: try model.safetensors")

    def divide(self, processes: int) -> None:
        """Raises TrainingError unless so many can have equal shares of a batch."""
        if self.batch % processes:
            right = -(-self.batch // processes) * processes
            raise TrainingError(f"batch (={self.batch}) must be divisible by the number of processes (={processes}): try {right}")

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
    """What a run tells after each step. When the averaged weights were just measured, `psnr` is what the source's `measure` gave, in dB,
    and `sample` a piece held out, before / by the parent, if there is one / by the averaged weights, side by side: (H, 3 H or 2 H, 3).
    """

    step: int
    steps: int
    loss: float
    psnr: float | None
    pixels_per_second: float
    seconds_left: float
    sample: Tensor | None = field(default=None, compare=False, repr=False)


def train(
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    ranks: Alone = ALONE,
) -> Path:
    """Trains to the recipe's last step, or until `stop` of any rank, and writes the averaged weights with their card to `recipe.out`.

    Returns that path. Raises TrainingError, DataError, WeightsError or DeviceError; a loss that is not finite raises TrainingError and
    leaves the weights and the checkpoint of before. `ranks`: who trains together. Rank 0 alone measures, writes, and says whether and from
    which checkpoint to resume.
    """
    hardware.keep_freed_memory()
    device = ranks.device or hardware.take(recipe.device)
    factors = hardware.take_dtype(recipe.dtype, device)
    run: _Run | None = None
    try:
        ranks.agree(lambda: recipe.divide(ranks.size))
        cleaner = None if recipe.cleaner is None else _for_inference(weights.load(recipe.cleaner)[0], factors, device)
        source = ranks.agree(lambda: _source(recipe, cleaner, device))
        _same(ranks, recipe)
        resume = ranks.told(str(resume))[0] == "True"
        parent = None if recipe.initial is None else _for_inference(_served(recipe.initial, source.grey), factors, device)
        judge = _Judge(source, parent)
        run = _Run.resumed(recipe, judge, device, ranks) if resume else _Run.started(recipe, judge, device, ranks)
        _train(run, recipe, source, factors, report, stop)
    except Failed as told:
        raise TrainingError(str(told)) from told
    except (Lost, ahead.Died) as gone:
        kept = f"go on from step {run.saved} with --resume" if run and run.saved else "start anew: nothing was saved yet"
        raise TrainingError(f"{gone}: see what it said, then {kept}") from gone
    return recipe.out


def steps_within(recipe: Recipe, seconds: float, stop: Callable[[], bool] = lambda: False) -> int:
    """How many steps of a new run fit into so many seconds from now, by the pace of a few, and 1 at least: the learning rate falls towards
    a last step, which must be known. Raises what `train` raises.
    """
    ends: list[float] = []
    deadline = time.monotonic() + seconds

    def over() -> bool:
        ends.append(time.monotonic())
        return ends[-1] > deadline or stop()

    with tempfile.TemporaryDirectory() as folder:
        train(dataclasses.replace(recipe, steps=TRIAL_STEPS, cleaner=None, out=Path(folder) / "trial.safetensors"), stop=over)
    pace = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 1.0  # the first step also warms up
    return max(1, int((deadline - time.monotonic()) * (1 - MEASURING) / pace))


def planned_steps(recipe: Recipe) -> int:
    """The last step of the run that `recipe` goes on with, whatever it says of that itself. Raises TrainingError or WeightsError."""
    return int(json.loads(_checkpoint(recipe)[1]["recipe"])["steps"])


def _train(
    run: _Run,
    recipe: Recipe,
    source: methods.Source,
    factors: torch.dtype,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> None:
    loss, ranks = source.loss, run.ranks
    started, first = time.monotonic(), run.step
    saved = started
    bounded = ranks.any(factors == torch.float16)

    def denoise(noisy: Tensor, level: Tensor | float) -> Tensor:
        run.network.multiply_in(factors, hardware.activations(factors, run.device))  # not yet, or in float32 since, see below
        return _denoise(run.network)(noisy, level)

    for noisy, target, sigma in source.batches(run.step, denoise, ranks.share(recipe.batch)):
        noisy, target, sigma = noisy.to(run.device), target.to(run.device), sigma.to(run.device)
        value, lengths = run.derive(loss, noisy, target, sigma, factors)
        if bounded and not (math.isfinite(value) and lengths.isfinite().all()):  # something was above what float16 can be
            value, lengths = run.derive(loss, noisy, target, sigma, torch.float32)
        if not math.isfinite(value):
            raise run.lost(recipe, f"the loss is {value}")
        run.update(recipe, lengths, factors)

        ended = ranks.any(run.step == recipe.steps or stop())
        measured = ended or run.step % recipe.evaluate_every == 0
        psnr, sample = run.evaluate(factors) if measured else (None, None)
        now = time.monotonic()
        pace = (now - started) / (run.step - first)
        left = pace * (recipe.steps - run.step)
        # Told before it is saved: who is killed in between measures once more, and tells the same, but never leaves out a measurement.
        report(Progress(run.step, recipe.steps, value, psnr, recipe.batch * recipe.patch**2 / pace, left, sample))
        if ranks.any(measured or now - saved > recipe.checkpoint_seconds):
            run.save(recipe)
            saved = now
        if ended:
            break


def _same(ranks: Alone, recipe: Recipe) -> None:
    """Raises TrainingError unless all ranks follow one recipe and see the same pictures."""
    plain = {name: value for name, value in _plain(recipe).items() if name not in ELSEWHERE}
    if ranks.size > 1:
        plain["pictures"] = [[path.name, path.stat().st_size] for path in data.find(recipe.data)]
    for rank, words in enumerate(ranks.told(json.dumps(plain))):
        theirs = json.loads(words)
        for name in plain:
            if plain[name] != theirs[name]:
                how = "are not those" if name == "pictures" else f"(={plain[name]}) differs from that (={theirs[name]})"
                raise TrainingError(f"{name} {how} of process {rank} of {ranks.size}: start all with the same")


class _Run:
    """All that changes while training: step, weights, their moving average, the optimiser's means. And `colours`, the parent's weights for
    pictures with colours where those without are learned from: they stay as they are.
    """

    def __init__(
        self, network: Module, architecture: str, judge: _Judge, device: torch.device, ranks: Alone, colours: dict[str, Tensor]
    ) -> None:
        self.network, self.architecture, self.colours = network.to(device), architecture, colours
        self.judge, self.device, self.ranks = judge, device, ranks
        ranks.watch(network)
        self.average = {p.name: p.value.clone() for p in network.param()}
        self.rule = Muon()
        self.step = self.saved = 0
        self._recorded: Replay[tuple[Tensor, Tensor | None]] | None = None
        self.psnr: dict[str, float] = {}

    @classmethod
    def started(cls, recipe: Recipe, judge: _Judge, device: torch.device, ranks: Alone) -> _Run:
        generator = torch.Generator().manual_seed(recipe.seed)
        if recipe.initial is None:
            return cls(ARCHITECTURES[recipe.architecture](generator), recipe.architecture, judge, device, ranks, {})
        network, for_grey, card = weights.load_both(recipe.initial)
        architecture = card["architecture"]
        # Of a parent that is told levels, and a child that is not, one network can't stay as it is.
        apart = judge.source.grey and weights.untold(card) == judge.source.untold
        learns = for_grey if apart and for_grey is not None else network
        if (architecture, recipe.architecture) == ("gated", "deep"):
            learns, network, architecture = deepened(learns, generator), deepened(network, generator), "deep"
        colours = {p.name: p.value.clone() for p in network.param()} if apart else {}
        return cls(learns, architecture, judge, device, ranks, colours)

    @classmethod
    def resumed(cls, recipe: Recipe, judge: _Judge, device: torch.device, ranks: Alone) -> _Run:
        kept, step, architecture = ranks.agree(lambda: _kept(recipe) if ranks.rank == 0 else ({}, 0, ""))
        tensors = ranks.gathered({name: value.to(device) for name, value in kept.items()})  # rank 0 alone has any
        step, architecture = int(ranks.told(str(step))[0]), ranks.told(architecture)[0]

        def part(kind: str) -> dict[str, Tensor]:
            return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}

        run = cls(ARCHITECTURES[architecture](), architecture, judge, device, ranks, part("colours."))
        run.network.load(part("now."))
        run.average = part("average.")
        run.step = run.saved = step
        run.rule.resume(part("rule."), run.step)
        return run

    def derive(self, loss: methods.Loss, noisy: Tensor, target: Tensor, sigma: Tensor, factors: torch.dtype) -> tuple[float, Tensor]:
        """All ranks' mean of the loss, and how long each derivative by the weights is; those of this rank's weights are there, then."""

        def compute(noisy: Tensor, target: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
            activations = hardware.activations(factors, self.device)
            self.network.multiply_in(factors, activations)
            tape: Tape = []
            denoised = correct(self.network, noisy, sigma, tape)
            value = loss.forward(denoised, target)
            scaling.derive(self.network, loss.backward(denoised, target), tape, factors, activations)
            return value, norms(self.network.param()) if self.ranks.size == 1 else None

        if self.device.type == "cuda" and self.ranks.size == 1 and factors != torch.float32:
            if self._recorded is None or not self._recorded.fits(noisy, target, sigma):
                self._recorded = None  # its memory is the next one's
                self._recorded = Replay(compute, noisy, target, sigma)
            value, lengths = self._recorded(noisy, target, sigma)
        else:
            self._recorded = None  # which knows nothing of the derivatives that are put in the place of its own
            value, lengths = compute(noisy, target, sigma)
        mean = torch.tensor(self.ranks.mean(value.item()), dtype=torch.float32).item()  # the same bits whatever shares it is the mean of
        if lengths is None:
            lengths = self.ranks.norms()
        return mean, norms(self.network.param()) if lengths is None else lengths

    def update(self, recipe: Recipe, lengths: Tensor, factors: torch.dtype) -> None:
        """One step of the optimiser, by derivatives of such lengths, and the moving average's; the average is shorter at the start, where
        weights change fast.
        """
        self.rule.lr, self.rule.factors = recipe.lr_at(self.step), factors
        clip([p for p in self.network.param() if self.ranks.owns(p.name)], recipe.clip, lengths)
        self.network.train(self.ranks.sharing(self.rule))
        self.step += 1
        keep = min(recipe.average, self.step / (self.step + 9))
        own = [p for p in self.network.param() if self.ranks.owns(p.name)]
        torch._foreach_lerp_([self.average[p.name] for p in own], [p.value for p in own], 1 - keep)

    def evaluate(self, factors: torch.dtype) -> tuple[float | None, Tensor | None]:
        """The averaged weights' figure in dB, and the sample; None of both on other ranks than 0."""
        average = self._averages()

        def measure() -> tuple[float | None, Tensor | None]:
            if self.ranks.rank:
                return None, None
            network = ARCHITECTURES[self.architecture]()
            network.load(average)
            denoise = _for_inference(network, factors, self.device)
            psnr = self.judge.source.measure(denoise)
            self.psnr[str(self.step)] = round(psnr, 3)
            return psnr, self.judge.sample(denoise)

        return self.ranks.agree(measure)

    def _averages(self) -> dict[str, Tensor]:
        return self.ranks.gathered({name: value for name, value in self.average.items() if self.ranks.owns(name)})

    def save(self, recipe: Recipe) -> None:
        average = self._averages()
        rule = self.ranks.gathered({key: value for key, value in self.rule.state().items() if self.ranks.owns(key.partition(".")[2])})
        tensors = {f"now.{p.name}": p.value for p in self.network.param()}
        tensors |= {f"average.{name}": value for name, value in average.items()}
        tensors |= {f"rule.{name}": value for name, value in rule.items()}
        tensors |= {f"colours.{name}": value for name, value in self.colours.items()}

        def write() -> None:
            if self.ranks.rank:
                return
            if not all(value.isfinite().all() for value in tensors.values()):  # the last step's; its loss was still finite
                raise self.lost(recipe, "a weight is NaN or infinite")
            # The weights first: a run that is resumed at its last step only hands them on.
            learned = {weights.GREY + name: value for name, value in average.items()} if self.colours else average
            weights.save(recipe.out, {name: value.half() for name, value in (self.colours | learned).items()}, self.card(recipe))
            told = {"recipe": json.dumps(_plain(recipe)), "step": str(self.step), "architecture": self.architecture}
            weights.write(recipe.checkpoint, tensors, told)
            self.saved = self.step

        self.ranks.agree(write)
        self.saved = self.step

    def lost(self, recipe: Recipe, what: str) -> TrainingError:
        """Numbers are no longer finite; to resume would only meet them again."""
        anew = f"from {recipe.out} (initial), which holds the weights of step {self.saved}" if self.saved else "anew: nothing was saved yet"
        return TrainingError(f"{what} at step {self.step}: lower lr (={recipe.lr}) and start {anew}")

    def card(self, recipe: Recipe) -> weights.Card:
        source = self.judge.source
        return {
            "title": recipe.out.stem,
            "architecture": self.architecture,
            "summary": source.summary,
            **({"blind": True, "untold": source.untold} if source.untold is not None else {}),
            "grey_level": round(noise.GREY_LEVEL, 4),
            "multiply_adds_a_pixel": round(multiply_adds(self.network)),
            "weights": sum(p.value.numel() for p in self.network.param()) + sum(value.numel() for value in self.colours.values()),
            "data": [folder.name for folder in recipe.data],
            "method": recipe.method,
            "note": source.note + f" {AS_PARENT}" * bool(self.colours),
            "quality": self.judge.quality(self.psnr),
            "recipe": {
                "steps": f"{self.step} of {recipe.steps}",
                "pixels": self.step * recipe.batch * recipe.patch**2,
                "batch": f"{recipe.batch} of {recipe.patch}x{recipe.patch}",
                "loss": type(source.loss).__name__,
                "optimiser": f"Muon {recipe.lr:g}, warm-up over {recipe.warm_up} steps, linear decay, moving average {recipe.average}, "
                f"derivatives clipped to {recipe.clip:g}",
                "noise": source.levels,
                **({"cleaned by": f"{recipe.cleaner.name}, told {GRAIN * 255:g} in 8-bit steps"} if recipe.cleaner else {}),
                "started from": recipe.initial.name if recipe.initial else "random weights",
                "seed": recipe.seed,
            },
            "figures": {},
        }


def _served(path: Path, grey: bool) -> Module:
    """What a parent denoises pictures with, those without colours or others."""
    network, for_grey, _ = weights.load_both(path)
    return for_grey if grey and for_grey is not None else network


def _kept(recipe: Recipe) -> tuple[dict[str, Tensor], int, str]:
    """The checkpoint's tensors, its step and architecture. Raises TrainingError if it is another recipe's."""
    tensors, metadata = _checkpoint(recipe)
    kept, asked = json.loads(metadata["recipe"]), _plain(recipe)
    for name in kept.keys() - ELSEWHERE - {"steps"}:  # a run may be made longer or shorter
        if kept[name] != asked[name]:
            raise TrainingError(
                f"{name} (={asked[name]}) differs from the checkpoint's (={kept[name]}): resume with the same, or start anew"
            )
    return tensors, int(metadata["step"]), metadata.get("architecture", "unet")


def _checkpoint(recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not recipe.checkpoint.exists():
        raise TrainingError(f"{recipe.checkpoint} does not exist: there is nothing to resume, start anew")
    return weights.read(recipe.checkpoint)


class _Judge:
    """Measures against the input and the parent; each of those just once."""

    def __init__(self, source: methods.Source, parent: methods.Denoise | None) -> None:
        self.source, self.parent = source, parent

    @cached_property
    def _sides(self) -> tuple[float, float | None]:
        return self.source.measure(lambda noisy, level: noisy), None if self.parent is None else self.source.measure(self.parent)

    @cached_property
    def _panels(self) -> list[Tensor]:
        noisy, level = self._piece
        return [noisy, *([] if self.parent is None else [self.parent(noisy[None], level)[0]])]

    @cached_property
    def _piece(self) -> tuple[Tensor, float]:
        noisy, level = self.source.sample()
        side = min(noisy.shape[:2]) // MULTIPLE * MULTIPLE
        return noisy[:side, :side], level

    def sample(self, denoise: methods.Denoise) -> Tensor:
        noisy, level = self._piece
        return methods.beside([*self._panels, denoise(noisy[None], level)[0]])

    def quality(self, psnr: dict[str, float]) -> dict[str, Any]:
        """For the card: what was measured, and by whom how much. Empty before the first measurement."""
        if not psnr:
            return {}
        before, parent = self._sides
        trained = list(psnr.values())[-1]
        return {
            "what": self.source.what,
            "before": round(before, 3),
            "parent": None if parent is None else round(parent, 3),
            "trained": trained,
            "better": trained > (before if parent is None else parent) + self.source.margin,
        }


def _denoise(network: Module) -> methods.Denoise:
    """`correct` with this network, wherever it is, from the CPU to the CPU."""

    def denoise(noisy: Tensor, level: Tensor | float) -> Tensor:
        device = network.param()[0].value.device
        return correct(network, noisy.to(device), level.to(device) if isinstance(level, Tensor) else level).cpu()

    return denoise


def _for_inference(network: Module, factors: torch.dtype, device: torch.device) -> methods.Denoise:
    """The network as a denoiser has it."""
    network.to(device, torch.float32).multiply_in(factors, hardware.activations(factors, device))
    if factors == torch.float16 and not has_room(network):
        network.multiply_in(torch.float32, torch.float32)
    plain = _denoise(network)

    def denoise(noisy: Tensor, level: Tensor | float) -> Tensor:
        denoised = plain(noisy, level)
        return denoised.mean(3, keepdim=True).expand_as(denoised) if noise.is_grey(noisy) else denoised

    return denoise


class _Clean:
    """Noise put on clean pictures, which are the targets."""

    margin = 0.0
    note = "The pictures were taken as free of noise; the model is for the noise that was put on them."

    def __init__(self, recipe: Recipe, cleaner: methods.Denoise | None, device: torch.device) -> None:
        # Every patch counts alike, however much noise it got; L1 would heed the noisiest most, and darken them (by 0.2 steps at sigma 50).
        self.loss: methods.Loss = LogMSE()
        self.recipe = recipe
        self.pictures, self.validation = _pictures(recipe, cleaner, device)
        self.grey = recipe.grey == 1 or all(map(noise.is_grey, [*self.pictures.pictures, *self.validation]))
        if self.grey:
            self.validation = [picture.mean(2, keepdim=True).expand_as(picture) for picture in self.validation]
        low, high = recipe.sigma
        self.level = 25 / 255 if low <= 25 / 255 <= high else (low + high) / 2
        self.untold = _untold(recipe) if recipe.photographic else None
        apart = recipe.photographic > 0 and device.type != "cpu" and ahead.possible()
        self.processes = max(1, hardware.threads() - 2) if apart else 0
        self.what = (
            "PSNR in dB, a camera's noise put on"
            if recipe.photographic == 1
            else f"PSNR in dB at sigma {self.level * 255:g} in 8-bit steps"
        )
        self.summary = (
            "Removes a camera's noise from photographs, and finds its level by itself."
            if self.untold is not None
            else "Removes white Gaussian noise of a known or estimated level from photographs."
        )
        self.levels = f"Gaussian, sigma {low * 255:g} to {high * 255:g} in 8-bit steps, uniform" + (
            f"; a camera's in {recipe.photographic:.0%}, the level told in {noise.TOLD:.0%}" * (self.untold is not None)
        )

    def batches(self, first: int, denoise: methods.Denoise, share: slice) -> Iterator[methods.Batch]:
        untold = noise.UNTOLD if self.untold is None else self.untold
        return _batches(self.recipe, self.pictures, first, share, untold, self.processes)

    def measure(self, denoise: methods.Denoise) -> float:
        """Mean PSNR in dB, the same noise each time."""
        total = 0.0
        for i in range(len(self.validation)):
            noisy, clean, level = self._noisy(i)
            total += min(metrics.psnr(metrics.to_8bit(denoise(noisy[None], level)[0]), clean), HIGHEST)
        return total / len(self.validation)

    def sample(self) -> tuple[Tensor, float]:
        noisy, _, level = self._noisy(0)
        top, left = ((size - methods.PIECE) // 2 // MULTIPLE * MULTIPLE if size > methods.PIECE else 0 for size in noisy.shape[:2])
        return noisy[top : top + methods.PIECE, left : left + methods.PIECE], level

    def _noisy(self, index: int) -> tuple[Tensor, Tensor, float]:
        clean, generator = self.validation[index], data.generator_of(0, index)
        if self.recipe.photographic < 1 and self.grey:
            return noise.add_gaussian(clean[..., :1], self.level, generator).expand_as(clean), clean, self.level * noise.GREY_LEVEL
        if self.recipe.photographic < 1:
            return noise.add_gaussian(clean, self.level, generator), clean, self.level
        noisy, scene = (t[0] for t in noise.add_photographic(clean[None], generator))
        if self.grey:
            noisy, scene = (t.mean(2, keepdim=True).expand_as(t) for t in (noisy, scene))
        return noisy, scene, noise.level_of(noisy - scene)


def _untold(recipe: Recipe) -> float:
    """What stands in a level map where nothing is told."""
    asked = _parents_untold(recipe) if recipe.untold is None else recipe.untold
    return noise.UNTOLD if asked is None else asked


def _parents_untold(recipe: Recipe) -> float | None:
    return None if recipe.initial is None else weights.untold(weights.load(recipe.initial)[1])


def _source(recipe: Recipe, cleaner: methods.Denoise | None, device: torch.device) -> methods.Source:
    untold = _parents_untold(recipe)  # the level that its parent is used to
    if recipe.method == "pairs":
        return methods.Pairs(recipe.data, recipe.batch, recipe.patch, recipe.steps, recipe.seed, untold)
    if recipe.method == "noisy":
        ramp = recipe.initial is None  # at first it knows no picture whose neighbours could be compared
        return methods.Neighbours(recipe.data, recipe.batch, recipe.patch, recipe.steps, recipe.seed, ramp, untold)
    return _Clean(recipe, cleaner, device)


def _pictures(
    recipe: Recipe, cleaner: methods.Denoise | None = None, device: torch.device | None = None
) -> tuple[data.Photographs, list[Tensor]]:
    """The training pictures, and at most 12 to validate on: of the validation folder, or else one in eight held out, 8 at most.

    The former lie on the device, for white noise is put on them there; a camera's noise is made on the processor.
    """
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
        # What looks like a camera's noise on the clean side, a blind network would learn to keep: such pictures are shrunk.
        halved_from = 2 * recipe.patch if recipe.photographic else math.inf
        training = list(readers.map(lambda path: data.read(path, halved_from), paths))
    if cleaner is not None:
        training = [_cleaned(picture, cleaner) for picture in training]
    return data.Photographs(training, recipe.patch, "cpu" if recipe.photographic or device is None else device), validation


def _cleaned(picture: Tensor, cleaner: methods.Denoise) -> Tensor:
    """(H, W, 3) uint8 -> the same, cut to the size the network takes."""
    if min(picture.shape[:2]) < MULTIPLE:
        return picture
    return cleaner(_whole(picture)[None], GRAIN)[0].clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _whole(picture: Tensor) -> Tensor:
    """Floats in [0, 1], cut to the size the network takes."""
    H, W = (size // MULTIPLE * MULTIPLE for size in picture.shape[:2])
    return picture[:H, :W].float() / 255


def _batches(
    recipe: Recipe,
    pictures: data.Photographs,
    first: int,
    share: slice = slice(None),
    untold: float = noise.UNTOLD,
    processes: int = 0,
) -> Iterator[methods.Batch]:
    """(noisy, clean, sigma) of each step from `first` on, and of each batch that share.

    Made in the training thread, with all cores: it takes 4 % of a step, a sixth with a camera's noise, and a second thread's parallel
    loops would make OpenMP's workers, more than there are cores then, sleep between the products (measured: half the speed). An
    accelerator would wait for a camera's noise, so there `processes` make it.
    """

    def make(step: int) -> methods.Batch:
        generator = data.generator_of(recipe.seed, step)
        clean = data.vary(pictures.batch(recipe.batch, generator), generator, recipe.grey)
        low, high = recipe.sigma
        sigma = (low + (high - low) * torch.rand(recipe.batch, 1, 1, 1, generator=generator)).to(clean.device)
        noisy, clean, sigma = noise.add_either(clean, sigma, recipe.photographic, generator, untold)
        return noisy[share], clean[share], sigma[share]

    if processes:
        return ahead.made(make, first, recipe.steps, processes)
    return map(make, range(first, recipe.steps))


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON knows it."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))  # type: ignore[no-any-return]
