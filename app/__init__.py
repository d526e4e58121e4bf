"""Clearfold's service: pictures and training jobs over HTTP. Knows nothing of gradients."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clearfold")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"
