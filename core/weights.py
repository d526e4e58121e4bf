"""Weights on the disk: a safetensors file that carries its model card, and the same card beside it for people. Never a pickle.

A file is written under a temporary name and renamed, so that a reader sees the old one or the new one and nothing between.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from core import noise
from core.networks import ARCHITECTURES
from core.nn import Module
from core.nn.module import to_be_loaded

Card = dict[str, Any]
GREY = "grey."
"""So begin the names of a second set of weights, for pictures without colours."""
MOST_TOLD = 16.0
"""Of what a card has a network told in place of a level, or times a level: far above any that was trained with."""


class WeightsError(ValueError):
    """A weights file that can't be used: the message names the file, what is wrong and the remedy."""


def save(path: Path, values: Mapping[str, Tensor], card: Card) -> None:
    """Writes `path` and, beside it, the card as `.md`. `card["architecture"]` is a name in ARCHITECTURES; values keep their dtype."""
    metadata = {"format": "clearfold-1", "card": json.dumps(card, ensure_ascii=False)}
    write(path, values, metadata)
    _replace(path.with_suffix(".md"), card_text(card).encode())


def load(path: Path) -> tuple[Module, Card]:
    """The network, in float32 on the CPU, and its card. Raises WeightsError."""
    network, _, card = load_both(path)
    return network, card


def load_both(path: Path) -> tuple[Module, Module | None, Card]:
    """As `load`, and between them the network for grey pictures alone, if the file holds one."""
    values, metadata = read(path)
    try:
        card: Card = json.loads(metadata["card"])
        architecture = ARCHITECTURES[card["architecture"]]
        json.dumps(card, allow_nan=False)  # Python reads what JSON has no numbers for
    except (KeyError, ValueError, TypeError) as unknown:
        raise WeightsError(f"{path} is no model of this program ({unknown}): use a file that `clearfold train` wrote") from None
    for entry, least in (("untold", -1.0), ("grey_level", 0.0)):
        if entry in card and not (isinstance(card[entry], int | float) and least <= card[entry] <= MOST_TOLD):
            rule = f"must be a number from {least:g} to {MOST_TOLD:g}"
            raise WeightsError(f"{path}: its card's {entry} (={card[entry]}) {rule}: mend the card, or train again")
    for name, value in values.items():
        if not value.is_floating_point():
            raise WeightsError(f"{path}: `{name}` is of {value.dtype}, and weights are floats: use a file that `clearfold train` wrote")
        if not value.float().isfinite().all():
            raise WeightsError(f"{path}: `{name}` holds NaN or infinity: take an earlier copy of the file or train again")
    grey = {name.removeprefix(GREY): value for name, value in values.items() if name.startswith(GREY)}
    network = _filled(architecture, {name: value for name, value in values.items() if not name.startswith(GREY)}, f"{path}")
    return network, _filled(architecture, grey, f"{path}, {GREY}*") if grey else None, card


def _filled(architecture: Callable[[], Module], values: Mapping[str, Tensor], where: str) -> Module:
    with to_be_loaded():
        network = architecture()
    try:
        network.load(values)
    except ValueError as wrong:
        raise WeightsError(f"{where}: {wrong}") from None
    return network


def untold(card: Card) -> float | None:
    """What a blind model, by its card, has in its noise-level map where the level is not told; None for one that is not blind."""
    return float(card.get("untold", noise.UNTOLD)) if card.get("blind") else None


def write(path: Path, values: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes any tensors with their metadata, atomically."""
    _replace(path, to_safetensors({name: value.cpu().contiguous() for name, value in values.items()}, dict(metadata)))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Any safetensors file: its tensors on the CPU and its metadata. Raises WeightsError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist: name a .safetensors file, or a model of `clearfold models`") from None
    except (safetensors.SafetensorError, OSError) as broken:
        raise WeightsError(f"{path} is not a readable safetensors file ({broken}): it may be truncated, or of another format") from None


def card_text(card: Card) -> str:
    """The card as Markdown: one section an entry, tables for figures."""
    lines = [f"# {card.get('title', 'Model')}", ""]
    for key, value in card.items():
        if key == "title":
            continue
        lines += [f"## {key.replace('_', ' ').capitalize()}", ""]
        if isinstance(value, dict):
            lines += ["| | |", "|---|---|", *(f"| {k} | {_text(v)} |" for k, v in value.items())]
        elif isinstance(value, list):
            lines += [f"- {_text(item)}" for item in value]
        else:
            lines += [_text(value)]
        lines += [""]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1 else str(value)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
