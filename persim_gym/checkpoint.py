"""Checkpoints of training: what an interrupted run goes on from, if it is the very same run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persim_gym import storage
from persim_gym.errors import FileFormatError, InvalidArgumentError

_KIND = "checkpoint"
_SECONDS = 30.0


@dataclass
class Checkpoint:
    """Where the state of one training run is kept; nowhere, if no path is given."""

    path: Path | None
    identity: Mapping[str, Any]
    """Everything the run depends on, as JSON can hold it: settings, seed, data."""
    _written: float = field(default_factory=time.monotonic, init=False, repr=False)

    @classmethod
    def beside(cls, path: str | Path | None, identity: Mapping[str, Any], stage: str = "") -> Checkpoint:
        """Return the checkpoint of a run, or of a stage of it, whose result will be kept at a path, if at all.

        Raises:
            InvalidArgumentError: the path names no file.
            FileWriteError: nothing can be written there.

        """
        if path is None:
            return cls(None, identity)
        if not Path(path).name:
            raise InvalidArgumentError(f"checkpoint={str(path)!r} must be a file name")
        storage.check_target(path)
        return cls(Path(path).with_name(f"{Path(path).name}{stage}.part"), identity)

    @property
    def due(self) -> bool:
        """Whether there is a file to write to, and half a minute has passed since the last time."""
        return self.path is not None and time.monotonic() - self._written > _SECONDS

    def write(self, tensors: Mapping[str, torch.Tensor | np.ndarray], **progress: Any) -> None:
        """Keep a state, and how far the run has come."""
        if self.path is not None:
            arrays = {name: np.asarray(torch.as_tensor(tensor).detach().cpu()) for name, tensor in tensors.items()}
            storage.write(self.path, _KIND, arrays, {**self.identity, **progress})
            self._written = time.monotonic()

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return what `write` kept last, tensors on the CPU and progress; None if there is nothing.

        Raises:
            FileFormatError: damaged, or kept by another run.

        """
        if self.path is None or not self.path.exists():
            return None
        arrays, document = storage.read(self.path, _KIND)
        wanted = json.loads(storage.to_json(dict(self.identity)))
        different = ", ".join(key for key in wanted if document.get(key) != wanted[key])
        if different:
            raise FileFormatError(
                f"{self.path} is a checkpoint of another training run (different {different}); "
                "delete it, or give another checkpoint name"
            )
        return {name: torch.tensor(np.array(array)) for name, array in arrays.items()}, document

    def remove(self) -> None:
        """Forget the run, which is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def under(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries under names that begin with one name and a dot."""
    return {f"{name}.{key}": value for key, value in entries.items()}


def within(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `under` put there."""
    return {key.removeprefix(f"{name}."): value for key, value in entries.items() if key.startswith(f"{name}.")}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what an optimizer remembers of its parameters."""
    state = optimizer.state_dict()["state"]
    return {key: value for index, memory in state.items() for key, value in under(str(index), memory).items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Let an optimizer remember what `optimizer_state` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
