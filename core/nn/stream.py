"""A picture through a network strip by strip, so that memory does not grow with its height and nothing is computed twice.

Each layer takes rows as soon as the one before has made them, and of its input only the rows are kept that somebody still needs: a 3x3
convolution's two, a skip's until its other end has caught up. Strips stay in the processor's cache from layer to layer, and the result
is that of the whole picture at once, to the bit: strips end where the tiles of a convolution do.

Knows how far each layer looks; nothing of what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from core.kernels import Ring
from core.nn import convolution, products
from core.nn.activation import ReLU, Sigmoid
from core.nn.conv import Conv2d
from core.nn.module import Module, finished
from core.nn.resample import DepthToSpace, NearestUpsampling, SpaceToDepth
from core.nn.sequential import Concat, Residual, Sequential

ALIGNED = 4
"""Strips of a convolution's output end at multiples of this many rows, as F(4x4, 3x3) computes them."""


class Rows:
    """The rows of one picture, of which those are kept that a reader still needs."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.stop = 0
        """Rows that were written so far."""
        self.strip = 0
        """The most that were written at a time."""
        self.needed: list[int] = []
        """For each reader, the first row that it will read again."""
        self.data: Tensor | None = None

    def reader(self) -> int:
        self.needed.append(0)
        return len(self.needed) - 1

    def write(self, count: int, like: Tensor, dtype: torch.dtype | None = None) -> Ring:
        """Room for the next `count` rows, of another dtype than `like` if one is given."""
        first = min(self.needed, default=self.stop)
        needed = self.stop + count - first
        if self.data is None or self.data.shape[1] < needed:
            old = None if self.data is None or first == self.stop else self.read(first, self.stop).rows()
            self.data = torch.empty(1, needed, self.width, self.channels, dtype=dtype or like.dtype, device=like.device)
            if old is not None:
                Ring(self.data, first % needed, self.stop - first).put(old)
        self.stop += count
        return Ring(self.data, (self.stop - count) % self.data.shape[1], count)

    def read(self, first: int, stop: int) -> Ring:
        assert self.data is not None
        return Ring(self.data, first % self.data.shape[1], stop - first)


class Stream:
    """One picture's way through a network: `push` strip after strip of its rows, and get those of the result that are ready.

    No layer computes more rows at a time than the tallest strip has, not even when the last strip lets loose all that was waiting.
    """

    def __init__(self, network: Module, height: int, width: int, channels: int) -> None:
        self._steps: list[Callable[[], bool]] = []
        self._in = Rows(height, width, channels)
        self._out = self._lay(network, self._in, [])
        self._reader = self._out.reader()

    def push(self, rows: Tensor) -> Iterator[Tensor]:
        """(1, h, W, C), the next rows of the input -> (1, h', W', C'), the next of the output; each valid until the next is asked for."""
        return self.fill(rows.shape[1], rows, lambda room: room.copy_(rows))

    def fill(self, height: int, like: Tensor, write: Callable[[Tensor], object]) -> Iterator[Tensor]:
        """`push` of so many rows, of `like`'s dtype and device, that `write` writes where they are to lie."""
        self._in.strip = max(self._in.strip, height)
        to = self._in.write(height, like)
        room = to.whole()
        if room is None:
            room = torch.empty(to.shape, dtype=to.dtype, device=to.data.device)
            write(room)
            to.put(room)
        else:
            write(room)
        while True:
            moved = [step() for step in self._steps]
            first, stop = self._out.needed[self._reader], self._out.stop
            if first < stop:
                self._out.needed[self._reader] = stop
                yield self._out.read(first, stop).rows()
            if not any(moved):
                return

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
        if isinstance(module, SpaceToDepth | DepthToSpace | NearestUpsampling | ReLU | Sigmoid):
            return self._added(self._map(module, x), addends)
        raise TypeError(f"{type(module).__name__} can't be streamed: give the whole picture to `forward`")

    def _chain(self, chain: Sequential, x: Rows, addends: list[Rows]) -> Rows:
        layers = list(chain.layers)
        while layers:
            layer = layers.pop(0)
            last = [] if layers else addends
            if isinstance(layer, Conv2d):
                behind = layers[0] if layers else None
                if isinstance(behind, ReLU | DepthToSpace):  # computed with the convolution, if nothing is to be added in between
                    layers.pop(0)
                    last = addends if not layers and isinstance(behind, DepthToSpace) else []
                    x = self._convolution(layer, x, last, isinstance(behind, ReLU), getattr(behind, "scale", 1))
                else:
                    x = self._convolution(layer, x, last)
            else:
                x = self._lay(layer, x, last)
            if last:
                return x
        return self._added(x, addends)

    def _convolution(self, layer: Conv2d, x: Rows, addends: list[Rows], relu: bool = False, scale: int = 1) -> Rows:
        (K, L), (S, T), (P, Q) = layer.kernel, layer.stride, layer.padding
        height, width = (x.height + 2 * P - K) // S + 1, (x.width + 2 * Q - L) // T + 1
        y = Rows(height * scale, width * scale, layer.weight.shape[3] // scale**2)
        for rows in addends:
            _alike(y, rows)
        reader, others = x.reader(), [(rows, rows.reader()) for rows in addends]
        source = self._in  # not self: a step that held its stream would keep all rows alive until a garbage collection
        convolve: convolution.ByRows | None = None

        def step() -> bool:
            nonlocal convolve
            done, stop = y.stop // scale, height
            if x.stop < x.height:
                stop = ((x.stop - K + P) // S + 1) // ALIGNED * ALIGNED
            stop = min(stop, done + max(ALIGNED, -(-source.strip * height // source.height // ALIGNED) * ALIGNED))
            if stop <= done:
                return False
            above, below = done * S - P, (stop - 1) * S - P + K  # the rows that the windows reach, past the picture's edges too
            seen = x.read(max(0, above), min(x.height, below))
            convolve = convolve or convolution.by_rows(
                seen.data,
                layer.weight,
                layer.bias,
                layer.stride,
                (Q, Q),
                factors=layer.factors,
                careful=layer.careful,
                yields=layer.yields,
                scale=scale,
                relu=relu,
                packs=layer.packs,
            )
            out = y.write((stop - done) * scale, seen.data, layer.yields)
            convolve(seen, (max(0, -above), max(0, below - x.height)), out, [rows.read(done * scale, stop * scale) for rows, _ in others])
            x.needed[reader] = max(0, stop * S - P)
            for rows, other in others:
                rows.needed[other] = stop * scale
            return True

        self._steps.append(step)
        return y

    def _map(self, layer: SpaceToDepth | DepthToSpace | NearestUpsampling | ReLU | Sigmoid, x: Rows) -> Rows:
        """A layer whose output rows each come from one row of the input, or `scale` of them, or the other way round."""
        scale = getattr(layer, "scale", 1)
        if isinstance(layer, SpaceToDepth):
            y, at_a_time = Rows(x.height // scale, x.width // scale, x.channels * scale**2), scale
        else:
            channels = x.channels // scale**2 if isinstance(layer, DepthToSpace) else x.channels
            y, at_a_time = Rows(x.height * scale, x.width * scale, channels), 1
        reader = x.reader()

        def step() -> bool:
            first = x.needed[reader]
            stop = x.stop if x.stop == x.height else x.stop // at_a_time * at_a_time
            if stop <= first:
                return False
            rows = x.read(first, stop).rows()
            if isinstance(layer, SpaceToDepth):  # in one go: it stands where the rows are many
                to = y.write((stop - first) // scale, rows)
                if (into := to.whole()) is not None:
                    products.space_to_depth(rows, (scale, scale), into)
                else:
                    to.put(layer.forward(rows))
            else:
                rows = layer.forward(rows)
                y.write(rows.shape[1], rows).put(rows)
            x.needed[reader] = stop
            return True

        self._steps.append(step)
        return y

    def _added(self, x: Rows, addends: list[Rows]) -> Rows:
        if not addends:
            return x
        for rows in addends:
            _alike(x, rows)
        y = Rows(x.height, x.width, x.channels)
        readers = [(rows, rows.reader()) for rows in (x, *addends)]

        def step() -> bool:
            first, stop = y.stop, x.stop
            if stop <= first:
                return False
            total = finished(x.read(first, stop).rows(), [rows.read(first, stop).rows() for rows in addends])
            y.write(stop - first, total).put(total)
            for rows, reader in readers:
                rows.needed[reader] = stop
            return True

        self._steps.append(step)
        return y


def _alike(y: Rows, x: Rows) -> None:
    shapes = [(1, rows.height, rows.width, rows.channels) for rows in (y, x)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"f(x) has shape {shapes[0]} and x {shapes[1]}: the layers of a Residual must keep the shape")
