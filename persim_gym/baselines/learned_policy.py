"""What policies learned by other libraries have in common: `predict`, random numbers of their own, and a file."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from persim_gym import storage
from persim_gym.arguments import batch_of, checked_seed
from persim_gym.devices import resolve_device, with_torch_defaults
from persim_gym.errors import FileFormatError, InvalidArgumentError
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.tasks import Task, task_fields, task_of_file
from persim_gym.threads import single_thread
from persim_gym.types import FloatArray

if TYPE_CHECKING:
    from typing import Self


class OwnRandomness:
    """A stream of torch's global random numbers, for these libraries know no generator; others' stay as they were."""

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()
        """Of torch's generator on the CPU."""
        self._on_gpu = torch.device(device).type == "cuda"

    def reseeded(self, seed: int) -> OwnRandomness:
        """Return another stream for the same device, or raise `InvalidArgumentError` for what is no seed."""
        return OwnRandomness(checked_seed(seed), "cuda" if self._on_gpu else "cpu")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let torch's global numbers be this stream's."""
        with torch.random.fork_rng(devices=None if self._on_gpu else []):
            torch.set_rng_state(self.state)
            if self._on_gpu:  # its numbers begin anew each time, from one of this stream
                torch.cuda.manual_seed_all(int(torch.randint(2**62, ())))
            yield
            self.state = torch.get_rng_state()


def weights_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of networks, each under its network's name."""
    weights: dict[str, Tensor] = {}
    for name, network in networks.items():
        weights |= with_prefix(name, network.state_dict())
    return weights


def restore_weights(networks: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Give networks what `weights_of` returned, or raise torch's `RuntimeError` if it does not fit them."""
    for name, network in networks.items():
        network.load_state_dict(without_prefix(name, weights))


class LearnedPolicy(ABC):
    """A policy learned from a log, with Stable-Baselines3's `predict`."""

    kind: ClassVar[str]
    """Of its files."""

    def __init__(self, task: Task, randomness: OwnRandomness, provenance: Mapping[str, Any]) -> None:
        self.task = task
        self.provenance = dict(provenance)
        """What it was learned from, and how long that took."""
        self.randomness = randomness
        """What `predict` draws from."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task.name}: {self.learner})"

    @property
    @abstractmethod
    def learner(self) -> str:
        """The algorithm that learned it."""

    @with_torch_defaults
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """Return actions (B,) or (B, A) for observations (B, D), or one for (D,), and None.

        What is drawn, if anything is, comes from the policy's own random numbers.

        Args:
            observation: current observation of each environment.
            state: not used; these policies remember nothing.
            episode_start: not used either.
            deterministic: the action the policy thinks best; if False, one drawn as the policy learned to act, where
                the method has such a thing.

        Raises:
            InvalidStateError: observations of another shape, none at all, or not finite.

        """
        given, single = batch_of(observation)
        observations = self.task.check_observations(given, "B", least=1, finite=True)
        with single_thread(), self.randomness.active():
            actions = self._act(observations, deterministic)
        return (actions[0] if single else actions), None

    def reseeded(self, seed: int) -> Self:
        """Return a policy of the same networks that draws from random numbers of a seed."""
        other = copy.copy(self)
        other.randomness = self.randomness.reseeded(seed)
        return other

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: what `predict` needs but for its random numbers, and nothing that trains it."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in weights_of(self._networks()).items()}
        document = {**task_fields(self.task), "settings": self._settings(), "provenance": self.provenance}
        storage.write(path, self.kind, arrays, document)

    @classmethod
    @with_torch_defaults
    def load(cls, path: str | Path, *, task: str | Task | None = None, device: str = "cpu", seed: int = 0) -> Self:
        """Read a file written by `save`.

        Args:
            path: the file.
            task: the task it must be for; by default the known one of the name in the file, else what the file's
                reference to a module has.
            device: to predict on.
            seed: of the policy's random numbers.

        Raises:
            InvalidArgumentError: there is no such device, or a seed below 0.
            FileFormatError: damaged, of a newer format, of another task, or of another kind of policy.
            UnknownNameError: its task is not registered.
            MissingExtraError: the library that learned it is not installed.

        """
        where = resolve_device(device)
        arrays, document = storage.read(path, cls.kind)
        found, randomness = task_of_file(path, document, task), OwnRandomness(checked_seed(seed), where)
        try:
            with OwnRandomness(0, where).active():  # of weights, which are replaced
                policy = cls._untrained(found, document["settings"], document["provenance"], where, randomness)
        except (KeyError, TypeError, ValueError, AttributeError, InvalidArgumentError) as error:
            raise FileFormatError(f"{path}: the header is damaged ({error})") from error
        try:
            restore_weights(policy._networks(), {name: torch.tensor(np.array(array)) for name, array in arrays.items()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise FileFormatError(f"{path}: its arrays do not fit the policy ({reason})") from error
        return policy

    @abstractmethod
    def _act(self, observations: FloatArray, deterministic: bool) -> np.ndarray:
        """Return actions (B,) or (B, A) of the task for observations (B, D)."""

    @abstractmethod
    def _networks(self) -> Mapping[str, nn.Module]:
        """Return all networks that have something to remember; no name is the beginning of another and a dot."""

    @abstractmethod
    def _settings(self) -> Any:
        """Return, for JSON, what `_untrained` makes the same networks from."""

    @classmethod
    @abstractmethod
    def _untrained(
        cls, task: Task, settings: Any, provenance: Mapping[str, Any], device: torch.device, randomness: OwnRandomness
    ) -> Self:
        """Return a policy of these settings, whose networks have any weights."""
