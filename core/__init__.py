"""Clearfold's network, trainer and pictures: tensors in, tensors out. Knows nothing of HTTP.

from core import Denoiser, images
denoiser = Denoiser.load("weights/gaussian.safetensors")
picture = images.read(Path("noisy.jpg").read_bytes())
clean = picture.with_pixels(denoiser(picture.pixels))
"""

from core import images
from core.choice import AUTO, Auto
from core.data import DataError
from core.denoiser import Cancelled, Denoiser, Region
from core.hardware import DeviceError
from core.images import ImageError, Picture
from core.kernels import KernelError
from core.weights import Card, WeightsError

__all__ = [
    "AUTO",
    "Auto",
    "Cancelled",
    "Card",
    "DataError",
    "Denoiser",
    "DeviceError",
    "ImageError",
    "KernelError",
    "Picture",
    "Region",
    "WeightsError",
    "images",
]
