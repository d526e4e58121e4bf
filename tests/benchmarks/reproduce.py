"""`python -m tests.benchmarks.reproduce DIR ...`: the Noise2Noise experiment by this engine and by torch.nn with autograd, side by side.

Both start from the same weights and see the same batches, epoch by epoch in turn, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing import get_context

from core import data, reproduce
from core.networks import noise2noise
from tests.benchmarks.twin import as_torch


def train_torch(turns: Connection, training: reproduce.Pictures, validation: reproduce.Pictures, seed: int) -> None:
    """As `core.reproduce.train` by its recipe "report", an epoch for each number from the pipe; answers (dB, dB, seconds so far)."""
    network = as_torch(noise2noise(torch.Generator().manual_seed(seed)))
    optimiser, loss, seconds = torch.optim.SGD(network.parameters(), 2.0), nn.MSELoss(), 0.0
    while (epoch := turns.recv()) is not None:
        started = time.monotonic()
        for chosen in torch.split(torch.randperm(len(training.noisy), generator=data.generator_of(seed, epoch)), reproduce.BATCH):
            optimiser.zero_grad()
            loss(network(_nchw(training.noisy[chosen])), _nchw(training.other[chosen])).backward()
            optimiser.step()
        seconds += time.monotonic() - started
        with torch.inference_mode():
            clean = torch.cat([network(_nchw(part)) for part in torch.split(validation.noisy, 250)]).permute(0, 2, 3, 1)
        turns.send((*reproduce.score(clean.clamp(0, 1).mul(255).round().div(255), validation.other), seconds))


def _nchw(pictures: Tensor) -> Tensor:
    return pictures.permute(0, 3, 1, 2).float().div(255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of photographs")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    training, validation = reproduce.pictures(chosen.folders, chosen.pairs, chosen.seed)
    noisy = reproduce.score(validation.noisy.float() / 255, validation.other)
    print(f"noisy input: {noisy[0]:.2f} / {noisy[1]:.2f} dB (mean of PSNR / PSNR of mean)")
    turns, other_end = Pipe()
    # A process of its own: autograd's thread would leave OpenMP with more workers than cores, and slow both.
    twin = get_context("spawn").Process(target=train_torch, args=(other_end, training, validation, chosen.seed), daemon=True)
    twin.start()
    waited, told = 0.0, list[tuple[float, float, float, float]]()

    def after_epoch(epoch: reproduce.Epoch) -> None:
        nonlocal waited
        started = time.monotonic()
        turns.send(epoch.number - 1)
        a, b, seconds = turns.recv()
        ours = epoch.seconds - waited
        print(
            f"epoch {epoch.number:>2}: clearfold {epoch.mean_of_psnr:.2f} / {epoch.psnr_of_mean:.2f} dB in {ours:.0f} s, "
            f"torch.nn {a:.2f} / {b:.2f} dB in {seconds:.0f} s, {seconds / ours:.2f} times as long",
            flush=True,
        )
        told.append((epoch.mean_of_psnr, epoch.psnr_of_mean, a, b))
        waited += time.monotonic() - started

    reproduce.train(training, validation, "report", chosen.epochs, seed=chosen.seed, after_epoch=after_epoch)
    turns.send(None)
    # At learning rate 2 one epoch differs from the next by more than two engines do.
    last = told[-10:]
    means = [sum(column) / len(last) for column in zip(*last, strict=True)]
    print(f"mean of the last {len(last)} epochs: clearfold {means[0]:.2f} / {means[1]:.2f} dB, torch.nn {means[2]:.2f} / {means[3]:.2f} dB")


if __name__ == "__main__":
    main()
