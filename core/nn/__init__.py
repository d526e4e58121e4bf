"""The engine: layers with hand-written derivatives, losses and update rules, on plain tensors. No autograd, no library convolution."""

from core.nn.activation import ReLU, Sigmoid
from core.nn.conv import Conv2d, Convolution, Upsampling
from core.nn.gated import DepthwiseGate, Gate, RMSNorm
from core.nn.loss import L1, MSE, Censored, Charbonnier, LogMSE
from core.nn.module import Module, Parameter, Rule, Tape
from core.nn.optim import SGD, Adam, Muon, clip, norms
from core.nn.resample import DepthToSpace, NearestUpsampling, SpaceToDepth
from core.nn.sequential import Concat, Residual, Sequential
from core.nn.sums import by_halves

__all__ = [
    "L1",
    "MSE",
    "SGD",
    "Adam",
    "Censored",
    "Charbonnier",
    "Concat",
    "Conv2d",
    "Convolution",
    "DepthToSpace",
    "DepthwiseGate",
    "Gate",
    "LogMSE",
    "Module",
    "Muon",
    "NearestUpsampling",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Rule",
    "Sequential",
    "Sigmoid",
    "SpaceToDepth",
    "Tape",
    "Upsampling",
    "by_halves",
    "clip",
    "norms",
]
