"""Builds the C kernels of `core.kernels` where there is a compiler for x86-64. All else about the package is in pyproject.toml.

Without one, or when it fails, the package is installed all the same and computes with torch's products; `clearfold info` says so.
"""

import hashlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("core/kernels")
SOURCES = sorted(KERNELS.glob("*.[ch]"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]

NEWER = {
    "AMX": ("gcc from 11, clang from 12 do", "amx-tile,amx-bf16", "void multiply(void) { _tile_dpbf16ps(0, 1, 2); }"),
    "FP16": ("gcc from 12, clang from 14 do", "avx512fp16", "__m512h multiply(__m512h x) { return _mm512_mul_ph(x, x); }"),
}
"""What not every compiler knows: which do, and a trial of it."""


class BuildKernels(build_ext):
    """Leaves a copy in the checkout, for whoever runs Clearfold or its tests from there. A compiler too old for a part builds all else."""

    def run(self) -> None:
        super().run()
        for extension in self.extensions:
            built = Path(self.get_ext_fullpath(extension.name))
            if built.exists() and built.parent.resolve() != KERNELS.resolve():
                shutil.copy(built, KERNELS)

    def build_extensions(self) -> None:
        for name, (known_by, target, trial) in NEWER.items():
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "trial.c")
                source.write_text(f'#include <immintrin.h>\n__attribute__((target("{target}"))) {trial}\n')
                try:
                    self.compiler.compile([str(source)], output_dir=folder)
                except CompileError:
                    self.warn(f"the compiler knows no {name} ({known_by}): the kernels are built without those for {name}")
                    for extension in self.extensions:
                        extension.define_macros.append((f"CLEARFOLD_WITHOUT_{name}", None))
        one = self.compiler.compile

        def side_by_side(sources: list[str], *arguments: object, **more: object) -> list[str]:
            with ThreadPoolExecutor() as pool:
                return [made for (made,) in pool.map(lambda source: one([source], *arguments, **more), sources)]

        self.compiler.compile = side_by_side
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
