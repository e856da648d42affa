"""Dynamics that learn whom they simulate from a context vector beside state and action, and their simulator.

Shared by CaDM, whose context is computed from recent transitions, and by the joint network, whose context is a learned
embedding of the agent. Everything is feature-major, (M, features, B), as in `persim_gym.gradients`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from persim_gym import storage
from persim_gym.data import find_agent
from persim_gym.devices import resolve_device
from persim_gym.errors import FileFormatError, InvalidArgumentError, InvalidStateError, UnknownNameError
from persim_gym.gradients import num_layers
from persim_gym.model import AGGREGATES
from persim_gym.simulator import Simulator
from persim_gym.tasks import Task, find_task, get_task, is_built_in
from persim_gym.types import FloatArray, IntArray

if TYPE_CHECKING:
    from typing import Self

Activation = Callable[[Tensor], Tensor]
_PARAMETERS = "parameters."
_TENSOR_CORE_INPUTS = 8
"""Their number is to be a multiple of this."""


def mlp(parameters: Mapping[str, Tensor], name: str, inputs: Tensor, activation: Activation) -> Tensor:
    """Return the linear outputs (M, O, B) of a network of all members for inputs (M, I, B)."""
    last = num_layers(parameters, name) - 1
    for index in range(last + 1):
        inputs = torch.baddbmm(parameters[f"{name}.{index}.bias"], parameters[f"{name}.{index}.weight"], inputs)
        if index < last:
            inputs = activation(inputs)
    return inputs


def layer_shapes(name: str, members: int, sizes: Sequence[int]) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of a network's weights (M, outputs, inputs) and biases (M, outputs, 1)."""
    shapes = {}
    for index, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"{name}.{index}.weight"] = (members, outputs, inputs)
        shapes[f"{name}.{index}.bias"] = (members, outputs, 1)
    return shapes


@dataclass(frozen=True)
class Features:
    """What a network sees of a state, and what it predicts of the next one."""

    absolute: tuple[int, ...] = ()
    """Coordinates whose next value is predicted itself, not its change; they are no input."""
    angles: tuple[int, ...] = ()
    """Coordinates that enter by sine and cosine."""

    def size(self, observation_size: int) -> int:
        """Return F, the number of features of D coordinates."""
        return observation_size - len(self.absolute) + len(self.angles)

    def of(self, states: Tensor) -> Tensor:
        """Return the features (…, F, B) of raw states (…, D, B)."""
        if not (self.absolute or self.angles):
            return states
        plain = [i for i in range(states.shape[-2]) if i not in self.absolute and i not in self.angles]
        angles = states[..., list(self.angles), :]
        return torch.cat([states[..., plain, :], angles.sin(), angles.cos()], dim=-2)

    def base(self, states: Tensor) -> Tensor:
        """Return what a predicted target (…, D, B) is to be added to: the states, zero where absolute."""
        if not self.absolute:
            return states
        base = states.clone()
        base[..., list(self.absolute), :] = 0.0
        return base


@dataclass(frozen=True)
class Scaling:
    """Means and scales, columns (size, 1) on a device."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Scaling:
        """Return mean and deviation over the columns of values (size, T); a constant row keeps scale 1."""
        deviation = values.double().std(dim=1, keepdim=True, unbiased=False)
        scale = torch.where(deviation > 1e-10, deviation, torch.ones_like(deviation))
        return cls(values.double().mean(dim=1, keepdim=True).float(), scale.float())

    def __call__(self, values: Tensor) -> Tensor:
        """Standardize values (…, size, B)."""
        return (values - self.mean) / self.scale


@dataclass(frozen=True)
class ContextDynamics:
    """A trained network of M members on a device: [features, action, context] -> standardized target."""

    parameters: Mapping[str, Tensor]
    """The layers "forward.0" …, each (M, outputs, inputs)."""
    features: Features
    inputs: Scaling
    """Of the features (F, 1)."""
    targets: Scaling
    """(D, 1)."""
    actions: Scaling | None
    """Of continuous actions (A, 1); None for discrete ones, which enter one-hot."""
    action_size: int
    activation: Activation
    particles_per_member: int = 1
    log_variance_bounds: tuple[Tensor, Tensor] | None = None
    """Lower and upper, (1, D, 1), of a network that also predicts a variance; None for a deterministic one."""

    @property
    def num_particles(self) -> int:
        """P: trajectories a simulator follows, each tied to one member."""
        return self.parameters["forward.0.weight"].shape[0] * self.particles_per_member

    @cached_property
    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """First layer of every particle, for raw inputs: weights of features and action, of the context, and biases."""
        weight, bias = self.layer(0)
        size = len(self.inputs.mean)
        by_features, by_action, by_context = weight.split(
            [size, self.action_size, weight.shape[2] - size - self.action_size], dim=2
        )
        by_features = by_features / self.inputs.scale.T
        bias = bias - by_features @ self.inputs.mean
        if self.actions is not None:
            by_action = by_action / self.actions.scale.T
            bias = bias - by_action @ self.actions.mean
        return torch.cat([by_features, by_action], dim=2), by_context, bias

    @cached_property
    def rest(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of every particle's other layers."""
        return [self.layer(index) for index in range(1, num_layers(self.parameters, "forward"))]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return weight (P, outputs, inputs) and bias (P, outputs, 1) of a layer of every particle."""
        names = (f"forward.{index}.weight", f"forward.{index}.bias")
        weight, bias = (self.parameters[name].repeat_interleave(self.particles_per_member, 0) for name in names)
        return weight, bias


def soft_clamp(log_variance: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return log variances kept smoothly within learned bounds (Chua et al., 2018, appendix A)."""
    softplus = torch.nn.functional.softplus
    return low + softplus(high - softplus(high - log_variance) - low)


class ContextNetwork:
    """P particles told about one agent, or about one agent for each column; what planners roll out.

    The standardization is folded into the first layer, and so is the context of a single agent; those of several enter
    beside state and action, which takes less memory than biases of their own. A network that predicts a variance draws
    each particle's next state anew with every call (TS∞ of Chua et al., 2018).
    """

    def __init__(self, dynamics: ContextDynamics, contexts: Tensor, generator: torch.Generator | None) -> None:
        """Tell the network contexts (P, context, 1) or (P, context, B)."""
        weight, by_context, bias = dynamics.first
        self._contexts = None if contexts.shape[2] == 1 else contexts
        if self._contexts is None:
            first = weight, bias + by_context @ contexts
        else:
            first = torch.cat([weight, by_context], dim=2), bias
        self._layers = [first, *dynamics.rest]
        self._particles_per_member = dynamics.particles_per_member
        self._dynamics = dynamics
        self._generator = generator
        self.num_members = dynamics.num_particles
        self.num_actions = 0 if dynamics.actions is not None else dynamics.action_size

    def action_factors(self, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return continuous actions (A, B) as `next_states` takes them, (m, A, B)."""
        return actions.expand(len(range(*members.indices(self.num_members))), -1, -1)

    def next_states(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return next states (m, D, B) of some particles; actions (B,) indices, or (m, A, B) from `action_factors`."""
        dynamics = self._dynamics
        if self.num_actions:
            one_hot = torch.nn.functional.one_hot(actions, self.num_actions).T.to(states.dtype)
            actions = one_hot.expand(len(states), -1, -1)
        inputs = [dynamics.features.of(states), actions]
        if self._contexts is not None:
            inputs.append(self._contexts[members])
        hidden = torch.cat(inputs, dim=1)
        if hidden.is_cuda:
            outputs = self._outputs_by_member(hidden, range(self.num_members)[members])
        else:
            for weight, bias in self._layers[:-1]:
                hidden = dynamics.activation(torch.baddbmm(bias[members], weight[members], hidden))
            weight, bias = self._layers[-1]
            outputs = torch.baddbmm(bias[members], weight[members], hidden)
        if dynamics.log_variance_bounds is not None:
            outputs, log_variance = outputs.chunk(2, dim=1)
            deviation = (0.5 * soft_clamp(log_variance, *dynamics.log_variance_bounds)).exp()
            noise = torch.randn(outputs.shape, generator=self._generator, device=outputs.device)
            outputs = outputs + deviation * noise
        targets = outputs * dynamics.targets.scale + dynamics.targets.mean
        return dynamics.features.base(states) + targets

    def _outputs_by_member(self, inputs: Tensor, particles: range) -> Tensor:
        """Return the outputs (m, O, B) for inputs (m, I, B) of some particles, as a GPU is quick at it.

        All particles of a member go through its layers as rows of one product, to which the GPU's library adds the
        bias in passing; that of a batch of products is written out first. Rows are as long as tensor cores want them.
        """
        linear, activation, each = torch.nn.functional.linear, self._dynamics.activation, self._particles_per_member
        rows = torch.nn.functional.pad(inputs.transpose(1, 2), (0, -inputs.shape[1] % _TENSOR_CORE_INPUTS))
        outputs = []
        for first in range(particles.start - particles.start % each, particles.stop, each):
            own = rows[max(first - particles.start, 0) : first + each - particles.start]
            *hidden_layers, last = self._by_member[first // each]
            hidden = own.flatten(0, 1)
            for weight, bias in hidden_layers:
                hidden = activation(linear(hidden, weight, bias))
            outputs.append(linear(hidden, *last).unflatten(0, own.shape[:2]))
        return torch.cat(outputs).transpose(1, 2)

    @cached_property
    def _by_member(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Weights (O, I) and biases (O,) of each member's layers, the first one's inputs padded."""
        first = self._layers[0][0]
        padded = torch.nn.functional.pad(first, (0, -first.shape[2] % _TENSOR_CORE_INPUTS))
        layers = [(padded, self._layers[0][1]), *self._layers[1:]]
        members = range(0, self.num_members, self._particles_per_member)
        return [[(weight[member], bias[member, :, 0]) for weight, bias in layers] for member in members]


@dataclass(frozen=True, eq=False, repr=False)
class ContextModel:
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

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        arrays = {f"{_PARAMETERS}{name}": array for name, array in self.parameters.items()}
        arrays |= {"initial_observations": self.initial_observations, **self.own_arrays()}
        if self.covariates is not None:
            arrays["covariates"] = self.covariates
        document = {
            "task": self.task.name,
            **({} if is_built_in(self.task) else {"task_definition": self.task.to_json()}),
            "agent_labels": list(self.agent_labels),
            "config": asdict(self.config),
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
        parameters = {
            name.removeprefix(_PARAMETERS): np.array(array)
            for name, array in arrays.items()
            if name.startswith(_PARAMETERS)
        }
        try:
            config = cls.config_type().with_changes(**document["config"])
            name, labels, provenance = document["task"], tuple(document["agent_labels"]), document["provenance"]
            initial, own = np.array(arrays["initial_observations"]), cls.own_fields(arrays)
        except (KeyError, TypeError, UnknownNameError, InvalidArgumentError) as error:
            raise FileFormatError(f"{path}: the header is damaged ({error})") from error
        found = find_task(name, document.get("task_definition")) if task is None else get_task(task)
        if found.name != name:
            raise FileFormatError(f"{path} is of task {name}, not of {found.name}")
        for array, shape in cls.shapes(config, found, len(labels)).items():
            if array not in parameters or parameters[array].shape != shape:
                raise FileFormatError(f"{path}: array {array!r} is missing or has the wrong shape, expected {shape}")
        return cls(
            task=found,
            parameters=parameters,
            agent_labels=labels,
            initial_observations=initial,
            covariates=arrays.get("covariates"),
            provenance=provenance,
            config=config,
            **own,
        )

    @classmethod
    @abstractmethod
    def shapes(cls, config: Any, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter."""

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

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agent_labels)

    @property
    @abstractmethod
    def num_members(self) -> int:
        """Trajectories that a simulator follows side by side: members, or particles tied to them."""

    @abstractmethod
    def dynamics(self, device: torch.device) -> ContextDynamics:
        """Return the network on a device."""

    @abstractmethod
    def agent_contexts(self, agents: IntArray, device: torch.device) -> Tensor:
        """Return the contexts (M, context, n) of some agents, as their log shows them."""

    def agent_index(self, agent: int | str) -> int:
        """Return the index of an agent given by index (int) or label (str)."""
        return find_agent(agent, self.agent_labels)

    def agent_covariates(self, agent: int | str) -> FloatArray:
        """Return (K,) hidden covariates of an agent of a collected log, where they are known."""
        if self.covariates is None:
            raise InvalidArgumentError("the log did not record the agents' covariates; give them (covariates=...)")
        return self.covariates[self.agent_index(agent)]

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
        if agents is None and agent is not None:
            chosen: Sequence[int | str] = [agent]
        elif agents is not None and agent is None:
            chosen = agents
        else:
            raise InvalidArgumentError("give either agent or agents")
        indices = np.array([self.agent_index(one) for one in chosen], np.int64)
        found = resolve_device(str(device))
        contexts = self.agent_contexts(indices, found)
        return self.simulator_type(self, indices, contexts, aggregate=aggregate, device=found, seed=seed)


class ContextSimulator(Simulator):
    """`persim_gym.Simulator` of dynamics with a context; the same `step`, `rollout` and `network`."""

    def __init__(
        self,
        model: ContextModel,
        agents: IntArray,
        contexts: Tensor,
        *,
        aggregate: str = "mean",
        device: torch.device,
        seed: int = 0,
    ) -> None:
        """Bind a model to contexts (M, context, n) of n agents, or of n environments numbered by ``agents`` (n,)."""
        if aggregate not in AGGREGATES:
            raise InvalidArgumentError(f"aggregate={aggregate!r} must be one of {', '.join(AGGREGATES)}")
        if len(agents) == 0:
            raise InvalidArgumentError("a simulator needs at least one agent")
        self.model, self.task, self.agents, self.aggregate, self.device = model, model.task, agents, aggregate, device
        self._own_factors = False
        self._dynamics = model.dynamics(device)
        self._contexts = contexts.repeat_interleave(self._dynamics.particles_per_member, 0)
        self._generator = torch.Generator(device)
        self._column = {int(agent): column for column, agent in enumerate(agents)}
        self._by_agent: dict[int, ContextNetwork] = {}
        self._all_columns = ContextNetwork(self._dynamics, self._contexts, self._generator)
        self.reseed(seed)

    @property
    def stochastic(self) -> bool:
        """Whether next states are drawn."""
        return self._dynamics.log_variance_bounds is not None

    @property
    def num_members(self) -> int:
        """P: members, or particles tied to them."""
        return self._dynamics.num_particles

    def reseed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def network(self, agent: int) -> ContextNetwork:
        """Return the network of an agent's index, or of an environment's number."""
        if agent not in self._by_agent:
            column = self._column[agent]
            contexts = self._contexts[:, :, column : column + 1]
            self._by_agent[agent] = ContextNetwork(self._dynamics, contexts, self._generator)
        return self._by_agent[agent]

    @property
    def mixes_agents(self) -> bool:
        return True

    def network_of(self, agents: IntArray) -> ContextNetwork:
        if (agents == agents[0]).all():
            return self.network(int(agents[0]))
        different, which = np.unique(agents, return_inverse=True)
        columns = np.array([self._column[int(agent)] for agent in different])[which]
        contexts = self._contexts[:, :, torch.as_tensor(columns, device=self.device)]
        return ContextNetwork(self._dynamics, contexts, self._generator)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Widths of the network's hidden layers."""
        count = num_layers(self._dynamics.parameters, "forward")
        return tuple(self._dynamics.parameters[f"forward.{index}.bias"].shape[1] for index in range(count - 1))

    def blocks(self, agent: int) -> None:
        """Return nothing: the rollouts on folded PerSim networks are not for these."""

    def _next_states(self, states: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        network, columns = self._all_columns, states.shape[2]
        if 1 < len(self.agents) != columns:  # a part of the batch, whose first row is ``first``
            contexts = self._contexts[:, :, first : first + columns]
            network = ContextNetwork(self._dynamics, contexts, self._generator)
        inputs = actions if network.num_actions else network.action_factors(actions.T)
        return network.next_states(states, inputs)


def check_history(observations: Any, actions: Any, task: Task) -> tuple[FloatArray, np.ndarray]:
    """Return the beginnings of B episodes, observations (B, T + 1, D) and actions (B, T) or (B, T, A), checked."""
    states, moves = np.asarray(observations, np.float32), np.asarray(actions)
    tail = () if task.discrete else (task.action_size,)
    if states.ndim != 3 or states.shape[2] != task.observation_size:
        raise InvalidStateError(f"observations must have shape (B, T + 1, {task.observation_size}), got {states.shape}")
    expected = (len(states), states.shape[1] - 1, *tail)
    if moves.shape != expected:
        raise InvalidStateError(f"{states.shape[1]} observations need actions of shape {expected}, got {moves.shape}")
    return states, moves
