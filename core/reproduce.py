"""The Noise2Noise experiment on 32x32 pictures: a small network learns to denoise from pairs of noisy pictures alone. Knows no terminal.

Lehtinen et al., "Noise2Noise: Learning Image Restoration without Clean Data", ICML 2018, at the scale of a course report: 50,000 pairs,
batches of 50, SGD at learning rate 2 for 20 epochs. A picture is a 256x256 crop of a photograph in 8x8 blocks; a noisy one takes one
pixel of every block at random, the two of a pair independently, and the clean one is the blocks' mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core import data, hardware, metrics
from core.networks import noise2noise
from core.nn import MSE, SGD, Adam, Module, Tape, scaling

SIDE, BLOCK = 32, 8
CROP = SIDE * BLOCK
BATCH = 50


@dataclass(frozen=True)
class Pictures:
    """uint8, each (N, 32, 32, 3): the two noisy ones of every pair, or, for validation, noisy and clean."""

    noisy: Tensor
    other: Tensor


@dataclass(frozen=True)
class Epoch:
    """Validation after one epoch, in dB: the mean of every picture's PSNR, and the PSNR of the mean error over all pictures."""

    number: int
    loss: float
    mean_of_psnr: float
    psnr_of_mean: float
    seconds: float


def pictures(folders: Sequence[Path], count: int = 50_000, seed: int = 0, most: int = 1000) -> tuple[Pictures, Pictures]:
    """`count` training pairs and a fiftieth as many validation pictures with their truth, from photographs that do not overlap.

    Of at most `most` photographs with 256x256 pixels and more, nine in ten are for training. Raises DataError when there are fewer than 10.
    """
    with ThreadPoolExecutor() as readers:
        found = [p for p in readers.map(data.read, data.find(folders)) if min(p.shape[:2]) >= CROP]
    if len(found) < 10:
        raise data.DataError(f"{len(found)} photographs of at least {CROP}x{CROP} pixels were found: 10 are needed, 1000 are right")
    generator = data.generator_of(seed, 0)
    order = torch.randperm(len(found), generator=generator).tolist()[:most]
    cut = len(order) * 9 // 10
    first, second, _ = _made([found[i] for i in order[:cut]], count, generator)
    noisy, _, clean = _made([found[i] for i in order[cut:]], max(1, count // 50), generator)
    return Pictures(first, second), Pictures(noisy, clean)


def _made(photos: Sequence[Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two noisy pictures and the clean one of `count` crops at random, the photographs taken in turn."""
    made = torch.empty(3, count, SIDE, SIDE, 3, dtype=torch.uint8)
    for i in range(count):
        made[:, i] = _one(photos[i % len(photos)], generator)
    return made[0], made[1], made[2]


def _one(photo: Tensor, generator: torch.Generator) -> Tensor:
    """(3, 32, 32, 3) uint8: two noisy pictures and the clean one of a crop at random."""
    H, W, _ = photo.shape
    y, x = (int(torch.randint(size - CROP + 1, (), generator=generator)) for size in (H, W))
    blocks = photo[y : y + CROP, x : x + CROP].reshape(SIDE, BLOCK, SIDE, BLOCK, 3).transpose(1, 2).reshape(SIDE, SIDE, BLOCK * BLOCK, 3)
    picked = torch.randint(BLOCK * BLOCK, (SIDE, SIDE, 2, 1), generator=generator).expand(-1, -1, -1, 3)
    clean = blocks.sum(2, keepdim=True, dtype=torch.int32).add_(BLOCK * BLOCK // 2).div(BLOCK * BLOCK, rounding_mode="floor")
    return torch.cat((blocks.gather(2, picked), clean.to(torch.uint8)), 2).permute(2, 0, 1, 3)


def train(
    training: Pictures,
    validation: Pictures,
    recipe: str = "report",
    epochs: int = 20,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    after_batch: Callable[[int, int], None] = lambda done, batches: None,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Module:
    """Trains `core.networks.noise2noise` on noisy pairs, telling each batch (of all epochs') and each epoch's validation as it goes.

    recipe: "report" is SGD at learning rate 2; "better" is Adam with warm-up and cosine decay, each pair learned from in both directions
    and in one of its eight orientations, and the moving average of the weights as the result.
    """
    if recipe not in ("report", "better"):
        raise ValueError(f'recipe = "{recipe}" must be "report" or "better"')
    hardware.keep_freed_memory()
    where = hardware.take(device)
    factors = hardware.take_dtype(dtype, where)
    kind = torch.float32  # as in the same network in torch.nn: the experiment is about learning, not about arithmetic
    better = recipe == "better"
    network = noise2noise(torch.Generator().manual_seed(seed)).to(where).multiply_in(factors, kind)
    average = {p.name: p.value.clone() for p in network.param()}
    loss, sgd, adam = MSE(), SGD(2.0), Adam()
    batches, done = -(-len(training.noisy) // BATCH), 0
    started = time.monotonic()
    for epoch in range(epochs):
        generator = data.generator_of(seed, epoch)
        total = 0.0
        for chosen in torch.split(torch.randperm(len(training.noisy), generator=generator), BATCH):
            noisy, target = _floats(training.noisy[chosen], where), _floats(training.other[chosen], where)
            if better:
                noisy, target = _either_way(noisy, target, generator)
            tape: Tape = []
            clean = network.forward(noisy, tape)
            total += loss.forward(clean, target).item()
            scaling.derive(network, loss.backward(clean, target), tape, factors, kind)
            if better:
                adam.lr = 4e-3 * min(1.0, (done + 1) / 500) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done / (batches * epochs))))
                network.train(adam)
                for name, value, _ in network.param():
                    average[name].lerp_(value, 1 - min(0.998, (done + 1) / (done + 10)))
            else:
                network.train(sgd)
            done += 1
            after_batch(done, batches * epochs)
        result = network
        if better:
            result = noise2noise().to(where).multiply_in(factors, kind)
            result.load(average)
        means = score(denoise(result, validation.noisy), validation.other)
        after_epoch(Epoch(epoch + 1, total / batches, *means, time.monotonic() - started))
    return result


def denoise(network: Module, noisy: Tensor) -> Tensor:
    """uint8 (N, 32, 32, 3) -> floats in [0, 1] rounded to 8 bits, computed in the weights' own dtype."""
    device = network.param()[0].value.device
    return torch.cat([metrics.to_8bit(network.forward(_floats(part, device)).float()).cpu() for part in torch.split(noisy, 250)])


def score(pictures: Tensor, truth: Tensor) -> tuple[float, float]:
    """(mean of every picture's PSNR, PSNR of the mean error over all) in dB. Pictures are floats in [0, 1], the truth is uint8."""
    errors = (pictures.double() - truth.double() / 255).square().mean((1, 2, 3))
    return (-10 * errors.log10()).mean().item(), -10 * errors.mean().log10().item()


def _floats(pictures: Tensor, device: torch.device) -> Tensor:
    return pictures.to(device).float().div_(255)


def _either_way(noisy: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both pictures are noisy alike: either may be the target. The same flips and turns for a whole batch."""
    swap, mirror, turn = torch.randint(2, (3,), generator=generator).tolist()
    if swap:
        noisy, target = target, noisy
    if mirror:
        noisy, target = noisy.flip(2), target.flip(2)
    return (noisy.transpose(1, 2), target.transpose(1, 2)) if turn else (noisy, target)
