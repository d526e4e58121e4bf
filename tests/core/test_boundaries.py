"""Which module may know which, and what no file of `core` may name. Reads the source; runs none of it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import core.nn

ROOT = Path(core.nn.__file__).parents[2]
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "core").rglob("*.py"))}
ENGINE = [name for name in FILES if name.startswith("core/nn/")]

FORBIDDEN = (
    "torch.nn",
    "torch.autograd",
    "torch.optim",
    "torch.func",
    "torch.jit",
    "torch.load",
    "torch.save",
    "torch.conv",
    "pickle",
    "marshal",
)
"""Roads to a library's layers, derivatives and update rules, and to weights that run code when they are read."""

ATTRIBUTES = {
    "autograd",
    "requires_grad",
    "requires_grad_",
    "grad_fn",
    "retain_grad",
    "enable_grad",
    "conv2d",
    "conv_transpose2d",
    "convolution",
}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The full name of everything imported, at the top of the file or anywhere in it; `package` is where the file lies."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offences(tree: ast.AST, package: str) -> list[str]:
    """What a file names that `core` does by hand or not at all."""
    found = [name for name in imports(tree, package) if name.startswith(FORBIDDEN)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.startswith(FORBIDDEN) or node.attr in ATTRIBUTES:
                found.append(dotted)
        elif isinstance(node, ast.keyword) and node.arg in ATTRIBUTES:
            found.append(f"{node.arg}=")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward":
            given = len(node.args) + len(node.keywords)
            found += [ast.unparse(node)] if given < 2 else []  # ours take two things, a tensor's none or one
    return found


def parsed(file: str) -> tuple[ast.AST, str]:
    return ast.parse(FILES[file].read_text(encoding="utf-8")), ".".join(Path(file).parent.parts)


def test_the_files_are_found() -> None:
    assert {"core/__init__.py", "core/nn/conv.py", "core/nn/products.py"} <= FILES.keys()


@pytest.mark.parametrize("file", FILES)
def test_core_never_imports_app(file: str) -> None:
    assert [name for name in imports(*parsed(file)) if within(name, "app", "tests")] == []


@pytest.mark.parametrize("file", ENGINE)
def test_the_engine_imports_nothing_of_core_but_itself_but_for_the_kernels_door(file: str) -> None:
    knowing = {f"core/nn/{name}.py" for name in ("convolution", "gated", "optim", "stream")}
    allowed = ("core.nn", "core.kernels") if file in knowing else ("core.nn",)
    assert [name for name in imports(*parsed(file)) if within(name, "core") and not within(name, *allowed)] == []


@pytest.mark.parametrize("file", [name for name in FILES if name.startswith("core/kernels/")])
def test_the_kernels_know_nothing_of_the_engine(file: str) -> None:
    assert [name for name in imports(*parsed(file)) if within(name, "core", "app")] == []


@pytest.mark.parametrize("file", ENGINE)
def test_the_engine_needs_torch_and_the_standard_library_alone(file: str) -> None:
    allowed = {"torch", "core", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(*parsed(file))} <= allowed


@pytest.mark.parametrize("file", FILES)
def test_no_file_of_core_names_autograd_library_layers_or_pickle(file: str) -> None:
    assert offences(*parsed(file)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn",
        "import torch.nn.functional as F",
        "from torch import nn",
        "from torch import optim as o",
        "from torch.autograd import Function",
        "def later():\n    import pickle",
        "from pickle import loads",
        "y = torch.nn.functional.conv2d(x, w)",
        "y = torch.conv2d(x, w)",
        "y = torch.ops.aten.convolution(x, w)",
        "x.requires_grad_()",
        "x.requires_grad = True",
        "x = torch.zeros(3, requires_grad=True)",
        "loss.backward()",
        "y.backward(dy)",
        "weights = torch.load(path)",
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert offences(ast.parse(line), "core") != []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import app.main", "app.main"),
        ("from app import cli", "app.cli"),
        ("from ...app.cli import main", "app.cli.main"),
        ("from .. import weights", "core.weights"),
        ("from .optim import Adam", "core.nn.optim.Adam"),
    ],
)
def test_every_way_to_import_is_read(line: str, name: str) -> None:
    assert list(imports(ast.parse(line), "core.nn")) == [name]


@pytest.mark.parametrize(
    "line", ["dy = layer.backward(dy, tape)", "from core.nn.optim import Adam", "self.dweight = None", "x.sum().item()"]
)
def test_the_engines_own_words_are_free(line: str) -> None:
    assert offences(ast.parse(line), "core.nn") == []


def test_the_engine_exports_just_this() -> None:
    assert core.nn.__all__ == [
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
    assert all(hasattr(core.nn, name) for name in core.nn.__all__)
