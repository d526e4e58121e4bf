"""Clearfold's network, trainer and pictures: tensors in, tensors out. Knows nothing of HTTP.

from core import Denoiser, images
denoiser = Denoiser.load("weights/gaussian.safetensors")
picture = images.read(Path("noisy.jpg").read_bytes())
clean = picture.with_pixels(denoiser(picture.pixels))

Each name is fetched when it is first used: a process that only decodes pictures loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core import images
    from core.choice import AUTO, Auto
    from core.data import DataError
    from core.decoders import Decoders, PictureFile
    from core.decoding import ImageError
    from core.denoiser import Cancelled, Denoiser, Region
    from core.ensemble import Ensemble
    from core.hardware import DeviceError
    from core.images import Picture
    from core.kernels import KernelError
    from core.weights import Card, WeightsError

__all__ = [
    "AUTO",
    "Auto",
    "Cancelled",
    "Card",
    "DataError",
    "Decoders",
    "Denoiser",
    "DeviceError",
    "Ensemble",
    "ImageError",
    "KernelError",
    "Picture",
    "PictureFile",
    "Region",
    "WeightsError",
    "images",
]

_PLACES = {
    "AUTO": "choice",
    "Auto": "choice",
    "Cancelled": "denoiser",
    "Card": "weights",
    "DataError": "data",
    "Decoders": "decoders",
    "Denoiser": "denoiser",
    "DeviceError": "hardware",
    "Ensemble": "ensemble",
    "ImageError": "decoding",
    "KernelError": "kernels",
    "Picture": "images",
    "PictureFile": "decoders",
    "Region": "denoiser",
    "WeightsError": "weights",
}


def __getattr__(name: str) -> Any:
    if name == "images":
        return import_module("core.images")
    if name in _PLACES:
        return getattr(import_module(f"core.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'core' has no attribute {name!r}")
