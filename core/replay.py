"""What a function makes a GPU do, recorded once and done again without Python: a step of training is a thousand small pieces of work, and
to ask for them one by one takes longer than to do them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Replay(Generic[Result]):
    """`function(*inputs)` as a CUDA graph: a call with other inputs of the same shapes writes them, and all that is computed, where those
    of the first call were. So the results of one call are gone with the next, and whatever else the function set, it sets anew in place.

    The function may not wait for the GPU, so must not look at a number that it computes.
    """

    def __init__(self, function: Callable[..., Result], *inputs: Tensor) -> None:
        self._inputs = [given.clone() for given in inputs]
        aside: torch.cuda.Stream = torch.cuda.Stream(self._inputs[0].device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function(*self._inputs)  # what is only done the first time: kernels are compiled
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Result:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result

    def fits(self, *inputs: Tensor) -> bool:
        return [given.shape for given in inputs] == [own.shape for own in self._inputs]
