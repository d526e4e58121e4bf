"""A contact sheet: rows of pictures side by side, one pixel a pixel, each with a line above it. Knows nothing of denoisers or files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 512
"""Of a larger picture the middle of that many pixels is shown: seams, wax and checkerboards are seen at full size only."""
LINE, GAP = 22, 6
"""Height of the line above a picture, and pixels between two of them."""
BACK, FRONT = (24, 24, 24), (235, 235, 235)


def sheet(rows: Sequence[Sequence[tuple[str, Tensor]]]) -> Tensor:
    """Lines and pictures (h, w, 3) in [0, 1] -> (H, W, 3) in [0, 1]."""
    cells = [[(line, _middle(picture)) for line, picture in row] for row in rows]
    heights = [LINE + max(picture.shape[0] for _, picture in row) for row in cells]
    widths = [max(row[x][1].shape[1] for row in cells if x < len(row)) for x in range(max(map(len, cells)))]
    page = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1)), BACK)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    top = GAP
    for row, height in zip(cells, heights, strict=True):
        left = GAP
        for (line, picture), width in zip(row, widths, strict=False):
            while line and draw.textlength(line, font) > width:
                line = line[:-1]
            draw.text((left, top + 2), line, FRONT, font)
            page.paste(Image.fromarray(picture.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()), (left, top + LINE))
            left += width + GAP
        top += height + GAP
    return torch.from_numpy(np.array(page)).float() / 255


def _middle(picture: Tensor) -> Tensor:
    H, W, _ = picture.shape
    top, left = max(0, H - SIDE) // 2, max(0, W - SIDE) // 2
    return picture[top : top + SIDE, left : left + SIDE]
