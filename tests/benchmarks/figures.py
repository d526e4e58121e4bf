"""`python -m tests.benchmarks.figures`: writes README's tables of figures anew, from the cards of the shipped weights. Measures nothing.

`clearfold evaluate --record` puts figures into a card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from core import Card, weights

ROOT = Path(__file__).parents[2]
SIGMAS = ("15", "25", "50")
BEGIN = "<!-- figures: `python -m tests.benchmarks.figures` writes the lines down to the next such mark from the cards -->\n"
END = "<!-- end of figures -->\n"

PUBLISHED = {  # on CBSD68
    "CBM3D": ("33.52", "30.71", "27.38", "–"),
    "CDnCNN-B": ("33.89", "31.23", "27.92", "668 k"),
    "FFDNet": ("33.87", "31.21", "27.96", "212 k"),
    "DRUNet": ("34.30", "31.69", "28.51", "2.1 M"),
}
PUBLISHED_GREY = {"BM3D": "29.97", "DnCNN": "30.44", "DRUNet": "30.94"}  # on Set12, sigma 25


def shipped() -> dict[str, Card]:
    """The cards of the shipped weights, by the models' names."""
    return {path.stem: weights.load(path)[1] for path in sorted((ROOT / "weights").glob("*.safetensors"), key=lambda path: path.stem)}


def tables(cards: Mapping[str, Card]) -> str:
    """What stands between the marks. A model has a row where its card has a figure."""
    white = [[f"{name} (published)", *row] for name, row in PUBLISHED.items()]
    other = [[f"{name} (published)", figure, "–"] for name, figure in PUBLISHED_GREY.items()]
    before = "–"
    for name, card in cards.items():
        cost = f"{round(card['multiply_adds_a_pixel'] / 1000)} k"
        not_told = "σ not told" if card.get("blind") else "σ estimated"
        for key, words in (("cbsd68, sigma known", "σ known"), ("cbsd68, sigma estimated", not_told)):
            figures = [_psnr(card, key, sigma) for sigma in SIGMAS]
            if figures != ["–"] * 3:
                bold = name == "gaussian-fine" and words == "σ known"
                cells = [f"Clearfold `{name}`, {words}", *figures]
                white.append([f"**{cell}**" if bold else cell for cell in cells] + [cost])
        grey, real = _psnr(card, "set12_gray, sigma known", "25"), _psnr(card, "polyu100, real noise", "not told")
        if (grey, real) != ("–", "–"):
            other.append([f"Clearfold `{name}`", grey, real])
        told = _psnr(card, "polyu100, real noise", "told 12")
        if told != "–":
            other.append([f"Clearfold `{name}`, told σ = 12", "–", told])
        noisy = re.search(r"before: (\d+\.\d+)", str(card["figures"].get("polyu100, real noise", "")))
        before = noisy[1] if noisy else before
    lines = [
        "PSNR in dB on all 68 pictures of CBSD68, by the published protocol (unclipped Gaussian noise on 8-bit pictures, result rounded to",
        "8 bits), the published figures with the noise level known:",
        "",
        *_table(["", *(f"σ = {sigma}" for sigma in SIGMAS), "multiply-adds a pixel"], white),
    ]
    if len(other) > len(PUBLISHED_GREY):
        lines += [
            "",
            "The same on Set12, in greyscale, and on the 100 real pairs of PolyU, where nothing is told of the noise but where it says so:",
            "",
            *_table(["", "Set12, σ = 25", "PolyU, real noise"], [["noisy input", "20.17", before], *other]),
        ]
    return "\n".join(lines) + "\n"


def written(readme: str, cards: Mapping[str, Card]) -> str:
    """The README with its tables from these cards."""
    head, rest = readme.split(BEGIN)
    return head + BEGIN + tables(cards) + END + rest.split(END)[1]


def _psnr(card: Card, key: str, level: str) -> str:
    return str(card["figures"].get(key, {}).get(level, "–")).split(" ")[0]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    first, *rest = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows))
    return [first, "|" + "---|" * len(head), *rest]


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8"), shipped()), encoding="utf-8")
    print(f"{path} is written")


if __name__ == "__main__":
    main()
