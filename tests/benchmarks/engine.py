"""`python -m tests.benchmarks.engine [CBSD68/]`: this engine and torch.nn on the same network, weights and pictures, in turn.

Equal first, timed second: each opponent's result is compared before any clock runs. Times are medians, and what counts is their ratio;
what is quick is run several times in a turn, as by a service that gets one picture after the other. The opponents live in processes of
their own, because autograd's thread would leave OpenMP with more workers than cores and slow both; they take turns, so that a busy machine
slows all alike. All keep the memory that tensors free (`core.hardware.keep_freed_memory`), but for one more torch.nn in float32, "plain",
which leaves memory to the C library, as a script does that says nothing of it: it counts for no other figure than its own.

Then float32 alone, by each instruction set that has it, beside torch.nn held to the same one; how the time of a megapixel grows with the
picture; and, of the pictures in the folder that is named, how far the fast ways are from float32, with the weights that ship. `--only`
takes some of it, and `--network` another network than that of the weights `gaussian`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.multiprocessing import get_context

from core import hardware, kernels, metrics, networks, weights
from core.denoiser import Denoiser
from core.evaluation import Pictures
from core.nn import L1, Adam, Module, Tape, scaling
from tests.benchmarks.twin import denoiser

INFERENCE = {"256": (256, 256), "512": (512, 512), "1024": (1024, 1024), "2048x1536": (1536, 2048)}
TRAINING = {"16x96": (16, 96), "8x128": (8, 128)}
GROWTH = {"1": (1024, 1024), "6": (2000, 3000), "24": (4000, 6000)}
SETS = {"avx512": "AVX512_CORE", "avx2": "AVX2"}
"""Kernels of float32, and what oneDNN, which computes torch's convolutions, calls their instruction sets."""
ACCURACY = (25.0, 50.0)
PARTS = (*INFERENCE, *TRAINING, "sets", "growth", "accuracy")
LEVEL = 25 / 255
PLAIN = "fp32 plain"
WEIGHTS = Path(__file__).parents[2] / "weights"
KNOWN = tuple(WEIGHTS / f"{name}.safetensors" for name in ("gaussian", "gaussian-fine"))
"""The shipped models for a noise whose level is told, the default first; each of an architecture of its own."""
TURN_SECONDS = 0.5
CPU = torch.device("cpu")


def architecture_of(path: Path) -> str:
    """What a weights file's card names."""
    return str(weights.load(path)[1]["architecture"])


def shipped(architecture: str) -> Path:
    """The weights of that architecture that ship."""
    for path in KNOWN:
        if path.exists() and architecture_of(path) == architecture:
            return path
    raise SystemExit(f"no {' or '.join(path.stem for path in KNOWN)} in {WEIGHTS} is of the architecture {architecture}: name another")


def asks_for_network(parser: argparse.ArgumentParser) -> None:
    """`--network`, by default that of the weights `gaussian`."""
    parser.add_argument("--network", choices=networks.ARCHITECTURES, default=architecture_of(KNOWN[0]), help="default: %(default)s")


def network(architecture: str) -> Module:
    return networks.ARCHITECTURES[architecture](torch.Generator().manual_seed(0))


def picture(H: int, W: int) -> Tensor:
    return torch.rand(H, W, 3, generator=torch.Generator().manual_seed(H))


def batch(N: int, P: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(N)
    clean = torch.rand(N, P, P, 3, generator=g)
    return clean + LEVEL * torch.randn(clean.shape, generator=g), clean


class Ours:
    """This engine, with one network and in one precision."""

    def __init__(self, architecture: str, dtype: torch.dtype) -> None:
        self.architecture = architecture
        self.device = CPU
        self.dtype = dtype

    def inference(self, H: int, W: int) -> tuple[Callable[[], object], Callable[[], Tensor]]:
        denoiser = Denoiser(network(self.architecture), {}, "benchmark", self.device, self.dtype)
        x = picture(H, W)
        return lambda: denoiser(x, LEVEL), lambda: denoiser(x, LEVEL)

    def picture(self, folder: str, number: int, sigma: float) -> tuple[Callable[[], object], Callable[[], Tensor]]:
        """One of a folder's pictures with noise on it, denoised with the weights that ship."""
        noisy = Pictures(Path(folder)).pair(number, sigma).noisy
        return lambda: None, lambda: self._shipped(noisy, sigma / 255)

    @functools.cached_property
    def _shipped(self) -> Denoiser:
        return Denoiser.load(shipped(self.architecture), "cpu", str(self.dtype).removeprefix("torch."))

    def training(self, N: int, P: int) -> tuple[Callable[[], object], Callable[[], Tensor]]:
        activations = hardware.activations(self.dtype, self.device)
        net, loss, adam = network(self.architecture).multiply_in(self.dtype, activations), L1(), Adam(1e-4)
        noisy, clean = batch(N, P)

        def derive() -> None:
            tape: Tape = []
            with torch.no_grad():
                denoised = networks.correct(net, noisy, LEVEL, tape)
                loss.forward(denoised, clean).item()
                scaling.derive(net, loss.backward(denoised, clean), tape, self.dtype, activations)

        def step() -> None:
            derive()
            net.train(adam)

        def derivatives() -> Tensor:
            derive()
            return torch.cat([p.derivative.flatten() for p in net.param() if p.derivative is not None])

        return step, derivatives


def laid_out(x: Tensor, kind: str) -> Tensor:
    """As a `kind` of torch.nn takes it."""
    return x.contiguous() if kind in ("fp32", PLAIN) else x.contiguous(memory_format=torch.channels_last)


class Torch:
    """torch.nn: "fp32" as people write it, or channels last: "fp32 channels last", "bf16" (weights and pictures), "autocast".

    And as people write it in a process that gives memory back: PLAIN.
    """

    def __init__(self, architecture: str, kind: str) -> None:
        self.architecture = architecture
        self.kind = kind

    def network(self) -> torch.nn.Module:
        net = denoiser(network(self.architecture))
        return net if self.kind in ("fp32", PLAIN) else net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def seen(self, noisy: Tensor) -> Tensor:
        return laid_out(torch.cat((noisy, torch.full((*noisy.shape[:3], 1), LEVEL)), 3).permute(0, 3, 1, 2), self.kind)

    def inference(self, H: int, W: int) -> tuple[Callable[[], object], Callable[[], Tensor]]:
        net, noisy = self.network().eval(), picture(H, W)[None]
        if self.kind == "bf16":
            net = net.bfloat16()
        x = self.seen(noisy)

        def run() -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.kind == "autocast"):
                y = net(x.bfloat16() if self.kind == "bf16" else x)
            return (noisy + y.float().permute(0, 2, 3, 1))[0].clamp(0, 1)

        return run, run

    def training(self, N: int, P: int) -> tuple[Callable[[], object], Callable[[], Tensor]]:
        net = self.network()
        adam = torch.optim.Adam(net.parameters(), 1e-4, foreach=True)
        noisy, clean = batch(N, P)

        def derive() -> None:
            adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.kind == "autocast"):
                y = net(self.seen(noisy))
            loss = (noisy + y.float().permute(0, 2, 3, 1) - clean).abs().mean()
            loss.backward()
            loss.item()

        def step() -> None:
            derive()
            adam.step()

        def squares() -> Tensor:
            derive()
            return torch.tensor([float(sum(p.grad.double().square().sum() for p in net.parameters() if p.grad is not None))])

        return step, squares


def serve(turns: Connection, architecture: str, name: str, threads: int) -> None:
    """One contender in its process: prepares what it is told, then runs it once for each "run" and answers with the seconds.

    "clearfold auto" multiplies in what is fast there.
    """
    torch.set_num_threads(threads)
    if name != PLAIN:
        hardware.keep_freed_memory()
    ours = name.removeprefix("clearfold ") if name.startswith("clearfold") else None
    contender = Torch(architecture, name) if ours is None else Ours(architecture, hardware.take_dtype(ours, CPU))
    run: Callable[[], object] = lambda: None  # noqa: E731
    while (message := turns.recv()) is not None:
        if message == "run":
            turns.send(_seconds(run))
        else:
            what, size = message
            run, result = getattr(contender, what)(*size)
            turns.send(result())


def _seconds(run: Callable[[], object]) -> float:
    """Of one run. A quick one is repeated, and the first, which finds in the caches what the others left there, not counted."""
    started = time.perf_counter()
    run()
    if (first := time.perf_counter() - started) >= TURN_SECONDS:
        return first
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < TURN_SECONDS:
        run()
        count += 1
    return (time.perf_counter() - started) / count


class Contender:
    """A process that serves, from the first question on."""

    def __init__(self, architecture: str, name: str, threads: int, environment: dict[str, str] | None = None) -> None:
        self.architecture, self.name, self._threads, self._environment = architecture, name, threads, environment or {}
        self._turns: Connection | None = None

    def ask(self, message: object) -> object:
        if self._turns is None:
            self._turns, other = get_context("spawn").Pipe()
            before = dict(os.environ)
            os.environ.update(self._environment)
            told = other, self.architecture, self.name, self._threads
            get_context("spawn").Process(target=serve, args=told, daemon=True).start()
            other.close()  # so that the end of the process ends the wait for its answer
            os.environ.clear()
            os.environ.update(before)
        self._turns.send(message)
        return self._turns.recv()

    def stop(self) -> None:
        if self._turns is not None:
            self._turns.send(None)


def compare(contenders: dict[str, Contender], what: str, size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Median seconds by name, after all results have been found alike."""
    results: dict[str, Tensor] = {}
    for name, contender in contenders.items():
        result = contender.ask((what, size))
        assert isinstance(result, Tensor)
        results[name] = result
    if what == "inference":
        reference = results["fp32"]
        for name, result in results.items():
            worst = (result - reference).abs().max().item() * 255
            limit = 0.01 if "float32" in name or "fp32" in name else 4.0
            assert worst < limit, f"{name} differs from torch.nn in float32 by {worst:.3f} of 255"
    else:
        lengths = {name: (g.double().square().sum() if name.startswith("clearfold") else g).item() ** 0.5 for name, g in results.items()}
        for name, length in lengths.items():
            assert abs(length / lengths["fp32"] - 1) < 0.05, (
                f"{name}: the derivatives' norm is {length}, torch's in float32 {lengths['fp32']}"
            )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, contender in contenders.items():
            told = contender.ask("run")
            assert isinstance(told, float)
            if i:  # the first warms up
                seconds[name].append(told)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compare_set(architecture: str, name: str, threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of float32 by the kernels `name` at 1024x1024, and of torch.nn held to the same instruction set, by contender."""
    held = {"CLEARFOLD_KERNEL": name, "ONEDNN_MAX_CPU_ISA": SETS[name], "ATEN_CPU_CAPABILITY": name}
    contenders = {kind: Contender(architecture, kind, threads, held) for kind in ("clearfold float32", "fp32", "fp32 channels last")}
    seconds = compare(contenders, "inference", INFERENCE["1024"], rounds)
    for contender in contenders.values():
        contender.stop()
    return seconds


def growth(contender: Contender, rounds: int) -> dict[str, float]:
    """Median seconds a megapixel by the picture's megapixels."""
    seconds: dict[str, list[float]] = {label: [] for label in GROWTH}
    for _ in range(rounds):
        for label, (H, W) in GROWTH.items():
            contender.ask(("inference", (H, W)))  # computes it once, too, so that its memory is warm
            told = contender.ask("run")
            assert isinstance(told, float)
            seconds[label].append(told / (H * W / 1e6))
    return {label: statistics.median(times) for label, times in seconds.items()}


def accuracy(reference: Contender, contender: Contender, folder: str, sigma: float) -> dict[str, float]:
    """How far results are from the reference's, in steps of 255, and the difference of PSNR in dB, over a folder of clean pictures."""
    worst, squares, decibels, count = 0.0, 0.0, [], 0
    pictures = Pictures(Path(folder))
    for i in range(len(pictures)):
        exact, result = (c.ask(("picture", (folder, i, sigma))) for c in (reference, contender))
        assert isinstance(exact, Tensor)
        assert isinstance(result, Tensor)
        clean = pictures.pair(i, sigma).clean
        worst = max(worst, (result - exact).abs().max().item() * 255)
        squares, count = squares + ((result - exact) * 255).square().double().sum().item(), count + exact.numel()
        decibels.append(metrics.psnr(metrics.to_8bit(result), clean) - metrics.psnr(metrics.to_8bit(exact), clean))
    return {"largest": worst, "rms": math.sqrt(squares / count), "psnr": statistics.mean(decibels), "pictures": len(pictures)}


def limits(threads: int) -> dict[str, float]:
    """What the machine can do, measured here: products in GFLOP/s, memory in GB/s."""
    torch.set_num_threads(threads)
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.rand(4096, 1024).to(dtype), torch.rand(1024, 1024).to(dtype)
        found[str(dtype).removeprefix("torch.")] = 2 * 4096 * 1024 * 1024 / _best(lambda a=a, b=b: a @ b) / 1e9  # type: ignore[misc]
    x = torch.rand(1 << 26)
    y = torch.empty_like(x)
    found["memory"] = 2 * x.numel() * 4 / _best(lambda: y.copy_(x)) / 1e9
    return found


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    asks_for_network(parser)
    parser.add_argument("folder", nargs="?", help="clean pictures, CBSD68's, to measure accuracy on")
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS, metavar="PART", help="some of: " + ", ".join(PARTS))
    chosen = parser.parse_args()
    if "accuracy" in chosen.only and chosen.folder:
        shipped(chosen.network)  # if there is none, that is said before hours of work

    fast = f"clearfold {str(hardware.fast_dtype(CPU)).removeprefix('torch.')}"
    both = "clearfold float32", "fp32", PLAIN, "fp32 channels last", "autocast", "clearfold products"
    names = {"inference": dict.fromkeys((fast, "bf16", *both)), "training": dict.fromkeys((fast, *both))}
    machine = limits(chosen.threads)
    contenders = {name: Contender(chosen.network, name, chosen.threads) for name in names["inference"] | names["training"]}
    contenders["clearfold products"] = Contender(chosen.network, "clearfold auto", chosen.threads, {"CLEARFOLD_KERNEL": "none"})
    found: dict[str, dict[str, dict[str, float]]] = {part: {} for part in ("inference", "training", "sets", "growth", "accuracy")}
    found["machine"] = {"limits": {name: round(value) for name, value in machine.items()}}
    out = Console(stderr=chosen.json, width=160)
    out.print(
        f"{chosen.network}; {chosen.threads} threads; kernels: {', '.join(kernels.available()) or 'none'} ({kernels.why()}); "
        f"torch's products: {machine['bfloat16']:.0f} GFLOP/s in bfloat16, {machine['float32']:.0f} in float32; "
        f"memory: {machine['memory']:.0f} GB/s"
    )
    work = networks.multiply_adds(network(chosen.network)) * 2 / 1e9  # GFLOP a pixel, as the layers are written
    for what, sizes in (("inference", INFERENCE), ("training", TRAINING)):
        ours, against = next(iter(names[what])), {name: contenders[name] for name in names[what]}
        table = Table("size", *against, title=f"{what}: seconds (times as long as {ours})")
        for label, size in sizes.items():
            if label not in chosen.only:
                continue
            seconds = compare(against, what, size, chosen.rounds)
            own = seconds[ours]
            pixels = size[0] * size[1] * (1 if what == "inference" else size[1])
            best = min(seconds[name] for name in ("fp32", "fp32 channels last", "bf16", "autocast") if name in seconds)
            row: dict[str, float] = {"vs_fp32": seconds["fp32"] / own, "seconds": own}
            row["vs_fp32_plain"] = seconds[PLAIN] / own
            row["vs_best" if what == "inference" else "vs_bf16"] = best / own
            row["fp32_vs_fp32"] = min(seconds["fp32 channels last"], seconds["fp32"]) / seconds["clearfold float32"]
            row["products_vs_best"] = best / seconds["clearfold products"]
            row["gflops"] = work * pixels * (3 if what == "training" else 1) / own
            found[what][label] = {name: round(value, 4) for name, value in row.items()}
            table.add_row(label, *(f"{seconds[n]:.3f} ({seconds[n] / own:.2f})" if n in seconds else "–" for n in against))
        if table.row_count:
            out.print(table)
    if "sets" in chosen.only:
        table = Table("float32 by", "this engine", "torch.nn", "channels last", title="inference, 1024: seconds (times as long)")
        for name in SETS.keys() & kernels.available().keys():
            seconds = compare_set(chosen.network, name, chosen.threads, chosen.rounds)
            own, *others = seconds.values()
            found["sets"][name] = {"vs_fp32": round(min(others) / own, 4), "seconds": round(own, 4)}
            table.add_row(name, f"{own:.3f}", *(f"{told:.3f} ({told / own:.2f})" for told in others))
        out.print(table)
    if "growth" in chosen.only:
        times = growth(contenders[fast], min(3, chosen.rounds))
        found["growth"][fast] = {label: round(told, 4) for label, told in times.items()}
        found["growth"][fast]["ratio"] = round(times["24"] / times["1"], 4)
        table = Table("megapixels", "seconds a megapixel", "of the first's", title=f"growth of time, {fast}")
        for label, told in times.items():
            table.add_row(label, f"{told:.4f}", f"{told / times['1']:.3f}")
        out.print(table)
    if "accuracy" in chosen.only and chosen.folder:
        table = Table("σ", "", "largest", "root mean square", "PSNR", title="accuracy: what differs from float32, of 255 and in dB")
        for sigma in ACCURACY:
            for name in (fast, "clearfold products"):
                told = accuracy(contenders["clearfold float32"], contenders[name], chosen.folder, sigma)
                found["accuracy"][f"{name}, {sigma:.0f}"] = {key: round(value, 4) for key, value in told.items()}
                table.add_row(f"{sigma:.0f}", name, f"{told['largest']:.2f}", f"{told['rms']:.3f}", f"{told['psnr']:+.4f}")
        out.print(table)
    for contender in contenders.values():
        contender.stop()
    if chosen.json:
        print(json.dumps({part: rows for part, rows in found.items() if rows}))


if __name__ == "__main__":
    main()
