"""A picture through a network strip by strip, so that memory does not grow with its height and nothing is computed twice.

Each layer takes rows as soon as the one before has made them, and of its input only the rows are kept that somebody still needs: a 3x3
convolution's two, a skip's until its other end has caught up. Strips stay in the processor's cache from layer to layer, and the result
is that of the whole picture at once, to the bit: strips end where the tiles of a convolution do.

What is computed when, and where it lies, hangs on sizes alone: a `Stream` finds it out once, for all pictures of a size. Between the
strips of a picture, a `Passage`, nothing is left to decide, and the kernels compute all of a strip in one call.

Knows how far each layer looks; nothing of what it computes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core import kernels
from core.kernels import Place, Plan, Ring
from core.nn import convolution
from core.nn.activation import ReLU, Sigmoid
from core.nn.conv import Conv2d
from core.nn.gated import EDGE, EPSILON, DepthwiseGate, Gate, RMSNorm
from core.nn.module import Module, finished
from core.nn.products import Pair
from core.nn.resample import DepthToSpace, NearestUpsampling, SpaceToDepth
from core.nn.sequential import Concat, Residual, Sequential, normalises

ALIGNED = 4
"""Strips of a convolution's output end at multiples of this many rows, as F(4x4, 3x3) computes them."""
PIECE_BYTES = 1 << 22
"""Memory is asked for in pieces of so much, or of the rows that need more: few enough.

In pieces of 32 MB, a service's heap grew by a fifth in 5,000 requests with pictures of many sizes.
"""
LINE_BYTES = 64


class Rows:
    """The rows of one picture, of which those are kept that a reader still needs, in a ring of `room` rows."""

    def __init__(self, height: int, width: int, channels: int, dtype: torch.dtype) -> None:
        self.height, self.width, self.channels, self.dtype = height, width, channels, dtype
        self.stop = 0
        """Rows that were written so far."""
        self.needed: list[int] = []
        """For each reader, the first row that it will read again."""
        self.room = 0
        self.number = 0
        """In the memory of a passage."""

    def reader(self) -> int:
        self.needed.append(0)
        return len(self.needed) - 1

    def write(self, count: int) -> Span:
        """The next `count` rows."""
        self.stop += count
        self.room = max(self.room, self.stop - min(self.needed, default=self.stop - count))
        return Span(self, self.stop - count, self.stop)

    def size_bytes(self) -> int:
        return self.room * self.width * self.channels * self.dtype.itemsize


class Span(NamedTuple):
    """Rows first..stop."""

    rows: Rows
    first: int
    stop: int

    def ring(self, memory: Memory) -> Ring:
        return Ring(memory.of(self.rows), self.first % self.rows.room, self.stop - self.first)

    def place(self) -> Place:
        rows = self.rows
        return Place(rows.number, rows.room, self.first % rows.room, self.stop - self.first, rows.dtype)


class Memory:
    """What one passage keeps: all rows, one after another in a few tensors."""

    def __init__(self, every: Sequence[Rows], device: torch.device) -> None:
        self._where: list[tuple[Tensor, int]] = []
        # a line more for each, so that not all begin in one set of a cache
        sizes = [(-(-rows.size_bytes() // LINE_BYTES) + 1) * LINE_BYTES for rows in every]
        left = 0
        for size in sizes:
            if left < size:
                left = max(size, PIECE_BYTES)
                piece = torch.empty(left, dtype=torch.uint8, device=device)
            self._where.append((piece, len(piece) - left))
            left -= size
        self.bases = (ctypes.c_void_p * len(every))(*(piece.data_ptr() + at for piece, at in self._where))

    def of(self, rows: Rows) -> Tensor:
        """(1, room, W, C)."""
        piece, at = self._where[rows.number]
        return piece[at : at + rows.size_bytes()].view(rows.dtype).view(1, rows.room, rows.width, rows.channels)


@dataclass
class Convolved:
    """Rows of a convolution to be computed."""

    compute: convolution.ByRows
    x: Span
    ends: Pair
    y: Span
    addends: list[Span]

    def __call__(self, memory: Memory) -> None:
        self.compute(self.x.ring(memory), self.ends, self.y.ring(memory), [rows.ring(memory) for rows in self.addends])

    def by_kernels(self) -> kernels.Step | None:
        """The same for the kernels' program, if it can be."""
        if not isinstance(self.compute, Plan) or any(span.rows.dtype != self.y.rows.dtype for span in self.addends):
            return None
        return self.compute.step(self.x.place(), self.ends, self.y.place(), [span.place() for span in self.addends])


Mapped = SpaceToDepth | DepthToSpace | NearestUpsampling | ReLU | Sigmoid | RMSNorm
"""Layers whose output rows each come from one row of the input, or some of them, or the other way round."""
Work = Callable[[Memory], object]
Step = Callable[[list[Work]], bool]
"""Appends what can be done with the rows that are there; False: nothing."""


class Stream:
    """The way of pictures of one size through a network, as its weights are now: `begin` it with a picture. Threads may share it.

    heights: of the strips in which a picture comes. No layer computes more rows at a time than the tallest has, not even when the last
    strip lets loose all that was waiting.
    """

    def __init__(self, network: Module, heights: Sequence[int], width: int, channels: int, like: Tensor) -> None:
        """Pictures are (1, sum of the heights, width, channels), of the dtype and the device of `like`."""
        self._device = like.device
        self.every: list[Rows] = []
        self._steps: list[Step] = []
        self._in, self._tallest = self._rows(sum(heights), width, channels, like.dtype), max(heights)
        out = self._lay(network, self._in, [])
        reader = out.reader()
        strips: list[tuple[Span, list[Work], Span]] = []
        for height in heights:
            given, work = self._in.write(height), list[Work]()
            while moved := [step(work) for step in self._steps]:
                if not any(moved):
                    break
            strips.append((given, work, Span(out, out.needed[reader], out.stop)))
            out.needed[reader] = out.stop
        self._steps.clear()
        self.every = [rows for rows in self.every if rows.room]
        for number, rows in enumerate(self.every):
            rows.number = number
        self.strips = [(given, _together(work), ready) for given, work, ready in strips]

    def begin(self) -> Passage:
        return Passage(self)

    def memory(self) -> Memory:
        return Memory(self.every, self._device)

    def size_bytes(self) -> int:
        """What a passage keeps."""
        return sum(rows.size_bytes() for rows in self.every)

    def _rows(self, height: int, width: int, channels: int, dtype: torch.dtype) -> Rows:
        self.every.append(rows := Rows(height, width, channels, dtype))
        return rows

    def _lay(self, module: Module, x: Rows, addends: list[Rows]) -> Rows:
        """Appends the steps from `x` to the rows that are returned; `addends` are to be added to them."""
        if isinstance(module, Residual):
            at_once = addends if len(addends) < convolution.ADDENDS else []
            y = self._chain(module, x, [x, *at_once])
            return y if at_once else self._added(y, addends)
        if isinstance(module, Sequential) and not isinstance(module, Concat):
            return self._chain(module, x, addends)
        if isinstance(module, Conv2d):
            return self._convolution(module, x, addends)
        if isinstance(module, Gate | DepthwiseGate):
            return self._added(self._gate(module, x), addends)
        if isinstance(module, Mapped):
            return self._added(self._map(module, x), addends)
        raise TypeError(f"{type(module).__name__} can't be streamed: give the whole picture to `forward`")

    def _chain(self, chain: Sequential, x: Rows, addends: list[Rows]) -> Rows:
        layers = list(chain.layers)
        while layers:
            layer = layers.pop(0)
            last = [] if layers else addends
            normal = isinstance(layer, RMSNorm) and bool(layers) and normalises(layers[0], x.dtype, self._device)
            if normal:  # by the convolution behind it
                layer = layers.pop(0)
                last = [] if layers else addends
            if isinstance(layer, Conv2d):
                behind = layers[0] if layers else None
                end = layers[1] if len(layers) == 2 else None
                if isinstance(behind, Gate) and isinstance(end, Conv2d) and (y := self._gated(layer, behind, x, normal, end, addends)):
                    return y
                if isinstance(behind, Gate) and (gated := self._gated(layer, behind, x, normal)):
                    layers.pop(0)
                    x = gated
                    continue
                if isinstance(behind, ReLU | DepthToSpace):  # computed with the convolution, if nothing is to be added in between
                    layers.pop(0)
                    last = addends if not layers and isinstance(behind, DepthToSpace) else []
                    x = self._convolution(layer, x, last, isinstance(behind, ReLU), getattr(behind, "scale", 1), normal)
                else:
                    x = self._convolution(layer, x, last, normal=normal)
            else:
                x = self._lay(layer, x, last)
            if last:
                return x
        return self._added(x, addends)

    def _convolution(self, layer: Conv2d, x: Rows, addends: list[Rows], relu: bool = False, scale: int = 1, normal: bool = False) -> Rows:
        (K, L), (S, T), (P, Q) = layer.kernel, layer.stride, layer.padding
        height, width = (x.height + 2 * P - K) // S + 1, (x.width + 2 * Q - L) // T + 1
        y = self._rows(height * scale, width * scale, layer.weight.shape[3] // scale**2, layer.yields or x.dtype)
        for rows in addends:
            _alike(y, rows)
        reader, others = x.reader(), [(rows, rows.reader()) for rows in addends]
        compute = convolution.by_rows(
            x.width,
            x.dtype,
            self._device,
            layer.weight,
            layer.bias,
            layer.stride,
            (Q, Q),
            factors=layer.factors,
            careful=layer.careful,
            yields=layer.yields,
            scale=scale,
            relu=relu,
            normal=EPSILON if normal else 0.0,
            packs=layer.packs,
        )

        def step(work: list[Work]) -> bool:
            done, stop = y.stop // scale, height
            if x.stop < x.height:
                stop = ((x.stop - K + P) // S + 1) // ALIGNED * ALIGNED
            stop = min(stop, done + max(ALIGNED, -(-self._tallest * height // self._in.height // ALIGNED) * ALIGNED))
            if stop <= done:
                return False
            above, below = done * S - P, (stop - 1) * S - P + K  # the rows that the windows reach, past the picture's edges too
            seen, ends = Span(x, max(0, above), min(x.height, below)), (max(0, -above), max(0, below - x.height))
            to = y.write((stop - done) * scale)
            work.append(Convolved(compute, seen, ends, to, [Span(rows, to.first, to.stop) for rows, _ in others]))
            x.needed[reader] = max(0, stop * S - P)
            for rows, other in others:
                rows.needed[other] = to.stop
            return True

        self._steps.append(step)
        return y

    def _map(self, layer: Mapped, x: Rows) -> Rows:
        """A layer whose output rows each come from one row of the input, or `scale` of them, or the other way round."""
        scale = getattr(layer, "scale", 1)
        if isinstance(layer, SpaceToDepth):
            y, at_a_time = self._rows(x.height // scale, x.width // scale, x.channels * scale**2, x.dtype), scale
        else:
            channels = x.channels // scale**2 if isinstance(layer, DepthToSpace) else x.channels
            y, at_a_time = self._rows(x.height * scale, x.width * scale, channels, x.dtype), 1
        reader = x.reader()

        def step(work: list[Work]) -> bool:
            first = x.needed[reader]
            stop = x.stop if x.stop == x.height else x.stop // at_a_time * at_a_time
            if stop <= first:
                return False
            count = (stop - first) // scale if isinstance(layer, SpaceToDepth) else (stop - first) * scale
            work.append(functools.partial(_mapped, layer, Span(x, first, stop), y.write(count)))
            x.needed[reader] = stop
            return True

        self._steps.append(step)
        return y

    def _gated(
        self, layer: Conv2d, behind: Gate, x: Rows, normal: bool, end: Conv2d | None = None, addends: Sequence[Rows] = ()
    ) -> Rows | None:
        """A 1x1 convolution, the gate behind it and, if it is told, the 1x1 convolution at the `end`, to whose outputs `addends` are added:
        where a kernel computes all at once.
        """
        for each in (layer, end):
            if each and (each.bias is not None or each.careful or each.yields or not normalises(each, x.dtype, self._device)):
                return None
        if end and end.factors != layer.factors:
            return None
        how = x.width, x.dtype, self._device, layer.weight, behind.bias
        then = (end.weight, end.packs) if end else None
        compute = convolution.gated_by_rows(*how, factors=layer.factors, packs=layer.packs, normal=EPSILON if normal else 0.0, then=then)
        return compute and self._by_pixels(compute, x, end.weight.shape[3] if end else behind.out_channels, 0, addends)

    def _gate(self, layer: Gate | DepthwiseGate, x: Rows) -> Rows:
        edge = EDGE if isinstance(layer, DepthwiseGate) else 0
        return self._by_pixels(layer.by_rows(x.width, x.dtype, self._device), x, layer.out_channels, edge)

    def _by_pixels(self, compute: convolution.ByRows, x: Rows, channels: int, edge: int, addends: Sequence[Rows] = ()) -> Rows:
        """A pixel of the output for each of the input, from those up to `edge` around it."""
        y, reader = self._rows(x.height, x.width, channels, x.dtype), x.reader()
        for rows in addends:
            _alike(y, rows)
        others = [(rows, rows.reader()) for rows in addends]

        def step(work: list[Work]) -> bool:
            first, stop = y.stop, x.stop if x.stop == x.height else x.stop - edge
            if stop <= first:
                return False
            seen = Span(x, max(0, first - edge), min(x.height, stop + edge))
            ends = max(0, edge - first), max(0, stop + edge - x.height)
            work.append(Convolved(compute, seen, ends, y.write(stop - first), [Span(rows, first, stop) for rows in addends]))
            x.needed[reader] = max(0, stop - edge)
            for rows, other in others:
                rows.needed[other] = stop
            return True

        self._steps.append(step)
        return y

    def _added(self, x: Rows, addends: list[Rows]) -> Rows:
        if not addends:
            return x
        for rows in addends:
            _alike(x, rows)
        y = self._rows(x.height, x.width, x.channels, x.dtype)
        readers = [(rows, rows.reader()) for rows in (x, *addends)]

        def step(work: list[Work]) -> bool:
            first, stop = y.stop, x.stop
            if stop <= first:
                return False
            work.append(functools.partial(_summed, [Span(rows, first, stop) for rows, _ in readers], y.write(stop - first)))
            for rows, reader in readers:
                rows.needed[reader] = stop
            return True

        self._steps.append(step)
        return y


def _computed(program: kernels.Program, memory: Memory) -> None:
    program(memory.bases)


def _mapped(layer: Mapped, x: Span, y: Span, memory: Memory) -> None:
    given, out = x.ring(memory), y.ring(memory)
    if isinstance(layer, RMSNorm):
        layer.by_rows(given, out)
    else:
        out.put(layer.forward(given.rows()))


def _summed(parts: Sequence[Span], y: Span, memory: Memory) -> None:
    first, *others = (part.ring(memory).rows() for part in parts)
    y.ring(memory).put(finished(first, others))


def _alike(y: Rows, x: Rows) -> None:
    shapes = [(1, rows.height, rows.width, rows.channels) for rows in (y, x)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"f(x) has shape {shapes[0]} and x {shapes[1]}: the layers of a Residual must keep the shape")


class Passage:
    """One picture on its way."""

    def __init__(self, stream: Stream) -> None:
        self._memory = stream.memory()
        self._strips = iter(stream.strips)

    def push(self, write: Callable[[Ring], object]) -> Ring:
        """The next strip of the input, which `write` writes, (1, h, W, C) -> what is ready of the output by then, (1, h', W', C').

        It is valid until the next is pushed.
        """
        given, work, ready = next(self._strips)
        write(given.ring(self._memory))
        for each in work:
            each(self._memory)
        return ready.ring(self._memory)


def _together(work: Sequence[Work]) -> list[Work]:
    """The same, with neighbours that kernels compute in one call."""
    done, steps = list[Work](), list[kernels.Step]()
    for each in (*work, None):
        if isinstance(each, Convolved) and (step := each.by_kernels()):
            steps.append(step)
            continue
        if steps:
            done.append(functools.partial(_computed, kernels.Program(steps)))
            steps = []
        if each is not None:
            done.append(each)
    return done
