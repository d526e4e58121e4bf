"""Builds the C kernels of `core.kernels` where there is a compiler for x86-64. All else about the package is in pyproject.toml.

Without one, or when it fails, the package is installed all the same and computes with torch's products; `clearfold info` says so.
"""

import hashlib
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("core/kernels")
SOURCES = sorted(KERNELS.glob("*.[ch]"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]


class BuildKernels(build_ext):
    """Leaves a copy in the checkout, for whoever runs Clearfold or its tests from there."""

    def run(self) -> None:
        super().run()
        for extension in self.extensions:
            built = Path(self.get_ext_fullpath(extension.name))
            if built.exists() and built.parent.resolve() != KERNELS.resolve():
                shutil.copy(built, KERNELS)


setup(
    ext_modules=[
        Extension(
            "core.kernels._kernels",
            [str(path) for path in SOURCES if path.suffix == ".c"],
            depends=[str(path) for path in SOURCES],
            define_macros=[("CLEARFOLD_SOURCES", f'"{DIGEST}"')],
            extra_compile_args=["-O3", "-std=gnu11"],  # each function names its own instruction set
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
