"""The `clearfold` command: run in this process by its entry point, and as a true process where signals and statuses count."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys import DEADLINE_SECONDS, noise, wait_for
from typer.testing import CliRunner

from app import cli
from app.server import Protocol
from app.settings import Settings
from core import kernels, networks, weights

ROOT = Path(cli.__file__).parents[1]
COMMANDS = ("serve", "denoise", "train", "evaluate", "reproduce", "info", "models")


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed where."""

    status: int
    out: str
    err: str


Clearfold = Callable[..., Said]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models: `lively`, of random weights, and `same`, which corrects nothing."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, scale in (("lively", 1.5), ("same", 0.0)):
        values = {p.name: (scale * p.value).half() for p in networks.unet(torch.Generator().manual_seed(1)).param()}
        card = {"title": f"The {name}", "architecture": "unet", "summary": f"The {name} one.", "figures": {}}
        weights.save(folder / f"{name}.safetensors", values, card)
    return folder


@pytest.fixture(autouse=True)
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and the models in the environment."""
    monkeypatch.setenv("CLEARFOLD_MODELS_DIR", str(shelf))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def clearfold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clearfold:
    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["clearfold", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Said(status, *capsys.readouterr())

    return run


def process(*arguments: object, **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload,no-any-return]


def ended(child: subprocess.Popen[str]) -> Said:
    try:
        out, err = child.communicate(timeout=DEADLINE_SECONDS)
    finally:
        child.kill()
    return Said(child.returncode, out, err)


def picture(path: Path | str, seed: int = 0, size: tuple[int, int] = (20, 12)) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(*size, seed=seed).save(path)
    return path


def opened(path: Path | str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if ".clearfold" not in path.parts)  # the ledger


def mistakes(said: Said) -> list[str]:
    """The lines that tell what went wrong; there is never a traceback among what else was printed."""
    assert "Traceback" not in said.err + said.out
    return [line for line in said.err.splitlines() if line.startswith("clearfold: ")]


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_names_its_options(command: str) -> None:
    result = CliRunner().invoke(cli.cli, [command, "--help"])
    assert result.exit_code == 0
    parameters = next(c for c in cli.cli.registered_commands if c.callback and c.callback.__name__ == command).callback.__annotations__
    for name in parameters.keys() - {"return", "paths", "folders", "folder", "name", "as_json"}:
        assert "--" + name.replace("_", "-") in result.output, name


def test_without_a_command_it_lists_them() -> None:
    result = CliRunner().invoke(cli.cli, [])
    assert all(re.search(rf"^\W*{command}\s", result.output, re.MULTILINE) for command in COMMANDS)


def test_the_help_of_serve_explains_every_setting() -> None:
    result = CliRunner().invoke(cli.cli, ["serve", "--help"])
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())
    for name, field in Settings.model_fields.items():
        assert re.search(rf"CLEARFOLD_{name.upper()} = \S+: ", said), name
        assert " ".join(str(field.description).split()) in said, name


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from typer.testing import CliRunner; from app.cli import cli; CliRunner().invoke(cli, ['denoise', '--help']); "
    child = subprocess.run([sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"


@pytest.mark.parametrize("arguments", [("frobnicate",), ("denoise",), ("denoise", "a.png", "--loud"), ("models", "a", "b")])
def test_a_wrong_command_line_is_a_line_and_status_2(clearfold: Clearfold, arguments: tuple[str, ...]) -> None:
    said = clearfold(*arguments)
    assert said.status == 2
    assert "Usage: " in said.err
    assert mistakes(said) == []


# Denoise.


def test_a_picture_is_denoised_beside_itself(clearfold: Clearfold, here: Path) -> None:
    before = picture("a.png").read_bytes()
    said = clearfold("denoise", "a.png", "--sigma", "25", "--device", "cpu", "--dtype", "float32")
    assert (said.status, mistakes(said)) == (0, [])
    assert "lively on cpu in float32" in said.err
    assert files(here) == ["a-denoised.png", "a.png"]
    assert Path("a.png").read_bytes() == before
    clean = opened("a-denoised.png")
    assert (clean.format, clean.mode, clean.size) == ("PNG", "RGB", (20, 12))
    assert clean.tobytes() != opened("a.png").tobytes()


def test_the_result_is_the_denoisers_rounded_to_8_bits(clearfold: Clearfold, shelf: Path) -> None:
    from core import Denoiser, images

    pixels = images.read(picture("a.png").read_bytes()).pixels
    clean = Denoiser.load(shelf / "lively.safetensors", "cpu", "float32")(pixels, 30 / 255, 0.5)
    clearfold("denoise", "a.png", "--sigma", "30", "--strength", "0.5", "--device", "cpu", "--dtype", "float32")
    assert opened("a-denoised.png").tobytes() == clean.mul(255).round().to(torch.uint8).numpy().tobytes()


def test_an_ensemble_is_the_mean_of_eight_views(clearfold: Clearfold, shelf: Path) -> None:
    from core import Denoiser, Ensemble, images

    pixels = images.read(picture("a.png").read_bytes()).samples
    clean = Ensemble(Denoiser.load(shelf / "lively.safetensors", "cpu", "float32"))(pixels, 30 / 255)
    assert clearfold("denoise", "a.png", "--sigma", "30", "--ensemble", "--device", "cpu", "--dtype", "float32").status == 0
    assert opened("a-denoised.png").tobytes() == clean.numpy().tobytes()


@pytest.mark.parametrize("options", [("--strength", "0"), ("--sigma", "0"), ("--model", "same", "--sigma", "40")])
def test_nothing_to_remove_changes_nothing(clearfold: Clearfold, options: tuple[str, ...]) -> None:
    picture("a.png")
    assert clearfold("denoise", "a.png", *options).status == 0
    assert opened("a-denoised.png").tobytes() == opened("a.png").tobytes()


def test_every_frame_of_an_animation_is_denoised_and_a_format_of_one_picture_is_refused(clearfold: Clearfold, here: Path) -> None:
    frames = [noise(20, 12, seed=seed) for seed in range(3)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:], duration=[70, 80, 90], loop=0)
    assert clearfold("denoise", "a.gif", "--format", "png").status == 0
    with Image.open("a-denoised.png") as back:
        assert (back.n_frames, back.info["loop"], back.info["duration"]) == (3, 0, 70)  # type: ignore[attr-defined]
    said = clearfold("denoise", "a.gif", "--format", "jpeg")
    assert said.status == 1
    assert mistakes(said) == ["clearfold: a.gif: the file holds 3 frames, and jpeg holds one: choose one of png, webp, tiff, gif"]
    assert files(here) == ["a-denoised.png", "a.gif"]


def test_a_model_may_be_named_or_be_a_file(clearfold: Clearfold, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    taken = [clearfold("denoise", "a.png", *options).err for options in ((), ("--model", "same"), ("--model", shelf / "same.safetensors"))]
    monkeypatch.setenv("CLEARFOLD_DEFAULT_MODEL", "same")
    taken.append(clearfold("denoise", "a.png").err)
    assert [said.split(" on ")[0] for said in taken] == ["lively", "same", "same", "same"]


def test_a_folder_is_denoised_with_all_below_and_its_results_are_not_denoised_again(clearfold: Clearfold, here: Path) -> None:
    for name in ("in/a.png", "in/deep/b.jpg", "in/c.PNG"):
        picture(name)
    Path("in/notes.txt").write_text("not a picture")
    for _ in range(2):
        assert clearfold("denoise", "in").status == 0
        assert files(here) == [
            "in/a-denoised.png", "in/a.png", "in/c-denoised.PNG", "in/c.PNG",
            "in/deep/b-denoised.jpg", "in/deep/b.jpg", "in/notes.txt",
        ]  # fmt: skip
    assert opened("in/deep/b-denoised.jpg").format == "JPEG"


def test_to_a_folder_the_tree_is_kept_and_not_denoised_again(clearfold: Clearfold, here: Path) -> None:
    for name in ("in/a.png", "in/deep/b.png"):
        picture(name)
    for _ in range(2):
        assert clearfold("denoise", "in", "-o", "in/clean").status == 0
        assert files(here) == ["in/a.png", "in/clean/a.png", "in/clean/deep/b.png", "in/deep/b.png"]


def test_a_picture_that_is_called_like_a_result_without_being_one_is_passed_over_in_words(clearfold: Clearfold, here: Path) -> None:
    for name in ("in/a.png", "in/a-denoised.jpg", "in/b-denoised.png"):
        picture(name)
    said = clearfold("denoise", "in", "-o", "out")
    assert said.status == 0
    assert Path("out/a.png").exists()
    assert not Path("out/b-denoised.png").exists()
    told = [line for line in said.err.splitlines() if "passed over" in line]
    assert told == ["in/b-denoised.png was passed over, for an earlier run may have written it: name it itself if it is to be denoised"]


def test_a_result_that_is_named_itself_is_denoised(clearfold: Clearfold, here: Path) -> None:
    picture("a-denoised.png")
    assert clearfold("denoise", "a-denoised.png").status == 0
    assert files(here) == ["a-denoised-denoised.png", "a-denoised.png"]


def test_a_picture_goes_to_the_file_that_is_named_in_the_format_of_its_name(clearfold: Clearfold) -> None:
    picture("a.png")
    assert clearfold("denoise", "a.png", "-o", "new/b.webp").status == 0
    assert opened("new/b.webp").format == "WEBP"


@pytest.mark.parametrize("made", [True, False])
def test_pictures_go_to_the_folder_that_is_named(clearfold: Clearfold, here: Path, made: bool) -> None:
    picture("a.png"), picture("b.jpg")
    if made:
        Path("out.v2").mkdir()
    assert clearfold("denoise", "a.png", "b.jpg", "--output", "out.v2").status == 0
    assert files(here / "out.v2") == ["a.png", "b.jpg"]


def test_one_picture_goes_into_a_folder_that_is_there_whatever_its_name(clearfold: Clearfold) -> None:
    picture("a.png")
    Path("out.v2").mkdir()
    assert clearfold("denoise", "a.png", "-o", "out.v2").status == 0
    assert opened("out.v2/a.png").size == (20, 12)


def test_a_folder_of_one_picture_goes_into_a_folder(clearfold: Clearfold) -> None:
    picture("in/a.png")
    assert clearfold("denoise", "in", "-o", "out.v2").status == 0
    assert opened("out.v2/a.png").size == (20, 12)


@pytest.mark.parametrize("name", ["jpeg", "jpg", "JPG"])
def test_a_format_may_be_asked_for_by_name_or_suffix(clearfold: Clearfold, name: str) -> None:
    picture("a.png")
    assert clearfold("denoise", "a.png", "--format", name).status == 0
    assert opened("a-denoised.jpg").format == "JPEG"


def test_quality_makes_a_smaller_file(clearfold: Clearfold) -> None:
    picture("a.jpg", size=(60, 60))
    sizes = []
    for quality in (90, 20):
        assert clearfold("denoise", "a.jpg", "--quality", quality).status == 0
        sizes.append(Path("a-denoised.jpg").stat().st_size)
    assert sizes[1] < sizes[0] / 2


def test_a_file_without_a_suffix_is_taken_by_its_first_bytes(clearfold: Clearfold) -> None:
    picture("a.png").rename("scan")
    assert clearfold("denoise", "scan").status == 0
    assert opened("scan-denoised.png").size == (20, 12)


def test_bad_files_are_named_and_passed_over(clearfold: Clearfold, here: Path) -> None:
    picture("in/a.png"), picture("in/z.png")
    picture("in/m.png").write_bytes(b"not a picture at all")
    Path("empty").mkdir()
    said = clearfold("denoise", "in", "none.png", "empty")
    assert said.status == 1
    assert files(here) == ["in/a-denoised.png", "in/a.png", "in/m.png", "in/z-denoised.png", "in/z.png"]
    missing, empty, bad = mistakes(said)
    assert missing == "clearfold: none.png does not exist: name a picture, or a folder with pictures in it"
    assert empty == "clearfold: empty holds no picture"
    assert bad.startswith("clearfold: in/m.png: the file is no picture of a known format: send one of png, jpeg")


def test_a_picture_may_be_as_large_as_is_said(clearfold: Clearfold) -> None:
    picture("a.png")
    told = "clearfold: a.png: the picture has 240 pixels; at most max_pixels = 239 are accepted: shrink it or raise the limit"
    assert mistakes(clearfold("denoise", "a.png", "--max-pixels", "239")) == [told]
    assert clearfold("denoise", "a.png", "--max-pixels", "240").status == 0


def test_what_is_wrong_is_one_line_however_narrow_the_screen(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "a-rather-long-name-of-a-file-[bold]that-is-not-there.png"
    assert mistakes(clearfold("denoise", name)) == [f"clearfold: {name} does not exist: name a picture, or a folder with pictures in it"]


def test_a_name_that_looks_like_markup_is_a_name(clearfold: Clearfold) -> None:
    picture("[red]a[bold].png")
    assert clearfold("denoise", "[red]a[bold].png").status == 0
    assert Path("[red]a[bold]-denoised.png").exists()


def test_no_result_is_written_over_another(clearfold: Clearfold, here: Path) -> None:
    picture("one/a.png", seed=1), picture("two/a.png", seed=2)
    said = clearfold("denoise", "one", "two", "-o", "out", "--strength", "0")
    assert said.status == 1
    assert mistakes(said) == ["clearfold: two/a.png: not written over out/a.png: choose another --output, or rename one"]
    assert opened("out/a.png").tobytes() == opened("one/a.png").tobytes()


@pytest.mark.parametrize("given", ["in", "in/a.png"])
def test_no_original_is_written_over(clearfold: Clearfold, given: str) -> None:
    before = picture("in/a.png").read_bytes()
    said = clearfold("denoise", given, "-o", "in")
    assert said.status == 1
    assert mistakes(said) == ["clearfold: in/a.png: not written over in/a.png: choose another --output, or rename one"]
    assert Path("in/a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sigma", "loud"), "'loud' must be auto, or a number from 0 to 100 in 8-bit steps"),
        (("--sigma", "101"), "'101' must be auto, or a number from 0 to 100 in 8-bit steps"),
        (("--sigma", "-1"), "'-1' must be auto, or a number from 0 to 100 in 8-bit steps"),
        (("--sigma", "nan"), "'nan' must be auto, or a number from 0 to 100 in 8-bit steps"),
        (("--format", "docx"), "'docx' must be one of png, jpeg, webp, tiff, bmp, gif"),
        (("-o", "a.docx"), "'docx' must be one of png, jpeg, webp, tiff, bmp, gif"),
        (("--quality", "0"), "'--quality': Input should be greater than or equal to 1"),
        (("--quality", "101"), "'--quality': Input should be less than or equal to 100"),
        (("--strength", "3"), "'--strength': Input should be less than or equal to 2"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_done(clearfold: Clearfold, here: Path, options: tuple[str, str], message: str) -> None:
    picture("a.png")
    said = clearfold("denoise", "a.png", *options)
    assert said.status == 2
    assert message in said.err
    assert mistakes(said) == []
    assert files(here) == ["a.png"]


# Mistakes that every command with a model may meet.


def test_a_missing_model_is_named(clearfold: Clearfold, shelf: Path) -> None:
    picture("a.png")
    for command in (("denoise", "a.png"), ("evaluate", ".")):
        said = clearfold(*command, "--model", "sharpest")
        path = shelf / "sharpest.safetensors"
        assert mistakes(said) == [f"clearfold: {path} does not exist: name a .safetensors file, or a model of `clearfold models`"]
        assert said.status == 1


def test_broken_weights_are_named(clearfold: Clearfold) -> None:
    picture("a.png")
    Path("bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0rubbish!")
    for command in (("denoise", "a.png", "--model", "bad.safetensors"), ("models", "./bad.safetensors")):
        said = clearfold(*command)
        assert said.status == 1
        assert (
            mistakes(said)[0]
            .removeprefix("clearfold: ./")
            .removeprefix("clearfold: ")
            .startswith("bad.safetensors is not a readable safetensors file (")
        )


def test_a_gpu_that_is_not_there_is_missed(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    picture("a.png"), picture("b.png")
    for command in (("denoise", "a.png"), ("evaluate", "."), ("train", "."), ("serve",)):
        said = clearfold(*command, "--device", "cuda")
        assert said.status == 1
        (line,) = mistakes(said)
        assert line.startswith('clearfold: device = "cuda" needs a CUDA GPU, and torch ')


def test_a_shelf_without_models_says_what_to_do(clearfold: Clearfold, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARFOLD_MODELS_DIR", str(here))
    picture("a.png")
    said = clearfold("denoise", "a.png")
    assert said.status == 1
    assert mistakes(said) == [f"clearfold: CLEARFOLD_MODELS_DIR = {here} holds no weights: train some, or name a file with --model"]


@pytest.mark.parametrize("command", [("serve",), ("models",), ("denoise", "a.png")])
def test_a_wrong_setting_is_named(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("CLEARFOLD_PORT", "http")
    said = clearfold(*command)
    assert said.status == 1
    (line,) = mistakes(said)
    assert line.startswith("clearfold: CLEARFOLD_PORT = 'http': Input should be a valid integer")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RATE_LIMIT", "lots", "CLEARFOLD_RATE_LIMIT = 'lots': a rate must be a number and a time, as 60/minute or 5/second"),
        ("STORE_URL", "s3://a/b", "store_url = 's3://a/b' needs a database that tells what lies there: set jobs_url = postgresql://…"),
        ("JOBS_URL", "mysql://x:hush@y/z", "jobs_url = mysql://… is no database that is known here: set postgresql://…"),
        *(
            (
                "JOBS_URL",
                url,
                "jobs_url cannot be read: it must be postgresql://USER:PASSWORD@HOST:PORT/NAME, PORT a number, "
                "behind it options of libpq's",
            )
            for url in ("nonsense", "postgresql://x:hush@y:port/z")
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_what_is_wrong_with_a_setting_is_one_line_and_no_secret_is_in_it(
    clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str, command: str
) -> None:
    monkeypatch.setenv(f"CLEARFOLD_{name}", value)
    monkeypatch.setenv("CLEARFOLD_API_KEYS", "a-secret-of-many-letters:denoise")
    said = clearfold(command)
    assert said.status == 1
    assert mistakes(said) == [f"clearfold: {message}"]
    assert not any(secret in said.err for secret in ("a-secret", "hush"))


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_setting_that_is_none_is_told_at_the_start(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("CLEARFOLD_PROT", "9000")
    monkeypatch.setenv("CLEARFOLD_KERNEL", "none")
    monkeypatch.setenv("CLEARFOLD_PORT", "9000")
    monkeypatch.setattr("app.cli._see_whether_free", ended_here)
    monkeypatch.setattr("app.ledger.Ledger.of", ended_here)
    said = clearfold(command)
    assert mistakes(said)[0] == "clearfold: CLEARFOLD_PROT is set and means nothing: `clearfold serve --help` lists the settings"
    assert "CLEARFOLD_PORT" not in said.err
    assert "KERNEL" not in said.err


def ended_here(*_: object) -> None:
    raise OSError("this far")


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(clearfold: Clearfold) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = clearfold("serve", "--port", str(port))
    assert said.status == 1
    assert mistakes(said) == [
        f"clearfold: nobody can listen on 127.0.0.1 port {port} (Address already in use): "
        "stop what listens there, or choose another with --port"
    ]
    assert "lively" not in said.err


def test_an_address_that_is_not_this_machines_is_told(clearfold: Clearfold) -> None:
    (line,) = mistakes(clearfold("serve", "--host", "localhost:8011"))
    assert line.startswith("clearfold: host = 'localhost:8011' is no address of this machine (")
    (line,) = mistakes(clearfold("serve", "--host", "203.0.113.7"))
    assert line == "clearfold: nobody can listen on 203.0.113.7 port 8000 (Cannot assign requested address): choose another"


def test_serve_does_not_start_with_a_default_model_that_is_not_there(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARFOLD_DEFAULT_MODEL", "sharpest")
    said = clearfold("serve", "--device", "cpu")
    assert said.status == 1
    assert mistakes(said) == ["clearfold: model = 'sharpest': there is no such model. There are: 'lively', 'same'."]


def test_serve_starts_the_server_as_told(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    served: dict[str, object] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **given: served.update(given, app=app.title))
    monkeypatch.setenv("CLEARFOLD_PORT", "9000")
    monkeypatch.setenv("CLEARFOLD_HOST", "0.0.0.0")
    said = clearfold("serve", "--port", "9001", "--device", "cpu")
    assert said.status == 1
    assert said.err.startswith(
        "clearfold: host = '0.0.0.0' is reached from other machines, and no API keys are set: set CLEARFOLD_API_KEYS"
    )
    assert served == {}
    monkeypatch.setenv("CLEARFOLD_OPEN_TO_ANYONE", "true")
    said = clearfold("serve", "--port", "9001", "--device", "cpu")
    assert said.status == 0
    assert (served["host"], served["port"], served["app"]) == ("0.0.0.0", 9001, "Clearfold")
    assert issubclass(served["http"], Protocol)
    assert "lively on cpu in " in said.err
    assert "same on cpu in " in said.err


def test_a_true_process_ends_with_the_status_and_no_traceback() -> None:
    picture("a.png")
    said = ended(process("denoise", "none.png", "a.png"))
    assert said.status == 1
    assert mistakes(said) == ["clearfold: none.png does not exist: name a picture, or a folder with pictures in it"]
    assert Path("a-denoised.png").exists()
    said = ended(process("denoise", "a.png", "--model", "none"))
    assert said.status == 1
    assert len(mistakes(said)) == 1


# Train.

TINY = ("--batch", "1", "--patch", "16", "--evaluate-every", "1", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def photos(here: Path) -> Path:
    for i in range(3):
        picture(f"photos/{i}.png", seed=i, size=(24, 24))
    return here / "photos"


@pytest.mark.parametrize("method", ["pairs", "noisy"])
def test_train_learns_from_noisy_pictures(clearfold: Clearfold, here: Path, method: str) -> None:
    for i in range(4):
        picture(f"shots/{i // 2}_{i % 2 + 1}.png", seed=i, size=(40, 32))
    said = clearfold("train", "shots", "-o", "mine.safetensors", "--method", method, "--steps", "1", *TINY)
    assert (said.status, mistakes(said)) == (0, [])
    assert weights.load(Path("mine.safetensors"))[1]["method"] == method
    Path("shots/1_2.png").unlink()
    if method == "pairs":
        said = clearfold("train", "shots", "--method", method, *TINY)
        assert mistakes(said) == [f"clearfold: '{Path('shots/1_1.png')}' has no other half: add it, or leave this one out"]


def test_train_writes_weights_that_denoise(clearfold: Clearfold, photos: Path, here: Path) -> None:
    said = clearfold("train", "photos", "-o", "made/mine.safetensors", "--steps", "2", *TINY)
    assert (said.status, mistakes(said)) == (0, [])
    written, note, quality = said.out.splitlines()
    assert written == "made/mine.safetensors and its card are written"
    assert note == "The pictures were taken as free of noise; the model is for the noise that was put on them."
    assert re.fullmatch(r"PSNR in dB at sigma 25 in 8-bit steps: before \d\d\.\d\d, trained \d\d\.\d\d", quality)
    assert re.search(r"^step 2 of 2  loss 0\.\d{4}  PSNR \d+\.\d\d dB  .* Mpx/s  0 s left$", said.err, re.MULTILINE)  # a log's line
    assert files(here / "made") == ["mine.checkpoint", "mine.md", "mine.safetensors"]
    assert weights.load(Path("made/mine.safetensors"))[1]["recipe"]["noise"] == "Gaussian, sigma 0 to 55 in 8-bit steps, uniform"
    assert clearfold("denoise", "photos/0.png", "--model", "made/mine.safetensors").status == 0

    again = clearfold("train", "photos", "-o", "made/mine.safetensors", "--steps", "2", *TINY, "--resume")
    assert again.status == 0  # there was nothing left to do
    longer = clearfold("train", "photos", "-o", "made/mine.safetensors", "--steps", "2", *TINY, "--resume", "--lr", "0.5")
    assert longer.status == 1
    assert mistakes(longer) == ["clearfold: lr (=0.5) differs from the checkpoint's (=0.001): resume with the same, or start anew"]


def test_minutes_bound_a_run_whose_rate_still_falls_to_its_end(clearfold: Clearfold, photos: Path, here: Path) -> None:
    command = ("train", "photos", "-o", "m.safetensors", "--minutes", "0.1", *TINY, "--evaluate-every", "100000")
    began = time.monotonic()
    said = clearfold(*command)
    assert (said.status, mistakes(said)) == (0, [])
    assert said.out.startswith("m.safetensors and its card are written\n")
    assert time.monotonic() - began < 30  # of a machine that does other things, too
    steps = json.loads(weights.read(Path("m.checkpoint"))[1]["recipe"])["steps"]
    assert 1 < steps < 7000
    assert files(here) == ["m.checkpoint", "m.md", "m.safetensors", *(f"photos/{i}.png" for i in range(3))]
    done = int(weights.read(Path("m.checkpoint"))[1]["step"])
    assert done > steps // 20
    again = clearfold(*command, "--resume")
    assert (again.status, mistakes(again)) == (0, [])
    assert json.loads(weights.read(Path("m.checkpoint"))[1]["recipe"])["steps"] == steps
    assert int(weights.read(Path("m.checkpoint"))[1]["step"]) == (steps if done == steps else pytest.approx(steps, abs=steps - done - 1))


@pytest.mark.parametrize("left", ["m.checkpoint", "m.safetensors"])
def test_what_an_earlier_run_made_is_not_written_over(clearfold: Clearfold, photos: Path, here: Path, left: str) -> None:
    (here / left).write_bytes(b"hours of work")
    said = clearfold("train", "photos", "-o", "m.safetensors", "--steps", "1", *TINY)
    assert said.status == 1
    told = {
        "m.checkpoint": "m.checkpoint of an earlier run is there: go on with --resume, choose another --output, or remove it",
        "m.safetensors": "m.safetensors is there already: choose another --output, or remove it",
    }
    assert mistakes(said) == [f"clearfold: {told[left]}"]
    assert (here / left).read_bytes() == b"hours of work"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_resume_goes_on(photos: Path, here: Path, number: signal.Signals) -> None:
    command = ("train", "photos", "-o", "m.safetensors", "--steps", "100000", *TINY)
    child = process(*command)
    try:
        wait_for(lambda: child.poll() is not None or Path("m.safetensors").exists(), "the first save")
        child.send_signal(number)
        said = ended(child)
    finally:
        child.kill()
    assert said.status == 128 + number
    assert "Traceback" not in said.err
    told = re.search(r"^stopped and saved at step (\d+): go on with --resume$", said.err, re.MULTILINE)
    assert told
    assert weights.read(Path("m.checkpoint"))[1]["step"] == told[1]
    assert files(here) == ["m.checkpoint", "m.md", "m.safetensors", *(f"photos/{i}.png" for i in range(3))]

    steps = int(told[1]) + 2
    said = ended(process(*command, "--resume", "--steps", steps))
    assert said.status == 0
    assert weights.read(Path("m.checkpoint"))[1]["step"] == str(steps)


def test_processes_that_train_together_stop_and_go_on_in_another_number(photos: Path, here: Path) -> None:
    command = ("train", "photos", "-o", "m.safetensors", "--steps", "100000", *TINY, "--batch", "2")
    child = process(*command, "--nproc", "2", bufsize=0)
    try:
        wait_for(Path("m.checkpoint").exists, "the first checkpoint")
        child.send_signal(signal.SIGINT)
        said = ended(child)
    finally:
        child.kill()
    assert said.status == 130
    assert mistakes(said) == []
    told = re.search(r"^stopped and saved at step (\d+): go on with --resume$", said.err, re.MULTILINE)
    assert told
    steps = int(told[1]) + 2
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "app.cli"]
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    said = ended(subprocess.Popen([*launcher, *command, "--resume", "--steps", str(steps)], **options))  # type: ignore[call-overload]
    assert said.status == 0
    assert said.out.startswith("m.safetensors and its card are written\n")
    assert said.out.count("written") == 1
    assert weights.read(Path("m.checkpoint"))[1]["step"] == str(steps)


def test_a_killed_process_ends_those_that_train_with_it(photos: Path) -> None:
    child = process("train", "photos", "-o", "m.safetensors", "--steps", "100000", *TINY, "--batch", "2", "--nproc", "2")
    try:
        wait_for(Path("m.safetensors").exists, "the first save")
        (other,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(other), signal.SIGKILL)
        said = ended(child)
    finally:
        child.kill()
    assert said.status == 1
    (line,) = mistakes(said)
    assert re.fullmatch(r"clearfold: another process is gone \(.+\): see what it said, then go on from step \d+ with --resume", line)


def test_a_batch_that_the_processes_do_not_divide_is_one_line(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("train", "photos", *TINY, "--nproc", "2")
    assert said.status == 1
    assert mistakes(said)[0] == "clearfold: batch (=1) must be divisible by the number of processes (=2): try 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "none does not exist: name a picture, or a folder with pictures in it"),
        (("photos", "--patch", "20"), "patch (=20) must be a multiple of 8, and not 0: try 96"),
        (("photos", "--lr", "0"), "lr (=0.0) must be above 0: try 1e-3"),
        (("photos", "--steps", "9", "--minutes", "2.5"), "steps (=9) and minutes (=2.5) both say when to end: give one of them"),
        (
            ("photos", "--minutes", "2.5", "--nproc", "2"),
            "minutes (=2.5) is for one process, whose pace is measured: give several --steps",
        ),
        (("photos", "--minutes", "2.5", "--resume"), "model.checkpoint does not exist: there is nothing to resume, start anew"),
        (("photos", "-o", "model.md"), "out (=model.md) must be a file that ends in .safetensors: try model.safetensors"),
        (
            ("photos", "--initial", "none.safetensors"),
            "none.safetensors does not exist: name a .safetensors file, or a model of `clearfold models`",
        ),
        (("photos", "--resume"), "model.checkpoint does not exist: there is nothing to resume, start anew"),
        (("photos", "--patch", "96"), "none of 2 pictures has 96x96 pixels: add larger pictures or lower patch (=96)"),
        (("photos/0.png",), "photos/0.png: two pictures are needed at least, one to train on and one to validate on"),
    ],
)  # fmt: skip
def test_a_mistake_in_training_is_one_line(
    clearfold: Clearfold, photos: Path, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    said = clearfold("train", *(("--patch", "16") if "--patch" not in arguments else ()), *arguments, "--device", "cpu")
    assert said.status == 1
    assert mistakes(said) == [f"clearfold: {message}"]
    assert files(here) == [f"photos/{i}.png" for i in range(3)]


def test_a_noise_range_the_wrong_way_round_is_refused(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("train", "photos", "--sigma-min", "51", "--sigma-max", "25.5")
    assert said.status == 1
    assert mistakes(said) == ["clearfold: sigma (=(0.2, 0.1)) must be a range inside [0, 1]: (0, 0.2) is 0 to 51 in 8-bit steps"]


def test_a_photograph_that_cannot_be_read_is_named(clearfold: Clearfold, photos: Path) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    said = clearfold("train", "photos", "--patch", "16")
    assert said.status == 1
    assert mistakes(said)[0].startswith("clearfold: photos/1.png: the file is no picture of a known format")


def test_a_place_that_cannot_be_written_is_named(clearfold: Clearfold, photos: Path) -> None:
    Path("file").touch()
    said = clearfold("train", "photos", "-o", "file/m.safetensors", "--steps", "1", *TINY)
    assert said.status == 1
    assert "file" in mistakes(said)[0]


@pytest.mark.parametrize("command", [("train", "photos"), ("reproduce", "photos")])
def test_a_seed_is_32_bits(clearfold: Clearfold, photos: Path, command: tuple[str, str]) -> None:
    said = clearfold(*command, "--seed", 2**32)
    assert said.status == 2
    assert "'--seed': Input should be less than or equal to 4294967295" in said.err


# Evaluate.


def test_evaluate_prints_a_table(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("evaluate", "photos", "--model", "same", "--sigma", "25", "--sigma", "12.5", "--device", "cpu")
    assert said.status == 0
    assert "same on photos, sigma known" in said.out
    rows = [line.replace("│", " ").split() for line in said.out.splitlines() if "│" in line]
    assert [row[:2] for row in rows] == [["25", "3"], ["12.5", "3"]]
    noisy, denoised = float(rows[0][2]), float(rows[0][3])
    assert noisy == pytest.approx(20.17, abs=0.3)  # 20 log10(255 / 25)
    assert denoised > noisy  # clamped to [0, 1], which alone removes some noise


def test_evaluate_prints_json_and_nothing_else_on_standard_output(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("evaluate", "photos", "--model", "same", "--json", "--blind", "--device", "cpu", "--dtype", "float32")
    told = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert {name: told[name] for name in ("model", "device", "dtype", "set", "sigma_known", "ensemble")} == {
        "model": "same", "device": "cpu", "dtype": "float32", "set": "photos", "sigma_known": False, "ensemble": False,
    }  # fmt: skip
    assert [row["sigma"] for row in told["rows"]] == [15, 25, 50]
    assert told["rows"][0].keys() == {"sigma", "pictures", "noisy_psnr", "psnr", "ssim", "left", "shift", "worst_shift", "each"}


def test_evaluate_measures_the_ensemble_but_records_it_in_no_card(clearfold: Clearfold, photos: Path) -> None:
    asked = ("evaluate", "photos", "--model", "lively", "--sigma", "25", "--json", "--device", "cpu", "--dtype", "float32")
    one, eight = (json.loads(clearfold(*asked, *more).out) for more in ((), ("--ensemble",)))
    assert (eight["ensemble"], eight["rows"] == one["rows"]) == (True, False)
    said = clearfold(*asked, "--ensemble", "--record")
    assert said.status == 2
    assert "a card has the figures of the model alone: leave out --ensemble" in said.err


def test_evaluate_records_figures_in_the_card_and_leaves_the_weights(clearfold: Clearfold, photos: Path, shelf: Path) -> None:
    for suffix in ("safetensors", "md"):
        shutil.copy(shelf / f"same.{suffix}", f"mine.{suffix}")
    before, _ = weights.read(Path("mine.safetensors"))
    for blind in ((), ("--blind",)):
        assert clearfold("evaluate", "photos", "--model", "mine.safetensors", "--sigma", "25", "--record", *blind).status == 0
    after, _ = weights.read(Path("mine.safetensors"))
    _, card = weights.load(Path("mine.safetensors"))
    assert card["title"] == "The same"
    assert card["figures"].keys() == {"photos, sigma known", "photos, sigma estimated"}
    assert re.fullmatch(r"\d\d\.\d\d dB, SSIM 0\.\d{4}", card["figures"]["photos, sigma known"]["25"])
    assert Path("mine.md").read_text() == weights.card_text(card)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_evaluate_measures_and_records_pairs(clearfold: Clearfold, shelf: Path) -> None:
    for name in ("a_noisy", "a_clean", "b_noisy", "b_clean"):
        picture(f"shots/{name}.png", seed=len(name))
    shutil.copy(shelf / "same.safetensors", "mine.safetensors")
    said = clearfold("evaluate", "shots", "--model", "mine.safetensors", "--record", "--sigma", "12")
    assert said.status == 0
    assert "mine on shots, real noise" in said.out
    assert clearfold("evaluate", "shots", "--model", "mine.safetensors", "--record").status == 0
    assert weights.load(Path("mine.safetensors"))[1]["figures"]["shots, real noise"].keys() == {"told 12", "not told"}


def test_evaluate_writes_a_sheet(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("evaluate", "photos", "--model", "same", "--sigma", "25", "--sheet", "sheet.png")
    assert said.status == 0
    with Image.open("sheet.png") as page, Image.open(next(photos.glob("*.png"))) as one:
        assert page.width > 3 * one.width
        assert page.height > 3 * one.height


@pytest.fixture
def pair(here: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf with the two models that there are to choose from."""
    values, _ = weights.read(shelf / "same.safetensors")
    for name, more in (("gaussian", {}), ("photo", {"blind": True})):
        weights.save(tmp_path / "pair" / f"{name}.safetensors", values, {"title": name, "architecture": "unet", **more})
    monkeypatch.setenv("CLEARFOLD_MODELS_DIR", str(tmp_path / "pair"))
    return tmp_path / "pair"


def test_denoise_takes_the_model_that_suits_each_picture_and_says_why(clearfold: Clearfold, pair: Path) -> None:
    picture("white.png", size=(64, 48))
    Image.linear_gradient("L").convert("RGB").resize((64, 48)).save("smooth.png")
    for model in ((), ("--model", "auto")):
        said = clearfold("denoise", "white.png", "smooth.png", "-o", f"out{len(model)}", *model)
        assert (said.status, mistakes(said)) == (0, [])
        assert re.search(r"^white\.png: gaussian, white noise: ", said.err, re.MULTILINE)
        assert re.search(r"^smooth\.png: photo, no white noise: ", said.err, re.MULTILINE)
    said = clearfold("denoise", "white.png", "--model", "photo")
    assert said.status == 0
    assert "white.png: " not in said.err


def test_evaluate_measures_the_choice_but_records_it_in_no_card(clearfold: Clearfold, photos: Path, pair: Path) -> None:
    said = clearfold("evaluate", "photos", "--model", "auto", "--blind", "--sigma", "25", "--json")
    assert json.loads(said.out)["model"] == "auto"
    said = clearfold("evaluate", "photos", "--model", "auto", "--record")
    assert said.status == 2
    assert "figures are recorded in one model's card" in said.err


@pytest.mark.parametrize(("folder", "message"), [("none", "none does not exist: name a picture, or a folder with pictures in it"),
                                                 ("empty", "empty holds no picture: name a folder of clean pictures, "
                                                           "or of pairs as x_noisy.png with x_clean.png")])  # fmt: skip
def test_a_folder_that_cannot_be_measured_is_named(clearfold: Clearfold, folder: str, message: str) -> None:
    Path("empty").mkdir()
    said = clearfold("evaluate", folder)
    assert said.status == 1
    assert mistakes(said) == [f"clearfold: {message}"]


# Reproduce.


def test_reproduce_tells_each_epoch_both_ways(clearfold: Clearfold) -> None:
    for i in range(10):
        picture(f"large/{i}.png", seed=i, size=(256, 256))
    said = clearfold("reproduce", "large", "--pairs", "100", "--epochs", "2", "--device", "cpu", "--dtype", "float32")
    assert (said.status, mistakes(said)) == (0, [])
    number = r"\d+\.\d\d"
    assert re.search(rf"^noisy input  {number} / {number} dB$", said.err, re.MULTILINE)
    for epoch in (1, 2):
        line = rf"^epoch +{epoch} +{number} / {number} dB  loss 0\.\d{{5}}  \d+ s$"
        assert re.search(line, said.err, re.MULTILINE)
    assert re.fullmatch(r"total time \d+ s, reading and making the pairs included\n", said.out)


def test_reproduce_needs_photographs(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("reproduce", "photos")
    assert said.status == 1
    assert mistakes(said) == ["clearfold: 0 photographs of at least 256x256 pixels were found: 10 are needed, 1000 are right"]


def test_an_unknown_recipe_is_told_at_once(clearfold: Clearfold, photos: Path) -> None:
    said = clearfold("reproduce", "photos", "--recipe", "best")
    assert said.status == 2
    assert "'best' is not one of 'report', 'better'" in said.err


# Models.


def test_models_lists_what_there_is(clearfold: Clearfold, shelf: Path) -> None:
    said = clearfold("models")
    assert said.status == 0
    for name in ("lively", "same"):
        assert re.search(rf"{name} .*{name}\.safetensors.* The {name} one\.", said.out)


def test_models_prints_a_card(clearfold: Clearfold, shelf: Path) -> None:
    said = clearfold("models", "same")
    assert said.status == 0
    assert said.out == (shelf / "same.md").read_text() + "\n"


def test_a_model_that_is_not_there_has_no_card(clearfold: Clearfold, shelf: Path) -> None:
    said = clearfold("models", "none")
    assert said.status == 1
    assert len(mistakes(said)) == 1


def test_info_tells_what_computes_and_why(clearfold: Clearfold, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [" ".join(line.split()) for line in clearfold("info").out.splitlines()]
    assert f"torch {torch.__version__}" in told
    if not torch.cuda.is_available():
        assert f"because {kernels.why()}" in told
        assert any(line.startswith("convolves by kernel" if kernels.available() else "convolves by torch's") for line in told)


@pytest.mark.parametrize("name", ["none", *kernels.available()])
def test_info_tells_what_was_forced(name: str) -> None:
    child = process("info", env=os.environ | {"CLEARFOLD_KERNEL": name})
    told = " ".join(ended(child).out.split())
    assert f"because CLEARFOLD_KERNEL = {name}" in told
    assert f"convolves by {'torch' if name == 'none' else f'kernel {name}'}" in told


def test_a_kernel_that_is_not_there_is_one_line() -> None:
    said = ended(process("info", env=os.environ | {"CLEARFOLD_KERNEL": "mmx"}))
    usable = ", ".join(["auto", "none", *kernels.available()])
    assert said.status == 1
    assert mistakes(said) == [f'clearfold: CLEARFOLD_KERNEL = "mmx" is not available here ({kernels.why()}): use {usable}']
