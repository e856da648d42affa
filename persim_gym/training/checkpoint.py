"""Checkpoints of training: what an interrupted run goes on from, if it is the very same run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from persim_gym import files, storage
from persim_gym.errors import FileFormatError, FileWriteError, InvalidArgumentError, PerSimError
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.tasks.spaces import space_to_json
from persim_gym.user_warnings import warn_user

if TYPE_CHECKING:
    from persim_gym.data.trajectories import Trajectories
    from persim_gym.tasks import Task

SECONDS_BETWEEN_WRITES = 30.0
_KIND = "checkpoint"


class Resumable(Protocol):
    """A training run that can be interrupted: `state` and `progress` are all that the rest of it depends on."""

    def state(self) -> Mapping[str, Tensor]:
        """Return its tensors."""
        ...

    def progress(self) -> Mapping[str, Any]:
        """Return what else there is, as JSON can hold it: how far the run has come."""
        ...

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state`, its tensors now on the CPU, and `progress` returned."""
        ...


@dataclass
class Checkpoint:
    """Where a training run is kept (nowhere, if no path is given), and the clock of the run.

    `resume` comes before the run, `write` when it is `due`, `remove` after it.
    """

    path: Path | None
    identity: Mapping[str, Any]
    """Everything the run depends on, as JSON can hold it: settings, seed, data."""
    earlier_seconds: float = field(default=0.0, init=False)
    """That earlier calls took for what the run was resumed from."""

    def __post_init__(self) -> None:
        self._start = self._written = time.perf_counter()

    @classmethod
    def of(
        cls,
        path: str | Path | None,
        log: Trajectories,
        task: Task,
        *,
        seed: int,
        device: torch.device,
        suffix: str = "",
        **settings: Any,
    ) -> Checkpoint:
        """Return the checkpoint of a run whose result will be kept at a path, if at all.

        Args:
            path: of the result.
            log: that is learned from.
            task: that it is a log of.
            seed: of the run.
            device: whose random generator is in the state.
            suffix: of the file's name, for one run of several with one result.
            **settings: everything else that the run depends on, as JSON can hold it.

        Raises:
            InvalidArgumentError: the path names no file.
            FileWriteError: nothing can be written there.

        """
        if path is None:
            return cls(None, {})
        if not Path(path).name:
            raise InvalidArgumentError(f"checkpoint={str(path)!r} must be a file name")
        files.check_target(path)
        spaces = {name: space_to_json(getattr(task, name)) for name in ("observation_space", "action_space")}
        identity = {
            "task": task.name,
            **spaces,
            **settings,
            "seed": seed,
            "data_digest": log.digest,
            "device": device.type,
        }
        return cls(Path(path).with_name(f"{Path(path).name}{suffix}.part"), identity)

    @property
    def seconds(self) -> float:
        """That the run has taken in all calls, this one from when this object was made."""
        return time.perf_counter() - self._start + self.earlier_seconds

    @property
    def due(self) -> bool:
        """Whether there is a file to write to, and half a minute has passed since the last time."""
        return self.path is not None and time.perf_counter() - self._written > SECONDS_BETWEEN_WRITES

    def resume(self, run: Resumable) -> None:
        """Let a run that has just been made continue where `write` left it, if it did.

        Raises:
            FileFormatError: damaged, or kept by another run.

        """
        if self.path is None or not self.path.exists():
            return
        try:
            arrays, document = storage.read(self.path, _KIND)
        except FileFormatError as error:
            raise self._damaged(error) from error
        different = self._different(document)
        if different:
            raise FileFormatError(
                f"{self.path} is a checkpoint of another training run (different {different}); "
                "delete it, or give another checkpoint name"
            )
        if document.get("digest") not in (None, _digest(arrays)):  # earlier versions wrote none
            raise self._damaged("its arrays are not those that were written")
        try:
            run.resume({name: torch.tensor(np.array(array)) for name, array in arrays.items()}, document)
            self.earlier_seconds = float(document["seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"{error} in its header") from error

    def _damaged(self, why: object) -> FileFormatError:
        return FileFormatError(
            f"training cannot go on from {self.path} ({why}): delete it, and it begins again, or give another "
            "checkpoint name"
        )

    def _different(self, document: Mapping[str, Any]) -> str:
        """Return in what the run of a file's document is another than this one, "" if it is the same."""
        wanted = json.loads(storage.to_json(dict(self.identity)))
        return ", ".join(key for key in wanted if document.get(key) != wanted[key])

    def _is_anothers(self) -> bool:
        """Whether the file there is now is another run's, which began since this one did."""
        try:
            return self.path is not None and bool(self._different(storage.read_document(self.path, _KIND)))
        except PerSimError:  # there is none, or none that any run can go on from
            return False

    def write(self, run: Resumable) -> None:
        """Keep a run as it is now; what keeps it from that is warned of, for the run itself goes on without."""
        if self.path is not None and self._is_anothers():
            warn_user(
                f"training goes on without a checkpoint: {self.path} is that of another training run, which began at "
                "the same time; give each its own checkpoint name"
            )
            self._written = time.perf_counter()
        elif self.path is not None:
            arrays = {name: np.asarray(torch.as_tensor(tensor).detach().cpu()) for name, tensor in run.state().items()}
            document = {**self.identity, **run.progress(), "seconds": self.seconds, "digest": _digest(arrays)}
            try:
                storage.write(self.path, _KIND, arrays, document)
            except FileWriteError as error:
                warn_user(f"training goes on without a checkpoint: {error}")
            self._written = time.perf_counter()

    def remove(self) -> None:
        """Forget the run, which is over."""
        if self.path is not None and not self._is_anothers():
            self.path.unlink(missing_ok=True)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the digest of all arrays, with their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(np.asarray(array, order="C").tobytes())
    return digest.hexdigest()


def network_state(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the tensors of a run that has a network, an optimizer of it and a generator."""
    kept = with_prefix("parameters", parameters) | with_prefix("adam", optimizer_state(optimizer))
    return {**kept, "generator": generator.get_state()}


def restore_network(
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    tensors: Mapping[str, Tensor],
) -> None:
    """Let them be what they were when `network_state` returned tensors."""
    for name, tensor in without_prefix("parameters", tensors).items():
        parameters[name].data.copy_(tensor)
    restore_optimizer(optimizer, without_prefix("adam", tensors))
    generator.set_state(tensors["generator"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what an optimizer remembers of its parameters."""
    state = optimizer.state_dict()["state"]
    return {key: value for index, memory in state.items() for key, value in with_prefix(str(index), memory).items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Let an optimizer remember what `optimizer_state` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
