"""The README's commands are run, its Python is executed, and its figures are the shipped card's."""

import re
import shlex
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from typer.testing import CliRunner

from app.cli import cli
from app.main import create_app
from app.settings import Settings
from core import images, weights
from tests.benchmarks import figures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HERE = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Every command line of `program` in the README, taken apart as a shell would."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program + " ")]


def curl(arguments: list[str]) -> httpx.Response:
    """What curl would do with the few options that the README uses."""
    headers: dict[str, str] = {}
    files: list[tuple[str, tuple[str | None, bytes]]] = []
    body, out, url, method = None, None, "", None
    left = iter(arguments)
    for word in left:
        match word:
            case "-F":
                name, value = next(left).split("=", 1)
                path = Path(value[1:])
                files.append((name, (path.name, path.read_bytes()) if value[0] == "@" else (None, value.encode())))
            case "--data-binary":
                body = Path(next(left)[1:]).read_bytes()
            case "-H":
                name, value = next(left).split(": ")
                headers[name] = value
            case "-o":
                out = Path(next(left))
            case "-D":
                assert next(left) == "-"
            case "-N":
                pass
            case "-X":
                method = next(left)
            case "-d":
                body = next(left).encode()
            case _:
                assert word.startswith("http"), f"what does curl do with {word}?"
                url = word
    sends = body is not None or files
    answer = httpx.request(method or ("POST" if sends else "GET"), url, headers=headers, content=body, files=files or None, timeout=300)
    if out is not None:
        out.write_bytes(answer.content)
    return answer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's commands name, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    for name in (
        "noisy.jpg",
        "pictures/one.png",
        "pictures/deep/two.jpg",
        "CBSD68/a.png",
        *(f"PolyU/{x}.png" for x in ("a_noisy", "a_clean")),
        *(f"photographs/{i}.png" for i in range(3)),
    ):
        pixels = torch.linspace(0, 1, 128)[:, None, None].expand(128, 160, 3) + 0.1 * torch.randn(128, 160, 3, generator=generator)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.write(images.Picture(pixels.clamp(0, 1)), {".jpg": "jpeg"}.get(path.suffix, "png")))
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARFOLD_TRAIN_DIR", str(tmp_path / "train"))
    return tmp_path


@pytest.fixture
def service(folder: Path) -> Iterator[str]:
    """The service with the shipped weights, on a free port."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(Settings()), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            thread.join(0.02)
        yield "http://{}:{}".format(*listening.getsockname())
        server.should_exit = True
        thread.join()


def test_the_two_commands_are_there() -> None:
    assert re.search(r"^pip install \. && clearfold serve +# then http://127\.0\.0\.1:8000$", README, re.MULTILINE)
    assert re.search(r"^pip install '\.\[test\]' && pytest$", README, re.MULTILINE)


def test_every_curl_command_works(service: str, folder: Path) -> None:

    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for path in (folder / "photographs").iterdir():
            archive.write(path, path.name)
    shown = commands("curl")
    assert len(shown) >= 8
    job = ""
    for words in shown:
        if "-N" in words:  # until the job has ended: not for ten minutes here
            httpx.post(f"{service}{job}/cancel")
        answer = curl([word.replace(HERE, service).replace("/train/ID", job).replace('"mine"', '"gaussian"') for word in words[1:]])
        job = answer.headers.get("Location", job)
        assert answer.status_code == (202 if f"{HERE}/train" in words else 200), (words, answer.text)
        if "-o" in words:
            out = Path(words[words.index("-o") + 1])
            assert zipfile.is_zipfile(out) if out.suffix == ".zip" else images.sniff(out.read_bytes()) in ("jpeg", "png")


@pytest.mark.parametrize("words", [words for words in commands("clearfold") if words[1] != "reproduce"], ids=" ".join)
def test_every_clearfold_command_works(words: list[str], folder: Path) -> None:
    if words[1] == "train":
        bound, short = ("--steps", "2") if "--steps" in words else ("--minutes", "0.1")
        words[words.index(bound) + 1] = short  # of 7000 steps, or a night
    if words[1] == "evaluate":
        shutil.copy(ROOT / "weights/gaussian.safetensors", folder / "mine.safetensors")
    if "--initial" in words:
        shutil.copy(ROOT / "weights/gaussian-fine.safetensors", folder / words[words.index("--initial") + 1])
    ran = CliRunner().invoke(cli, words[1:])
    assert ran.exit_code == 0, (words, ran.output, ran.exception)


def test_the_python_example_works(folder: Path) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    clean = images.read((folder / "clean.jpg").read_bytes())
    assert clean.pixels.shape == (128, 160, 3)
    noisy = images.read((folder / "noisy.jpg").read_bytes())
    assert clean.pixels[8:-8].diff(dim=1).abs().mean() < 0.3 * noisy.pixels[8:-8].diff(dim=1).abs().mean()


def test_the_tables_are_made_from_the_shipped_cards() -> None:
    assert figures.written(README, figures.shipped()) == README, "run python -m tests.benchmarks.figures"


@pytest.mark.parametrize("name", list(figures.shipped()))
def test_the_figures_are_the_shipped_cards(name: str) -> None:
    _, card = weights.load(ROOT / f"weights/{name}.safetensors")
    for known, row in (("known", "σ known"), ("estimated", "σ not told" if card.get("blind") else "σ estimated")):
        recorded = card["figures"].get(f"cbsd68, sigma {known}")
        lines = [line for line in README.splitlines() if f"Clearfold `{name}`, {row}" in line]
        assert len(lines) == (recorded is not None)
        if recorded:
            assert re.findall(r"\d\d\.\d\d", lines[0]) == [recorded[sigma].split(" ")[0] for sigma in ("15", "25", "50")]
            assert f"{round(card['multiply_adds_a_pixel'] / 1000)} k" in lines[0]


def test_a_row_for_every_figure_in_a_card() -> None:
    """Three models with figures of every set: each of their figures stands in the tables, and the published ones too."""
    sets = {"cbsd68, sigma known": ("15", "25", "50"), "cbsd68, sigma estimated": ("15", "25", "50"), "set12_gray, sigma known": ("25",)}
    values = iter(f"{31 + i / 100:.2f}" for i in range(100))
    cards = {}
    for name in ("gaussian", "gaussian-fine", "photo"):
        recorded = {key: {level: f"{next(values)} dB, SSIM 0.9" for level in levels} for key, levels in sets.items()}
        recorded["polyu100, real noise"] = {level: f"{next(values)} dB, SSIM 0.9 (before: 35.97 dB)" for level in ("not told", "told 12")}
        cards[name] = {"multiply_adds_a_pixel": 196544, "figures": recorded, "blind": name == "photo"}
    made = figures.tables(cards)
    for figure in [f"{31 + i / 100:.2f}" for i in range(27)] + ["33.52", "31.69", "30.44", "35.97"]:
        assert re.search(rf"\| \**{re.escape(figure)}\** \|", made), figure
    assert "Clearfold `photo`, σ not told" in made


@pytest.mark.parametrize("name", list(figures.shipped()))
def test_the_card_beside_the_weights_is_the_one_inside(name: str) -> None:
    _, card = weights.load(ROOT / f"weights/{name}.safetensors")
    assert (ROOT / f"weights/{name}.md").read_text(encoding="utf-8") == weights.card_text(card)
    assert {"data", "recipe", "figures", "licence", "limits"} <= card.keys()


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
