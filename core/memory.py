"""Memory that several processes of one machine have in common. Knows nothing of what lies in it, nor of when who may write."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable

import torch
from torch import Tensor


def common(numbers: int, told: Callable[[str], list[str]]) -> list[Tensor] | None:
    """A piece of memory of every process, this one's with room for so many float32, which all of them read and write.

    None for all of them unless they are on one machine, which has files in memory, and of one user. told: what all say, each in its turn.
    """
    token = secrets.token_hex(16)
    file, own = _made(4 * numbers, token)
    said = told("" if file is None else f"/proc/{os.getpid()}/fd/{file} {token}")
    pieces = [piece for words in said if (piece := own if words.endswith(token) else _opened(words)) is not None]
    everyone = "" not in told("all are here" if len(pieces) == len(said) else "")  # and nobody needs the file's name any more
    if file is not None:
        os.close(file)
    return [torch.frombuffer(piece, dtype=torch.float32)[: -len(token) // 4] for piece in pieces] if everyone else None


def _made(size: int, token: str) -> tuple[int | None, mmap.mmap | None]:
    """A file without a name, and the memory that it is; the token lies at its end, by which it is told from another machine's."""
    if not hasattr(os, "memfd_create"):
        return None, None
    try:
        file = os.memfd_create("clearfold")
        os.ftruncate(file, size + len(token))
        piece = mmap.mmap(file, 0)
    except OSError:
        return None, None
    piece[-len(token) :] = token.encode()
    return file, piece


def _opened(words: str) -> mmap.mmap | None:
    """Another process's piece, if it is there."""
    try:
        path, token = words.split()
        with open(path, "r+b") as file:
            piece = mmap.mmap(file.fileno(), 0)
    except (OSError, ValueError):
        return None
    return piece if piece[-len(token) :] == token.encode() else None
