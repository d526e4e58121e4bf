"""`python -m tests.benchmarks.strength FOLDER`: what `strength` does, from 0 to 2, on a folder of clean pictures or of pairs.

Prints the share of the noise that is left, PSNR, and how far the mean of a channel moves, as `clearfold evaluate` defines them. Fails if
strength 0 changes a bit, or if more strength leaves more noise, by over a thousandth of what there was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from core import Denoiser, evaluation


class At:
    """A denoiser at one strength."""

    def __init__(self, denoiser: Denoiser, strength: float) -> None:
        self._denoiser, self._strength = denoiser, strength
        self.name, self.device, self.dtype = denoiser.name, denoiser.device, denoiser.dtype
        self.changed = False

    def __call__(self, pixels: Tensor, sigma: float | None = None, /) -> Tensor:
        clean = self._denoiser(pixels, sigma, self._strength)
        self.changed = self.changed or not torch.equal(clean, pixels)
        return clean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path("weights/gaussian.safetensors"))
    parser.add_argument("--sigma", type=float, help="in 8-bit steps; without it 25 is put on clean pictures, and pairs are not told")
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="measure every so many pictures only")
    chosen = parser.parse_args()

    pictures = evaluation.Pictures(chosen.folder).every(chosen.every)
    sigmas = [chosen.sigma] if chosen.sigma is not None else None if pictures.real else [25.0]
    denoiser, left, fails = Denoiser.load(chosen.model), 1.0, []
    print("strength  noise left      dB  mean moves by")
    for strength in (0, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2):
        at = At(denoiser, strength)
        (row,) = evaluation.evaluate(at, pictures, sigmas, chosen.blind)
        print(f"{strength:8g}  {row.left:10.2%}  {row.psnr:6.2f}  {row.shift:.3f}, worst {row.worst_shift:.3f}", flush=True)
        if strength == 0 and at.changed:
            fails.append("strength 0 changes the picture")
        if row.left > left + 1e-3:
            fails.append(f"strength {strength:g} leaves more noise than less strength does")
        left = row.left
    sys.exit("\n".join(fails) or None)


if __name__ == "__main__":
    main()
