"""`python -m tests.benchmarks.estimate FOLDER`: how far the noise estimate is off on a folder of pictures, and what CPU time it costs.

White Gaussian noise, unclipped, as `clearfold evaluate` puts it on; `--rounded` cuts and rounds it to 8 bits, as a file would hold it.
A picture counts as near and as nearer if it is within 10 and 5 % of the level, and below sigma 10 within 0.7 and 0.4 8-bit steps; it counts
as white if `model=auto` would take its noise for white. Of pairs with real noise, whose level has no such meaning, only that is told.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from core import evaluation, metrics, noise


@dataclass(frozen=True)
class Row:
    """One noise level: shares of pictures, errors in 8-bit steps, and the time of an estimate."""

    sigma: float
    pictures: int
    near: float
    nearer: float
    bias: float
    worst: float
    worst_picture: str
    white: float
    ms_a_megapixel: float


def measure(pictures: evaluation.Pictures, sigma: float, rounded: bool) -> Row:
    errors, seconds, pixels, white = [], 0.0, 0, 0
    for i in range(len(pictures)):
        noisy, _ = pictures.pair(i, sigma)
        noisy = metrics.to_8bit(noisy) if rounded else noisy
        started = time.process_time()
        level = noise.estimate_gaussian(noisy)
        seconds += time.process_time() - started
        pixels += noisy.shape[0] * noisy.shape[1]
        errors.append(255 * level - sigma)
        white += noise.measure(noisy).white
    near, nearer = (0.7, 0.4) if sigma < 10 else (0.1 * sigma, 0.05 * sigma)
    worst = max(range(len(pictures)), key=lambda i: abs(errors[i]))
    return Row(
        sigma,
        len(pictures),
        *(round(sum(abs(error) <= limit for error in errors) / len(errors), 4) for limit in (near, nearer)),
        round(sum(errors) / len(errors), 3),
        round(errors[worst], 3),
        pictures.names[worst],
        round(white / len(pictures), 4),
        round(1e9 * seconds / pixels, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0, 2, 5, 10, 15, 25, 35, 50], help="in 8-bit steps")
    parser.add_argument("--rounded", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()

    pictures = evaluation.Pictures(chosen.folder)
    if pictures.real:
        white = sum(noise.measure(pictures.pair(i, 0).noisy).white for i in range(len(pictures)))
        print(f"{white} of {len(pictures)} pictures have white noise")
        return
    noise.estimate_gaussian(pictures.pair(0, 0).noisy)  # the first call of all pays for torch's threads
    rows = [measure(pictures, sigma, chosen.rounded) for sigma in chosen.sigma]
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print("sigma  pictures   near  nearer    bias   worst  ms/Mpx  white")
    for row in rows:
        print(
            f"{row.sigma:5g}  {row.pictures:8}  {row.near:4.0%}  {row.nearer:6.0%}  {row.bias:+6.2f}  {row.worst:+6.2f}"
            f"  {row.ms_a_megapixel:6.1f}  {row.white:5.0%}  {row.worst_picture}"
        )


if __name__ == "__main__":
    main()
