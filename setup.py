"""Builds the C kernels of `core.kernels` where there is a compiler for x86-64. All else about the package is in pyproject.toml.

Without one, or when it fails, the package is installed all the same and computes with torch's products; `clearfold info` says so.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("core/kernels")
SOURCES = sorted(KERNELS.glob("*.[ch]"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]


AMX = '#include <immintrin.h>\n__attribute__((target("amx-tile,amx-bf16"))) void multiply(void) { _tile_dpbf16ps(0, 1, 2); }\n'


class BuildKernels(build_ext):
    """Leaves a copy in the checkout, for whoever runs Clearfold or its tests from there. A compiler too old for AMX builds all else."""

    def run(self) -> None:
        super().run()
        for extension in self.extensions:
            built = Path(self.get_ext_fullpath(extension.name))
            if built.exists() and built.parent.resolve() != KERNELS.resolve():
                shutil.copy(built, KERNELS)

    def build_extensions(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder, "amx.c")
            trial.write_text(AMX)
            try:
                self.compiler.compile([str(trial)], output_dir=folder)
            except CompileError:
                self.warn("the compiler knows no AMX (gcc from 11, clang from 12 do): the kernels are built without those for AMX")
                for extension in self.extensions:
                    extension.define_macros.append(("CLEARFOLD_WITHOUT_AMX", None))
        super().build_extensions()


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
