"""Derivatives in float16, whose numbers go from 6e-8 to 65504: those of a loss, commonly near a millionth, are scaled up to lie amid them.

Loss scaling (Micikevicius et al. 2018, "Mixed Precision Training"), the scale found anew at each step from the loss's own derivative. So
nothing is kept from step to step, and a run that is resumed computes the very same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.nn.module import Module, Tape

LARGEST = 1.0
"""The largest of the loss's scaled derivatives by the prediction. Measured on shipped and on random weights, with L1 and LogMSE: from 1/64
to 16 times as much, gradients are as near to float32's, and nearer than bfloat16's; at 64 times some overflow, at 1/256 many are lost."""


def derive(network: Module, dy: Tensor, tape: Tape, factors: torch.dtype, activations: torch.dtype) -> None:
    """`network.derive` for a network that multiplies in `factors`, with derivatives in `activations`; by weights, they are the loss's own.

    In float16, where they overflow all the same, those come out infinite or NaN.
    """
    scale: float | Tensor = 1.0
    if factors == torch.float16 and dy.device.type == "cpu":
        lowest, highest = torch.aminmax(dy)
        largest = max(-lowest.item(), highest.item())
        scale = 2.0 ** math.floor(math.log2(LARGEST / largest)) if 0 < largest < math.inf else 1.0
    elif factors == torch.float16:  # without waiting for a number
        ratio = LARGEST / torch.linalg.vector_norm(dy, math.inf, dtype=torch.float32)
        scale = torch.where((ratio > 0) & (ratio < math.inf), ratio.log2().floor().exp2(), 1.0)
    network.scale_loss(scale)
    network.derive((dy * scale if isinstance(scale, Tensor) or scale != 1 else dy).to(activations), tape)
