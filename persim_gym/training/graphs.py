"""A step of training on a GPU as a CUDA graph.

A step is some hundred small kernels. Launched one by one from Python they take longer to launch than to run; recorded
once, they are launched together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3
"""Steps before the recording, in which libraries allocate what they keep."""


class RecordedStep:
    """A function of tensors that computes in place, recorded on a GPU at its fourth call.

    Elsewhere, and for tensors of other shapes than the first call's, such as a short last batch, it is called as it is.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._shapes: list[torch.Size] = []

    def __call__(self, *inputs: Tensor) -> None:
        """Take the step with these inputs."""
        shapes = [tensor.shape for tensor in inputs]
        self._shapes = self._shapes or shapes
        if not inputs[0].is_cuda or shapes != self._shapes:
            self._step(*inputs)
            return
        if self._calls < _WARM_UP:
            self._calls += 1
            self._warm_up(inputs)
            return
        if self._graph is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step(*self._inputs)
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        self._graph.replay()

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> None:
        """Take the step outside the default stream, which autograd's nodes would remember and no recording may use."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
