"""Any shape, mode, depth and format, and any bytes, over HTTP: never a 500, and with strength 0 the very same picture."""

import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from toys import Toy

from app.main import create_app
from app.models import Models
from app.settings import Settings
from core import images, tiff

HOSTILE = Path(os.environ.get("CLEARFOLD_HOSTILE", Path(__file__).parents[3] / "shared" / "hostile"))


@pytest.fixture(scope="module")
def client(tmp_path_factory, decoders):
    settings = Settings(models_dir=tmp_path_factory.mktemp("none"), train_dir=tmp_path_factory.mktemp("train"), device="cpu")
    app = create_app(settings, lambda settings: Models(settings, Toy()), decoders)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


HEADS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"BM", b"RIFF\0\0\0\0WEBPVP8 ")


def made(height: int, width: int, channels: int, depth: int, seed: int) -> tuple[bytes, np.ndarray]:
    """A TIFF of random samples by the engine's own writer, which other tests hold against independent readers."""
    random = np.random.default_rng(seed)
    shape = (height, width, channels)
    samples = random.random(shape, np.float32) if depth == 32 else random.integers(0, 2**depth, shape, np.dtype(f"u{depth // 8}"))
    file = io.BytesIO()
    tiff.Writer(file).page(samples, channels in (2, 4), tiff.Directory())
    return file.getvalue(), samples


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.integers(1, 4),
    depth=st.sampled_from((8, 16, 32)),
    format=st.sampled_from((None, *images.FORMATS)),
    strength=st.sampled_from((0, 0.5, 2)),
    metadata=st.sampled_from(("keep", "strip", "safe")),
    seed=st.integers(0, 99),
)
def test_any_picture_is_answered_and_with_strength_0_it_is_the_very_same(
    client, height, width, channels, depth, format, strength, metadata, seed
):
    data, samples = made(height, width, channels, depth, seed)
    query = {"strength": strength, "metadata": metadata} | ({"format": format} if format else {})
    answer = client.post("/denoise", params=query, content=data)
    assert answer.status_code == 200, answer.text
    back = images.read(answer.content)
    assert back.format == format or (format is None and back.format == "tiff")
    if strength == 0 and (format in (None, "tiff") or (format == "png" and depth < 32)):
        parts = [back.samples] if back.alpha is None else [back.samples, back.alpha.unsqueeze(-1)]
        assert np.array_equal(torch.cat(parts, dim=-1).numpy(), samples)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(HEADS),
    tail=st.binary(max_size=300),
)
def test_any_bytes_are_answered_and_never_with_a_500(client, head, tail):
    assert client.post("/denoise", content=head + tail).status_code in (200, 415, 422)


def hostile_files() -> list[Path]:
    return sorted(path for path in HOSTILE.glob("*/*") if path.is_file()) if HOSTILE.is_dir() else []


@pytest.mark.skipif(not hostile_files(), reason="the hostile pictures are not on this machine (CLEARFOLD_HOSTILE)")
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of broken blocks so
def test_no_hostile_file_gets_a_500_and_no_good_one_is_refused(client):
    wrong = []
    for path in hostile_files():
        status = client.post("/denoise?strength=0", content=path.read_bytes()).status_code
        good = path.name.startswith("good_") or (path.parent.name == "pngsuite" and path.suffix == ".png" and not path.name.startswith("x"))
        bad = path.parent.name == "pngsuite" and path.name.startswith("x")
        if status not in (200, 415, 422) or (good and status != 200) or (bad and status == 200):
            wrong.append((str(path), status))
    assert wrong == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("path", [path for path in hostile_files() if path.name.startswith("good_")], ids=lambda path: path.name)
def test_every_good_picture_makes_its_round_trip(client, path):
    data = path.read_bytes()
    answer = client.post("/denoise?strength=0&format=" + ("png" if path.suffix == ".jpg" else path.suffix[1:4]), content=data)
    came, back = images.read(data), images.read(answer.content)
    assert torch.equal(came.samples, back.samples)
    assert came.depth == back.depth
    assert (came.alpha is None) == (back.alpha is None)
    assert came.alpha is None or torch.equal(came.alpha, back.alpha)
    assert came.metadata.icc == back.metadata.icc
    assert came.metadata.exif == back.metadata.exif


def test_pages_come_back_over_http(client):
    frames = list(itertools.repeat(images.Picture(torch.rand(6, 9, 3)), 3))
    file = io.BytesIO()
    images.write_all(iter(frames), file, "tiff", 3)
    answer = client.post("/denoise?format=webp", content=file.getvalue())
    assert answer.headers["content-type"] == "image/webp"
    assert images.open(answer.content).count == 3
    refused = client.post("/denoise?format=jpeg", content=file.getvalue())
    assert refused.status_code == 422
    assert "jpeg holds one: choose one of png, webp, tiff, gif" in refused.json()["detail"]
