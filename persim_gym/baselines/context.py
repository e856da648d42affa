"""`ContextModel`: dynamics that learn whom they simulate from a context vector beside state and action.

Shared by CaDM, whose context is computed from recent transitions, and by the joint network, whose context is a learned
embedding of the agent; `persim_gym.baselines.context_network` has the network, and
`persim_gym.baselines.context_simulator` the simulator.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from persim_gym import storage
from persim_gym.baselines.context_network import ContextDynamics
from persim_gym.baselines.context_simulator import ContextSimulator
from persim_gym.data.labels import find_agents
from persim_gym.devices import resolve_device
from persim_gym.errors import FileFormatError, InvalidArgumentError, UnknownNameError
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.tasks import Task, task_fields, task_of_file
from persim_gym.types import FloatArray, IntArray

if TYPE_CHECKING:
    from typing import Self

_PARAMETERS = "parameters"


@dataclass(frozen=True, eq=False, repr=False)
class ContextModel(LearnedDynamics):
    """Learned dynamics of N agents with a context each: what environments, planners and evaluation ask of a model."""

    kind: ClassVar[str]
    """Of its files."""
    config_type: ClassVar[type]
    """Of its settings."""

    task: Task
    parameters: Mapping[str, np.ndarray]
    """float32."""
    agent_labels: tuple[str, ...]
    initial_observations: FloatArray
    """(E, D): first observations of the log's episodes."""
    covariates: FloatArray | None = None
    """(N, K), if known: for evaluation in the true system, never used by the model."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config: Any = None
    """The settings, of type ``config_type``."""

    def __repr__(self) -> str:
        members = self.config.num_members
        return f"{type(self).__name__}({self.task.name}: {len(self.agent_labels)} agents, {members} members)"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        arrays = with_prefix(_PARAMETERS, self.parameters)
        arrays |= {"initial_observations": self.initial_observations, **self.own_arrays()}
        if self.covariates is not None:
            arrays["covariates"] = self.covariates
        document = {
            **task_fields(self.task),
            "agent_labels": list(self.agent_labels),
            "config": self.config.to_json(),
            "provenance": dict(self.provenance),
        }
        storage.write(path, self.kind, arrays, document)

    @classmethod
    def load(cls, path: str | Path, *, task: str | Task | None = None) -> Self:
        """Read a file written by `save`.

        Args:
            path: the file.
            task: the task it must be for; by default the known one of the name in the file, else what the file's
                reference to a module has.

        Raises:
            FileFormatError: damaged, of a newer format, of another task, or of another kind of model.
            UnknownNameError: its task is not registered.

        """
        arrays, document = storage.read(path, cls.kind)
        storage.check_numbers(path, arrays, unknown=("covariates",))
        parameters = {name: np.array(array) for name, array in without_prefix(_PARAMETERS, arrays).items()}
        try:
            config = cls.config_type.from_json(document["config"])
            labels, provenance = tuple(document["agent_labels"]), document["provenance"]
        except (KeyError, TypeError, UnknownNameError, InvalidArgumentError) as error:
            raise FileFormatError(f"{path}: the header is damaged ({error})") from error
        found = task_of_file(path, document, task)
        own = cls.own_shapes(config, found, len(labels))
        if "covariates" in arrays:
            own["covariates"] = (len(labels), len(found.covariates))
        for present, shapes in ((parameters, cls.shapes(config, found, len(labels))), (arrays, own)):
            for name, shape in shapes.items():
                if name not in present or present[name].shape != shape:
                    raise FileFormatError(f"{path}: array {name!r} is missing or has the wrong shape, expected {shape}")
        initial = arrays.get("initial_observations", np.empty(0))
        if initial.ndim != 2 or initial.shape[1] != found.observation_size:
            raise FileFormatError(f"{path}: array 'initial_observations' is missing or has the wrong shape")
        return cls(
            task=found,
            parameters=parameters,
            agent_labels=labels,
            initial_observations=np.array(initial),
            covariates=arrays.get("covariates"),
            provenance=provenance,
            config=config,
            **cls.own_fields(arrays),
        )

    @classmethod
    @abstractmethod
    def shapes(cls, config: Any, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter."""

    @classmethod
    @abstractmethod
    def own_shapes(cls, config: Any, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array of `own_arrays`."""

    @abstractmethod
    def own_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a file that only this kind of model has."""

    @classmethod
    @abstractmethod
    def own_fields(cls, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the fields that `own_arrays` wrote, from a file's arrays."""

    @property
    def simulator_type(self) -> type[ContextSimulator]:
        """The class of this model's simulators."""
        return ContextSimulator

    @abstractmethod
    def dynamics(self, device: torch.device) -> ContextDynamics:
        """Return the network on a device."""

    @abstractmethod
    def agent_contexts(self, agents: IntArray, device: torch.device) -> Tensor:
        """Return the contexts (M, context, n) of some agents, as their log shows them."""

    def simulator(
        self,
        agent: int | str | None = None,
        *,
        agents: Sequence[int | str] | None = None,
        aggregate: str = "mean",
        device: str = "cpu",
        seed: int = 0,
    ) -> ContextSimulator:
        """Bind the model to the logged agents' contexts, as `persim_gym.Ensemble.simulator` does to their factors.

        Args:
            agent: index or label.
            agents: B indices or labels, instead of ``agent``.
            aggregate: "mean" or "median" over members or particles.
            device: any torch device.
            seed: of the sampled next states, if the model samples them.

        """
        indices = find_agents(agent, agents, self.agent_labels)
        found = resolve_device(str(device))
        contexts = self.agent_contexts(indices, found)
        return self.simulator_type(self, indices, contexts, aggregate=aggregate, device=found, seed=seed)
