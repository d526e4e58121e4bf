"""The door to the C kernels: convolutions and their gradients on a processor, faster than matrix products of torch.

Knows tensors, sizes and instruction sets; nothing of layers, tapes or losses. Where the library was not built, or the processor has none
of its instruction sets, `take` gives None and the caller computes with products (see `core.nn.products`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

Pair = tuple[int, int]
Border = tuple[int, int, int, int]  # top, bottom, left, right; a negative one crops

SETS: dict[str, tuple[int, int, torch.dtype]] = {
    "amx": (16, 16, torch.bfloat16),
    "avx512_fp16": (32, 6, torch.float16),
    "avx512_bf16": (16, 6, torch.bfloat16),
    "avx512": (16, 6, torch.float32),
    "avx2": (8, 6, torch.float32),
}
"""The instruction sets, of each dtype the best first: numbers in a vector, the fewest rows of a product, the dtype of what it multiplies.

Sums are float32 in all but one: those of float16 are float16, as all that its vectors compute, but for sums of many pictures' derivatives.
"""

POINTS = 36
SAMPLES = {torch.float32: (0, 1.0), torch.uint8: (1, 255.0), torch.uint16: (2, 65535.0)}
"""The kinds of a picture's samples, as jobs.h counts them, and what is white in each."""


FEW = 64 * 64
"""Products of channels in and out up to which a core's cache holds the sums of a weight gradient."""


class KernelError(RuntimeError):
    """CLEARFOLD_KERNEL asks for what this machine does not have; the message is for users."""


class Ring(NamedTuple):
    """`height` rows of a picture in memory that holds fewer than the picture has: row i lies at `data[:, (first + i) % R]`."""

    data: Tensor  # (N, R, W, C), contiguous
    first: int
    height: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.data.shape[0], self.height, *self.data.shape[2:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def cut(self, start: int, stop: int) -> Ring:
        """The rows start..stop."""
        return Ring(self.data, (self.first + start) % self.data.shape[1], stop - start)

    def rows(self) -> Tensor:
        """(N, height, W, C), copied where the rows wrap around."""
        room = self.data.shape[1] - self.first
        if self.height <= room:
            return self.data[:, self.first : self.first + self.height]
        return torch.cat((self.data[:, self.first :], self.data[:, : self.height - room]), 1)

    def whole(self) -> Tensor | None:
        """(N, height, W, C) in place, unless the rows wrap around."""
        return self.data[:, self.first : self.first + self.height] if self.first + self.height <= self.data.shape[1] else None

    def put(self, rows: Tensor) -> None:
        """Writes all of the ring's rows."""
        room = self.data.shape[1] - self.first
        self.data[:, self.first : self.first + self.height] = rows[:, :room]
        if self.height > room:
            self.data[:, : self.height - room] = rows[:, room:]


class Place(NamedTuple):
    """A ring of one picture in memory that has a number until it is there: rows as `Ring`'s, of `room` that are kept."""

    number: int
    room: int
    first: int
    height: int
    dtype: torch.dtype


class Plan:
    """A convolution to be computed many times: what is the same each time is filled in once. Threads may share it."""

    def __init__(
        self,
        call: Callable[[object], object],
        job: Any,
        packed: Tensor,
        shape: tuple[int, int, int, int],
        width: int,
        stride: Pair,
        sides: Pair,
        bias: Tensor | None,
        scale: int,
        crop: Border,
        relu: bool,
        normal: float = 0.0,
        gate: bool = False,
        then: tuple[Tensor, int] | None = None,
    ) -> None:
        self._call, self._job, self._packed = call, job, (packed, then)
        self._bias = None if bias is None else bias.float()
        job.A, job.B, job.C, job.F = shape
        job.W, job.Wo = width, (width + sum(sides) - shape[1]) // stride[1] + 1
        job.along_i, job.along_j, job.left, job.scale, job.crop_top, job.crop_left = *stride, sides[0], scale, crop[0], crop[2]
        job.columns, job.relu, job.epsilon, job.gate = job.Wo * scale - crop[2] - crop[3], relu, normal, gate
        job.u, job.bias = packed.data_ptr(), None if self._bias is None else self._bias.data_ptr()
        if then is not None:
            job.then, job.outputs = then[0].data_ptr(), then[1]

    def __call__(
        self, x: Ring, ends: Pair, y: Ring, addends: Sequence[Ring] = (), mask: Ring | None = None, kept: Ring | None = None
    ) -> None:
        """Writes `y`, of as many rows as `x` gives in a border of `ends`, above and below, and `kept`, what a gate multiplied. Shapes are
        the caller's to check.
        """
        dtype = y.data.dtype
        alike = [ring if ring.data.dtype == dtype else ring._replace(data=ring.data.to(dtype)) for ring in addends]
        job = self._sized(x.data.shape[0], x.height, ends, y.height)
        _point(job.x, x)
        _point(job.y, y)
        for field, ring in zip((job.addend, job.another), alike, strict=False):
            _point(field, ring)
        if mask is not None:
            alike.append(mask if mask.data.dtype == dtype else mask._replace(data=mask.data.to(dtype)))
            _point(job.mask, alike[-1])
        if kept is not None:
            _point(job.another, kept)
        job.threads = torch.get_num_threads()
        self._call(ctypes.byref(job))

    def step(self, x: Place, ends: Pair, y: Place, addends: Sequence[Place]) -> Step:
        """The same for a `Program`; addends have the dtype of `y`."""
        job = self._sized(1, x.height, ends, y.height)
        for field, place in zip((job.x, job.y, job.addend, job.another), (x, y, *addends), strict=False):
            # in place of an address, one more than the number
            field.data, field.rows, field.first, field.half = place.number + 1, place.room, place.first, place.dtype != torch.float32
        step = Step(ctypes.cast(cast(Any, self._call), ctypes.c_void_p), job)
        step.plan = self  # and with it the weights
        return step

    def _sized(self, N: int, height: int, ends: Pair, rows: int) -> Any:
        """A job of its own for whoever calls."""
        job = type(self._job).from_buffer_copy(self._job)
        job.N, job.H, job.top, job.rows = N, height, ends[0], rows
        job.Ho = (height + ends[0] + ends[1] - job.A) // job.along_i + 1
        return job


class Kernels:
    """The kernels of one instruction set. Activations are contiguous (N, H, W, C) of float32 or `narrow`, weights float32."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self.lanes, self.grain, self.factors = SETS[name]
        self.narrow = torch.float16 if self.factors == torch.float16 else torch.bfloat16
        """What activations may have in place of float32."""
        # Where vectors are of float16, all else is computed in float32: a processor that has those has AVX-512, too.
        others = "avx512" if self.factors == torch.float16 else name
        self._call = {what: getattr(library, f"{what}_{others if what in _NARROW else name}") for what in _JOBS}
        self._rate = getattr(library, f"rate_{name}")
        self._rate.restype = ctypes.c_double

    @functools.cached_property
    def rate(self) -> float:
        """How many pairs of numbers a core multiplies in a second, measured at the first question, in less than a millisecond."""
        return float(self._rate())

    def pack(self, weight: Tensor, winograd: bool, turned: bool = False) -> Tensor:
        """(A, B, C, F) as `convolve` takes it. turned: by 180 degrees and C and F exchanged, for a data gradient (Winograd's only)."""
        weight = _floats(weight)
        A, B, C, F = weight.shape
        how = self.lanes, self.factors == torch.float16
        if not winograd:
            packed = torch.empty(_up(A * B * C, 2) * _up(F, self.lanes), dtype=self.factors)
            self._run("direct_weights", weight.data_ptr(), packed.data_ptr(), A * B * C, F, False, *how)
            return packed
        if turned:
            C, F = F, C
        packed = torch.empty(POINTS * self._point(C, F), dtype=self.factors)
        self._run("winograd_weights", weight.data_ptr(), packed.data_ptr(), C, F, turned, *how)
        return packed

    def convolve(
        self,
        x: Tensor | Ring,
        packed: Tensor,
        shape: tuple[int, int, int, int],
        stride: Pair,
        border: Border,
        *,
        winograd: bool,
        bias: Tensor | None = None,
        scale: int = 1,
        crop: Border = (0, 0, 0, 0),
        addends: Sequence[Tensor | Ring] = (),
        relu: bool = False,
        mask: Tensor | None = None,
        yields: torch.dtype | None = None,
        normal: float = 0.0,
        out: Ring | None = None,
    ) -> Tensor:
        """The convolution of `x` in its border, then depth-to-space by `scale` and a crop, then `+` up to two addends, ReLU, and zero where
        `mask` is not above zero: (N, rows, columns, F / scale**2), in `yields`, or the dtype of `x`; or the same written to `out`.

        shape: (A, B, C, F), of the weight that was packed.
        """
        N, H, W, _ = x.shape
        A, B, _, F = shape
        Ho, Wo = (H + border[0] + border[1] - A) // stride[0] + 1, (W + border[2] + border[3] - B) // stride[1] + 1
        rows, columns = Ho * scale - crop[0] - crop[1], Wo * scale - crop[2] - crop[3]
        size = N, rows, columns, F // scale**2
        y = out or Ring(torch.empty(size, dtype=yields or x.dtype), 0, rows)
        for t in addends if mask is None else (*addends, mask):
            if t.shape != size:
                raise ValueError(f"f(x) has shape {size} and x {tuple(t.shape)}: the layers of a Residual must keep the shape")
        plan = self.plan(
            packed, shape, W, stride, border[2:], winograd=winograd, bias=bias, scale=scale, crop=crop, relu=relu, normal=normal
        )
        plan(_ring(x), border[:2], y, [_ring(t) for t in addends], None if mask is None else _ring(mask))
        return y.data

    def plan(
        self,
        packed: Tensor,
        shape: tuple[int, int, int, int],
        width: int,
        stride: Pair,
        sides: Pair,
        *,
        winograd: bool,
        bias: Tensor | None = None,
        scale: int = 1,
        crop: Border = (0, 0, 0, 0),
        relu: bool = False,
        normal: float = 0.0,
    ) -> Plan:
        """`convolve` for pictures, or rows of one, of that width, with a border of `sides`, left and right.

        normal: above 0, each pixel is first divided by the root of its channels' mean square and this; for a 1x1 kernel alone.
        """
        what = "winograd" if winograd else "direct"
        return Plan(self._call[what], _JOBS[what](), packed, shape, width, stride, sides, bias, scale, crop, relu, normal)

    def gates(self, shape: tuple[int, int, int, int], width: int, dtype: torch.dtype, outputs: int = 0) -> bool:
        """Whether there is a `gated_plan` for 1x1 kernels of that shape and pictures of that width and dtype, and, if that is told, another
        1x1 kernel of so many `outputs` behind them. (But not in float16, where nobody has measured whether that is sooner.)
        """
        pairs = self.factors != torch.bfloat16 or shape[2] % 2 == 0
        whole = shape[3] % (2 * self.lanes) == 0 and outputs % self.lanes == 0
        behind = not outputs or self.factors != torch.float16
        return dtype == self.factors and pairs and whole and behind and width >= self.grain

    def pack_gated(self, weight: Tensor) -> Tensor:
        """(1, 1, C, 2F) as `gated_plan` takes it."""
        return self.pack(self._in_turn(weight), False)

    def gated_plan(
        self,
        packed: Tensor,
        shape: tuple[int, int, int, int],
        width: int,
        gate: Tensor,
        normal: float,
        then: tuple[Tensor, int] | None = None,
    ) -> Plan:
        """`plan` of a 1x1 kernel and, at its one store, `gate_plan` of what it yields, `gate` being that one's bias; then, of what the gate
        lets through, if the packed weights and the outputs of another 1x1 kernel are given, which are whole vectors, that one's.
        """
        call, job, no_crop = self._call["direct"], _JOBS["direct"](), (0, 0, 0, 0)
        return Plan(call, job, packed, shape, width, (1, 1), (0, 0), self._in_turn(gate), 1, no_crop, False, normal, gate=True, then=then)

    def _in_turn(self, channels: Tensor) -> Tensor:
        """(..., 2F) -> the same, a vector of the first half and one of the second in turn."""
        return channels.view(*channels.shape[:-1], 2, -1, self.lanes).transpose(-3, -2).flatten(-3)

    def weight_gradient(self, x: Tensor, dy: Tensor, border: Border, unit: float = 1.0) -> Tensor:
        """That of a 3x3 convolution of stride 1, times `unit`: (3, 3, C, F) in float32."""
        (N, H, W, C), (_, Ho, Wo, F) = x.shape, dy.shape
        threads = torch.get_num_threads()
        # One thread sums as two would, so that the result is the same.
        parts, shares = (1, max(2, threads)) if C * F <= FEW else (2, max(1, threads // 2))
        du, dw = torch.empty(shares * POINTS * self._point(C, F)), torch.empty(3, 3, C, F)
        x, dy = x.contiguous(), dy.contiguous()
        given = _rows(_ring(x)), _rows(_ring(dy)), du.data_ptr(), dw.data_ptr(), unit
        for what in ("winograd_gradient", "gradient_weights"):
            self._run(what, *given, N, H, W, C, F, Ho, Wo, border[0], border[2], parts, shares, self.lanes)
        return dw

    def windows_gradient(self, x: Tensor, dy: Tensor, kernel: Pair, scale: int = 1, unit: float = 1.0) -> Tensor:
        """That of a convolution with a stride as large as its kernel, and depth-to-space by `scale` behind it, times `unit`: (A, B, C, F)
        in float32.

        `aligned` tells for which sizes; x: (N, down * A, across * B, C), dy: (N, down * scale, across * scale, F / scale**2).
        """
        (N, H, W, C), (A, B), F = x.shape, kernel, dy.shape[3] * scale**2
        shares = torch.get_num_threads()
        dw = torch.empty(shares, A, B, C, F)
        x, dy = x.contiguous(), dy.contiguous()
        self._run("windows_gradient", _rows(_ring(x)), _rows(_ring(dy)), dw.data_ptr(), N, H // A, W // B, A, B, C, scale, F, shares)
        total = dw[0]
        for other in dw[1:]:
            total += other
        return total if unit == 1 else total.mul_(unit)

    def aligned(self, x: Tensor, dy: Tensor, kernel: Pair, scale: int = 1) -> bool:
        """Whether `windows_gradient` can be computed: windows fill the picture, and a row of one is whole vectors."""
        (A, B), (_, H, W, C) = kernel, x.shape
        grids = (dy.shape[1] // scale * A, dy.shape[2] // scale * B) == (H, W) and not (dy.shape[1] % scale or dy.shape[2] % scale)
        return grids and B * C % self.lanes == 0 and scale * dy.shape[3] % self.lanes == 0

    def row_sums(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, C) in float32, summed up over W."""
        N, H, W, C = x.shape
        x, sums = x.contiguous(), torch.empty(N, H, C)
        self._run("sums", _rows(_ring(x)), sums.data_ptr(), N, H, W, C)
        return sums

    def normalised(self, x: Tensor, epsilon: float, keep: bool) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) -> `x / sqrt(mean over C of x**2 + epsilon)`, and, if to `keep`, the factors, (N, H, W, 1)."""
        N, H, W, C = x.shape
        x, y = x.contiguous(), torch.empty(N, H, W, C, dtype=x.dtype)
        scale = torch.empty((N, H, W, 1) if keep else 0)
        self._run("normal", _rows(_ring(x)), _rows(_ring(y)), scale.data_ptr() if keep else None, epsilon, N, H, W, C)
        return y, scale

    def normalised_backward(self, dy: Tensor, y: Tensor, scale: Tensor, addend: Tensor | None) -> Tensor:
        """The derivative by `x` of what `normalised` gave, `+ addend`."""
        N, H, W, C = y.shape
        dx, dy = torch.empty_like(y), dy.to(y.dtype).contiguous()
        added = None if addend is None else addend.to(y.dtype).contiguous()
        given = [_rows(_ring(t)) if t is not None else _Rows() for t in (dy, y, added, dx)]
        self._run("normal_gradient", *given, scale.data_ptr(), N, H, W, C)
        return dx

    def gate_plan(self, weight: Tensor | None, bias: Tensor, width: int) -> Plan:
        """For pictures of that width with 2C channels, filtered by (3, 3, 2C) in a border of 1 where there is a weight: the product of
        their halves, each with its bias added.
        """
        F = len(bias) // 2
        filter, side = (torch.empty(0), 0) if weight is None else (_floats(weight), 1)
        what, kernel = ("gate", 1) if weight is None else ("depthwise_gate", 3)
        return Plan(
            self._call[what], _JOBS[what](), filter, (kernel, kernel, 2 * F, F), width, (1, 1), (side, side), bias, 1, (0, 0, 0, 0), False
        )

    def gate(self, x: Tensor, weight: Tensor | None, bias: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
        """`gate_plan` of whole pictures; and what was filtered, if that is to be kept."""
        N, H, W, C = x.shape
        y, filtered = torch.empty(N, H, W, C // 2, dtype=x.dtype), torch.empty(x.shape if keep else (0,), dtype=x.dtype)
        plan, side = self.gate_plan(weight, bias, W), int(weight is not None)
        plan(_ring(x), (side, side), _ring(y), kept=_ring(filtered) if keep else None)
        return y, filtered

    def gate_backward(
        self, dy: Tensor, gated: Tensor, bias: Tensor | None, x: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives of `gate` by `x`, by the weights and by the biases, the latter two in float32.

        gated: what it multiplied, without the `bias`, if one is given. x, weight: what was filtered, and by what.
        """
        N, H, W, C = gated.shape
        shares = max(2, torch.get_num_threads())  # one thread sums as two would
        dx, dy = torch.empty_like(gated), dy.to(gated.dtype).contiguous()
        dw, dbias = torch.empty(shares, 3, 3, 0 if weight is None else C), torch.empty(shares, C)
        given = _rows(_ring(dy)), _rows(_ring(gated)), _Rows() if x is None else _rows(_ring(x)), _rows(_ring(dx))
        told = [None if t is None else t.float().contiguous() for t in (bias, weight)]
        what = "gate_gradient" if weight is None else "depthwise_gradient"
        self._run(what, *given, *(None if t is None else t.data_ptr() for t in told), dw.data_ptr(), dbias.data_ptr(), N, H, W, C, shares)
        return dx, dw.sum(0), dbias.sum(0)

    def adam(
        self,
        tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
        betas: tuple[float, float],
        step: int,
        lr: float,
        epsilon: float,
    ) -> None:
        """`core.nn.optim.Adam`'s update number `step` of values and their two moments, in place, by their derivatives, which are the last
        of each four tensors; all are contiguous and float32.
        """
        b1, b2 = betas
        factors = 1 - b1, b2, 1 - b2**step, lr / (1 - b1**step), epsilon
        each = (_Tensors * len(tensors))(*(_Tensors(*(t.data_ptr() for t in of), of[0].numel()) for of in tensors))
        self._run("adam", ctypes.addressof(each), *factors, len(tensors))
        # counts as a change for torch: what was made of a weight is made anew by its version
        torch._foreach_zero_([value.view(-1)[:0] for value, *_ in tensors])

    def lay(self, samples: Tensor, level: float, to: Ring) -> None:
        """Pixels (H, W, 1 or 3), which are `samples_fit`, and a noise level as the network's input behind a space-to-depth by 2, into `to`
        (1, H / 2, W / 2, 16), float32.
        """
        (_, W, C), (kind, one) = samples.shape, SAMPLES[samples.dtype]
        self._run("lay", _rows(to), samples.data_ptr(), level, one, kind, C, _along(samples), to.height, W)

    def correct(
        self, noisy: Tensor, share: float, corrections: Ring, left: int, grey: bool, clean: Tensor, measured: bool = False
    ) -> float:
        """`noisy + share * corrections` between 0 and 1, rounded to what integers can be, into `clean`, which may be `noisy`; both are
        (H, W, 1 or 3) and `samples_fit`. grey: the mean of the corrections (1, >= H, >= left + W, 3) for all channels.

        Gives the sum of the squares of what was taken away, if that is to be measured.
        """
        (H, W, C), (kind, one) = noisy.shape, SAMPLES[noisy.dtype]
        squares = torch.empty(H if measured else 0, dtype=torch.float64)
        if corrections.dtype == torch.float16:
            corrections = Ring(corrections.rows().float(), 0, corrections.height)
        given = noisy.data_ptr(), clean.data_ptr(), squares.data_ptr() if measured else None, share, one
        across = H, W, left, corrections.data.shape[2]
        self._run("correct", _rows(corrections), *given, kind, C, _along(noisy), _along(clean), grey or C == 1, *across)
        return squares.sum().item() if measured else 0.0

    def _point(self, C: int, F: int) -> int:
        return _up(C, self.lanes) * _up(F, self.lanes) + 32

    def _run(self, what: str, *fields: _Rows | float | None) -> None:
        """All fields of jobs.h's structure but those that it fills in itself; the tensors behind pointers are the caller's to keep."""
        self._call[what](ctypes.byref(_JOBS[what](*fields, torch.get_num_threads())))


def samples_fit(samples: Tensor) -> bool:
    """Whether `lay` and `correct` take them: each row's lie side by side, and are of a kind they know."""
    C = samples.shape[2]
    return samples.dtype in SAMPLES and samples.device.type == "cpu" and samples.stride()[1:] == (C, 1) and samples.stride(0) >= 0


def take(factors: torch.dtype, device: torch.device) -> Kernels | None:
    """The kernels to multiply in `factors` with on this machine, or None. Those of float32 stand in where there are none of bfloat16, but
    not for float16, of which there is no other way.
    """
    if device.type != "cpu" or factors not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    for own in available().values():
        if own.factors == factors or (own.factors == torch.float32 and factors != torch.float16):
            return own
    return None


def rates() -> dict[torch.dtype, float]:
    """Of each dtype that kernels here multiply in, the rate of the best."""
    found: dict[torch.dtype, float] = {}
    for own in available().values():
        found[own.factors] = max(own.rate, found.get(own.factors, 0.0))
    return found


@functools.cache
def available() -> dict[str, Kernels]:
    """The kernels that were built and that this processor runs, by name, best first; CLEARFOLD_KERNEL keeps one of them, or `none`."""
    library, _ = _library()
    found = {name: Kernels(library, name) for name in SETS if library is not None and getattr(library, f"clearfold_runs_{name}")()}
    if (name := forced()) == "auto":
        return found
    if name == "none":
        return {}
    if name not in found:
        usable = ", ".join(["auto", "none", *found])
        raise KernelError(f'CLEARFOLD_KERNEL = "{name}" is not available here ({why()}): use {usable}')
    return {name: found[name]}


def forced() -> str:
    """What the environment asks for: a set's name, "none", or "auto"."""
    return os.environ.get("CLEARFOLD_KERNEL") or "auto"


def why() -> str:
    """One line on what was found, for people."""
    library, reason = _library()
    if library is None:
        return reason
    runs = [name for name in SETS if getattr(library, f"clearfold_runs_{name}")()]
    library.clearfold_refuses_amx.restype = ctypes.c_char_p
    refusal = library.clearfold_refuses_amx().decode()
    return f"this processor runs {', '.join(runs) or 'none of the built kernels'}" + (f"; it has AMX, but {refusal}" if refusal else "")


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    built = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not built:
        return None, "no kernels were built: install a C compiler, then Clearfold again"
    try:
        library = ctypes.CDLL(str(built[0]))
    except OSError as error:
        return None, f"the kernels can't be loaded: {error}"
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))  # there in a checkout, not where the package is installed
    library.clearfold_sources.restype = ctypes.c_char_p
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    if sources and library.clearfold_sources().decode() != digest:
        return None, "the kernels were built from other sources than are here: install Clearfold again"
    library.clearfold_borrow.argtypes = [ctypes.c_void_p]
    # torch's own OpenMP runtime is in the process already, for all to see
    gomp = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    library.clearfold_borrow(None if gomp is None else ctypes.cast(gomp, ctypes.c_void_p))
    return library, ""


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("rows", "first", "half"))]


class _Tensors(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("value", "m", "v", "d")), ("n", ctypes.c_long)]


def _job(rows: str, pointers: str, numbers: str, fractions: str = "") -> type[ctypes.Structure]:
    kinds = (_Rows, rows), (ctypes.c_void_p, pointers), (ctypes.c_float, fractions), (ctypes.c_long, numbers)
    return type("Job", (ctypes.Structure,), {"_fields_": [(name, kind) for kind, names in kinds for name in names.split()]})


_WEIGHTS = _job("", "w u", "C F turned lanes half threads next")
_CONVOLUTION = _job(
    "x y addend another mask",
    "u bias then",
    "N H W C F Ho Wo A B along_i along_j top left scale crop_top crop_left rows columns relu gate outputs threads block next",
    "epsilon",
)


class Step(ctypes.Structure):
    """One convolution of a `Program`."""

    _fields_ = [("call", ctypes.c_void_p), ("job", _CONVOLUTION)]
    plan: Plan


class Program:
    """Convolutions one after another, in one call. Threads may share it: it holds no memory but the weights'."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._plans = [step.plan for step in steps]
        self._steps = (Step * len(steps))(*steps)
        library, _ = _library()
        self._run: Any = library and library.clearfold_run

    def __call__(self, bases: ctypes.Array[ctypes.c_void_p]) -> None:
        """bases: where the rings of each number lie."""
        self._run(self._steps, ctypes.c_long(len(self._steps)), bases, ctypes.c_long(torch.get_num_threads()))


_GRADIENT = _job("x dy", "du dw", "N H W C F Ho Wo top left parts shares lanes threads stretch next", "unit")
_GATE_GRADIENT = _job("dy gated x dx", "bias w dw dbias", "N H W C shares threads next")
_JOBS = {
    "winograd_weights": _WEIGHTS,
    "direct_weights": _WEIGHTS,
    "winograd": _CONVOLUTION,
    "direct": _CONVOLUTION,
    "winograd_gradient": _GRADIENT,
    "gradient_weights": _GRADIENT,
    "windows_gradient": _job("x dy", "dw", "N down across A B C S F shares threads next"),
    "gate": _CONVOLUTION,
    "depthwise_gate": _CONVOLUTION,
    "gate_gradient": _GATE_GRADIENT,
    "depthwise_gradient": _GATE_GRADIENT,
    "sums": _job("x", "sums", "N H W C threads next"),
    "normal": _job("x y", "scale", "N H W C threads next", "epsilon"),
    "normal_gradient": _job("dy y addend dx", "scale", "N H W C threads next"),
    "lay": _job("y", "samples", "kind channels along rows columns threads next", "level one"),
    "correct": _job("x", "noisy clean squares", "kind channels along clean_along grey rows columns left width threads next", "share one"),
    "adam": _job("", "tensors", "count threads next", "first second grown rate epsilon"),
}
"""As in jobs.h."""
_NARROW = {"lay", "correct", "adam", "winograd_weights", "direct_weights", "gradient_weights"}
"""Of these, what knows no float16, and is computed for it by another set."""


def _floats(x: Tensor) -> Tensor:
    """In float32, one number after another."""
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.detach().float().contiguous()


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _rows(ring: Ring) -> _Rows:
    _point(rows := _Rows(), ring)
    return rows


def _point(field: _Rows, ring: Ring) -> None:
    data = ring.data
    field.data, field.rows, field.first, field.half = data.data_ptr(), data.shape[1], ring.first, data.dtype != torch.float32


def _along(samples: Tensor) -> int:
    return samples.stride(0) * samples.itemsize


def _ring(x: Tensor | Ring) -> Ring:
    return x if isinstance(x, Ring) else Ring(x.contiguous(), 0, x.shape[1])
