"""Weights on the disk: what is written is read again, a file is whole or not there, and each way to be broken has its words."""

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import WeightsError, networks, noise, weights
from tests.core.made import photo, refused, small

pytestmark = pytest.mark.usefixtures("small_unet")

CARD = {"title": "Sharp", "architecture": "unet", "figures": {"set": {"25": "31.3 dB"}}, "note": "für größer"}


def values_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {p.name: p.value.to(dtype) for p in small(torch.Generator().manual_seed(seed)).param()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "sharp.safetensors"
    weights.save(path, values_of(), CARD)
    return path


def stored(path: Path, values: dict[str, Tensor], card: str | None = json.dumps(CARD)) -> Path:
    """By the library's own hand, so that nothing of ours refuses to write it."""
    save_file(values, path, {} if card is None else {"card": card})
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_again(tmp_path: Path, dtype: torch.dtype) -> None:
    values = values_of(1, dtype)
    weights.save(tmp_path / "a.safetensors", values, CARD)
    network, card = weights.load(tmp_path / "a.safetensors")
    assert card == CARD
    for name, value, derivative in network.param():
        assert value.dtype == torch.float32
        assert torch.equal(value, values[name].float())
        assert derivative is None
    x = torch.cat((photo(8, 16), torch.full((8, 16, 1), 0.1)), 2)[None]
    reference = small()
    reference.load(values)
    assert torch.equal(network.forward(x), reference.forward(x))


def test_values_keep_their_dtype_in_a_plain_safetensors_file(tmp_path: Path) -> None:
    weights.save(tmp_path / "a.safetensors", values_of(dtype=torch.float16), CARD)
    read = load_file(tmp_path / "a.safetensors")
    assert {value.dtype for value in read.values()} == {torch.float16}
    assert read.keys() == values_of().keys()


def test_a_transposed_value_is_stored_as_it_looks(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3).T
    weights.write(tmp_path / "a", {"a": value}, {"step": "7"})
    tensors, metadata = weights.read(tmp_path / "a")
    assert torch.equal(tensors["a"], torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    assert metadata == {"step": "7"}


def test_saving_makes_the_folder_and_writes_the_file_and_its_card_alone(path: Path) -> None:
    assert sorted(file.name for file in path.parent.iterdir()) == ["sharp.md", "sharp.safetensors"]
    assert path.with_suffix(".md").read_text(encoding="utf-8") == weights.card_text(CARD)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(path, values_of(9), CARD | {"title": "New"})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_newer_file_takes_the_place_of_the_old(path: Path) -> None:
    weights.save(path, values_of(9), CARD | {"title": "New"})
    network, card = weights.load(path)
    assert card["title"] == "New"
    assert torch.equal(network.param()[0].value, values_of(9)["1.weight"])
    assert path.with_suffix(".md").read_text().startswith("# New\n")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with refused(WeightsError, f"{path} does not exist: name a .safetensors file, or a model of `clearfold models`"):
        weights.load(path)


def unreadable(path: Path) -> "pytest.RaisesExc[Exception]":
    return pytest.raises(
        WeightsError,
        match=rf"^{path} is not a readable safetensors file \(.+\): it may be truncated, or of another format\Z",
    )


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_file_cut_short(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])
    with unreadable(path):
        weights.load(path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "pickled.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with unreadable(path):
        weights.load(path)
    assert not (tmp_path / "sprung").exists()


def test_a_folder(tmp_path: Path) -> None:
    with unreadable(tmp_path):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("card", "what"),
    [
        (None, "'card'"),
        ('{"title": "Sharp"}', "'architecture'"),
        ('{"architecture": "resnet"}', "'resnet'"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "list indices must be integers or slices, not str"),
    ],
)
def test_a_file_of_another_program(tmp_path: Path, card: str | None, what: str) -> None:
    path = stored(tmp_path / "other.safetensors", values_of(), card)
    with refused(WeightsError, f"{path} is no model of this program ({what}): use a file that `clearfold train` wrote"):
        weights.load(path)


def test_a_missing_tensor(tmp_path: Path) -> None:
    values = values_of()
    count = len(values)
    del values["4.bias"]
    path = stored(tmp_path / "a.safetensors", values)
    with refused(WeightsError, f"{path}: weights ['4.bias'] are missing: this network needs {count} tensors and was given {count - 1}"):
        weights.load(path)


def test_an_unknown_tensor(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.safetensors", values_of() | {"6.bias": torch.zeros(3)})
    message = f"{path}: weights ['6.bias'] are unknown to this network: load them into the architecture they were saved from"
    with refused(WeightsError, message):
        weights.load(path)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.safetensors", values_of() | {"4.bias": torch.zeros(3)})
    with refused(WeightsError, f"{path}: `4.bias` has shape (3,), this network needs (12,)"):
        weights.load(path)


class TestGrey:
    """A file may hold a second set of weights, for pictures without colours."""

    def test_both_come_back(self, tmp_path: Path) -> None:
        one, other = values_of(1), values_of(2)
        path = stored(tmp_path / "a.safetensors", one | {f"grey.{name}": value for name, value in other.items()})
        network, grey, _ = weights.load_both(path)
        assert grey is not None
        for loaded, given in ((network, one), (grey, other), (weights.load(path)[0], one)):
            assert all(torch.equal(p.value, given[p.name]) for p in loaded.param())

    def test_there_need_be_none(self, tmp_path: Path) -> None:
        assert weights.load_both(stored(tmp_path / "a.safetensors", values_of()))[1] is None

    def test_half_of_one_is_refused(self, tmp_path: Path) -> None:
        path = stored(tmp_path / "a.safetensors", values_of() | {"grey.4.bias": torch.zeros(12)})
        with pytest.raises(WeightsError, match=rf"^{path}, grey\.\*: weights \['1\.bias', .*\] are missing: "):
            weights.load(path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_no_number(tmp_path: Path, bad: float) -> None:
    values = values_of()
    values["1.weight"][0, 0, 0, 0] = bad
    path = stored(tmp_path / "a.safetensors", values)
    message = f"{path}: `1.weight` holds NaN or infinity: take an earlier copy of the file or train again"
    with refused(WeightsError, message):
        weights.load(path)


def test_a_value_that_float32_does_not_hold(tmp_path: Path) -> None:
    values = values_of()
    path = stored(tmp_path / "a.safetensors", values | {"4.bias": torch.full((12,), 1e300, dtype=torch.float64)})
    with refused(WeightsError, f"{path}: `4.bias` holds NaN or infinity: take an earlier copy of the file or train again"):
        weights.load(path)
    path = stored(tmp_path / "a.safetensors", values | {"4.bias": torch.ones(12, dtype=torch.int32)})
    message = f"{path}: `4.bias` is of torch.int32, and weights are floats: use a file that `clearfold train` wrote"
    with refused(WeightsError, message):
        weights.load(path)


@pytest.mark.parametrize(
    ("entry", "value", "least"),
    [
        ("grey_level", "abc", 0),
        ("grey_level", None, 0),
        ("grey_level", -1.0, 0),
        ("grey_level", 1e30, 0),
        ("untold", [1], -1),
        ("untold", -2, -1),
    ],
)
def test_a_card_that_tells_no_level(tmp_path: Path, entry: str, value: object, least: int) -> None:
    path = tmp_path / "a.safetensors"
    weights.save(path, values_of(), {"architecture": "unet", "blind": True, entry: value})
    message = f"{path}: its card's {entry} (={value}) must be a number from {least} to 16: mend the card, or train again"
    with refused(WeightsError, message):
        weights.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_card_of_numbers_that_json_has_not(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    weights.save(path, values_of(), {"architecture": "unet", "figures": {"cbsd68": value}})
    with pytest.raises(WeightsError, match=r"is no model of this program .*: use a file that `clearfold train` wrote"):
        weights.load(path)


def test_what_stands_for_no_level() -> None:
    assert weights.untold({}) is None
    assert weights.untold({"untold": 0.05}) is None  # it is told each
    assert weights.untold({"blind": True}) == noise.UNTOLD  # of weights that are older than others
    assert weights.untold({"blind": True, "untold": 0.05}) == 0.05


def test_the_card_is_a_page_for_people() -> None:
    card = {
        "title": "Sharp",
        "architecture": "unet",
        "multiply_adds_a_pixel": 196544,
        "data": ["bsds432", {"name": "own", "pictures": 3}],
        "figures": {"cbsd68": {"15": 33.9, "ssim": 0.93456}},
    }
    assert weights.card_text(card) == (
        "# Sharp\n\n"
        "## Architecture\n\nunet\n\n"
        "## Multiply adds a pixel\n\n196544\n\n"
        "## Data\n\n- bsds432\n- name: own, pictures: 3\n\n"
        "## Figures\n\n| | |\n|---|---|\n| cbsd68 | 15: 33.9, ssim: 0.9346 |\n"
    )


def test_a_card_without_a_title_has_one() -> None:
    assert weights.card_text({}) == "# Model\n"


def test_every_architecture_is_one_that_can_be_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, make in networks.ARCHITECTURES.items():
        made = {p.name: p.value.half() for p in make(torch.Generator().manual_seed(0)).param()}
        weights.save(tmp_path / "a.safetensors", made, {"architecture": name})
        network, _ = weights.load(tmp_path / "a.safetensors")
        assert {p.name: p.value.shape for p in network.param()} == {key: value.shape for key, value in made.items()}
