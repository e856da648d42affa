"""`Ensemble`: the learned parameters of all members, stacked, with all that is known about where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym import storage
from persim_gym.config import PerSimConfig
from persim_gym.dynamics import AgentDynamics
from persim_gym.errors import FileFormatError, InvalidArgumentError, MissingStatisticsError
from persim_gym.labels import find_agents
from persim_gym.posterior import FactorPosterior
from persim_gym.provenance import synthetic_note
from persim_gym.tasks import Task, task_fields, task_of_file
from persim_gym.types import BoolArray, FloatArray, NumberedLabels

if TYPE_CHECKING:
    from persim_gym.factor_simulator import FactorSimulator

MAX_INITIAL_OBSERVATIONS = 10_000
"""How many first observations of a log a model keeps, for its episodes to begin in."""
SKIP = "state.skip"
"""Name of the linear path's weights (M, outputs, D) beside the state encoder's layers."""
_KIND = "ensemble"
_POSTERIOR = "posterior."


@dataclass(frozen=True)
class Normalizer:
    """Standardization of states and of their changes; zeros and ones when there is none."""

    state_mean: FloatArray
    """(D,)."""
    state_scale: FloatArray
    """(D,)."""
    change_mean: FloatArray
    """(D,)."""
    change_scale: FloatArray
    """(D,)."""

    @classmethod
    def identity(cls, size: int) -> Normalizer:
        """Return the normalizer that changes nothing."""
        return cls(np.zeros(size), np.ones(size), np.zeros(size), np.ones(size))

    @classmethod
    def of(cls, observations: FloatArray, next_observations: FloatArray) -> Normalizer:
        """Return mean and unbiased deviation over all transitions (T, D); a constant coordinate keeps scale 1."""
        states = np.asarray(observations, np.float64)
        changes = np.asarray(next_observations, np.float64) - states
        return cls(states.mean(0), spread(states), changes.mean(0), spread(changes, states))


_NORMALIZER = tuple(field.name for field in fields(Normalizer))


def spread(values: FloatArray, states: FloatArray | None = None) -> FloatArray:
    """Return the unbiased deviation (D,) of values (T, D), 1 for a coordinate that does not vary (see `varies`)."""
    return np.where(varies(values, values if states is None else states), _deviation(values), 1.0)


def varies(values: FloatArray, states: FloatArray) -> BoolArray:
    """Return which coordinates (D,) of values (T, D) differ by more than the rounding of float32 states (T, D)."""
    rounding = np.finfo(np.float32).eps * np.abs(states).max(axis=0)
    return _deviation(values) > np.maximum(rounding, np.finfo(np.float32).tiny)


def _deviation(values: FloatArray) -> FloatArray:
    """Return the unbiased deviation (D,) of values (T, D)."""
    return values.std(axis=0, ddof=min(1, len(values) - 1))


@dataclass(frozen=True)
class Outcome:
    """A reward or a termination learned from the log (`persim_gym.outcomes`): M members for N agents."""

    parameters: Mapping[str, np.ndarray]
    """float32, as `outcome_shapes` says."""
    input_mean: FloatArray
    """(I,)."""
    input_scale: FloatArray
    """(I,)."""
    output_mean: FloatArray
    """(1,)."""
    output_scale: FloatArray
    """(1,)."""

    def of_agents(self, agents: Sequence[int | None]) -> Outcome:
        """Return the outcome of some agents, in the order given; None for one that the log never saw.

        An agent that was never seen has the mean of the others' factors.
        """
        table = self.parameters["agent.weight"]
        rows = [table.mean(axis=1) if agent is None else table[:, agent] for agent in agents]
        return replace(self, parameters={**self.parameters, "agent.weight": np.stack(rows, axis=1)})


_SCALING = ("input_mean", "input_scale", "output_mean", "output_scale")


def parameter_shapes(
    config: PerSimConfig,
    *,
    num_agents: int,
    observation_size: int,
    action_size: int,
    discrete: bool,
    num_outputs: int | None = None,
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of every parameter; layers are (M, outputs, inputs).

    The encoders are u: agent table (M, N, r) plus a shared bias; v: ReLU layers with D·r linear outputs, or as many
    times r as ``num_outputs`` says, to which "state.skip", where there is one, adds a linear function of the state;
    w: action table (M, A, r) plus a bias, or ReLU layers with r linear outputs.
    """
    members, rank = config.num_members, config.rank
    shapes = {
        "agent.weight": ((members, num_agents, rank), num_agents),
        "agent.bias": ((members, rank), num_agents),
    }
    outputs = (observation_size if num_outputs is None else num_outputs) * rank
    shapes.update(_layer_shapes("state", members, (observation_size, *config.state_hidden, outputs)))
    if discrete:
        shapes["action.weight"] = ((members, action_size, rank), action_size)
        shapes["action.bias"] = ((members, rank), action_size)
    else:
        shapes.update(_layer_shapes("action", members, (action_size, *config.action_hidden, rank)))
    if config.linear_skip:
        shapes[SKIP] = ((members, outputs, observation_size), observation_size)
    return shapes


def outcome_shapes(
    task: Task, config: PerSimConfig, num_agents: int, name: str
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of the parameters of a learned "reward" or "terminated"."""
    reward = name == "reward"
    return parameter_shapes(
        config,
        num_agents=num_agents,
        observation_size=task.observation_size * (2 if reward else 1),
        action_size=task.action_size if reward else 1,
        discrete=task.discrete or not reward,
        num_outputs=1,
    )


def _layer_shapes(name: str, members: int, sizes: Sequence[int]) -> dict[str, tuple[tuple[int, ...], int]]:
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for index, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"{name}.{index}.weight"] = ((members, outputs, inputs), inputs)
        shapes[f"{name}.{index}.bias"] = ((members, outputs, 1), inputs)
    return shapes


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(AgentDynamics):
    """M trained members for N agents of one task. Made by `persim_gym.fit` or `Ensemble.load`."""

    task: Task
    config: PerSimConfig
    parameters: Mapping[str, np.ndarray]
    """float32, as `parameter_shapes` says; memory-mapped when loaded."""
    normalizer: Normalizer
    agent_labels: Sequence[str]
    initial_observations: FloatArray
    """(E, D) float32: first observations of the log's episodes."""
    covariates: FloatArray | None = None
    """(N, K), if known: for evaluation in the true system, never used by the model."""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """"reward" and "terminated", as far as the task leaves them to be learned."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Data digest, seed, versions, wall time, validation error, number of transitions."""
    posterior: FactorPosterior | None = None
    """Of the agents' factors; `fit` and `persim_gym.refit_factors` make it."""
    calibration: FloatArray | None = None
    """(levels, ranges of the horizon, D): half widths of predictive intervals, in standard deviations;
    `persim_gym.calibrate` makes it."""

    @property
    def num_members(self) -> int:
        """M."""
        return self.config.num_members

    def agent_factors(self, agents: Any = slice(None)) -> FloatArray:
        """Return u (M, N, r) of the chosen agents, shared bias included."""
        return self.parameters["agent.weight"][:, agents] + self.parameters["agent.bias"][:, None]

    def action_factors(self) -> FloatArray:
        """Return w (M, A, r) of every discrete action, bias included."""
        return self.parameters["action.weight"] + self.parameters["action.bias"][:, None]

    def layers(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return weights (M, outputs, inputs) and biases (M, outputs, 1) of the "state" or "action" encoder."""
        count = sum(key.startswith(f"{name}.") and key.endswith("weight") for key in self.parameters)
        return [(self.parameters[f"{name}.{i}.weight"], self.parameters[f"{name}.{i}.bias"]) for i in range(count)]

    def known_posterior(self) -> FactorPosterior:
        """Return the posterior of the agents' factors.

        Raises:
            MissingStatisticsError: the ensemble has none: its file is older than they are, or it was made by hand.

        """
        if self.posterior is None:
            raise MissingStatisticsError(
                "this ensemble was saved without the statistics of its agents' factors; "
                "persim_gym.refit_factors(ensemble, log), with the log it was trained on, makes them"
            )
        return self.posterior

    def simulator(
        self,
        agent: int | str | None = None,
        *,
        agents: Sequence[int | str] | None = None,
        aggregate: str = "mean",
        device: str = "cpu",
    ) -> FactorSimulator:
        """Bind the ensemble to one agent, or to one agent for each row of a batch.

        Args:
            agent: index or label.
            agents: B indices or labels, instead of ``agent``.
            aggregate: "mean" or "median" over the members; the median survives a member that diverges.
            device: any torch device.

        Raises:
            UnknownNameError: there is no such agent.
            InvalidArgumentError: both or neither of ``agent`` and ``agents``, an unknown aggregate or device.

        """
        from persim_gym.factor_simulator import FactorSimulator

        return FactorSimulator(self, find_agents(agent, agents, self.agent_labels), aggregate=aggregate, device=device)

    def with_members(self, members: Sequence[int]) -> Ensemble:
        """Return the ensemble of some of the members only, without the intervals that were calibrated for all.

        Args:
            members: indices, in the order wanted.

        Raises:
            InvalidArgumentError: there is no such member, or none is given.

        """
        chosen = list(members)
        if not chosen or min(chosen) < 0 or max(chosen) >= self.num_members:
            raise InvalidArgumentError(f"members={chosen} must be some of 0 … {self.num_members - 1}")
        return replace(
            self,
            config=self.config.with_changes(num_members=len(chosen)),
            parameters=_members(self.parameters, chosen),
            outcomes={
                name: replace(outcome, parameters=_members(outcome.parameters, chosen))
                for name, outcome in self.outcomes.items()
            },
            posterior=None if self.posterior is None else self.posterior.with_members(chosen),
            calibration=self.calibration if sorted(chosen) == list(range(self.num_members)) else None,
        )

    def with_agents(self, agents: Sequence[int | str]) -> Ensemble:
        """Return the ensemble of some of the agents only, in the order given.

        Raises:
            UnknownNameError: there is no such agent.
            InvalidArgumentError: no agent is given, or one twice.

        """
        chosen = [self.agent_index(agent) for agent in agents]
        if not chosen or len(set(chosen)) < len(chosen):
            raise InvalidArgumentError(f"agents={list(agents)} must be one agent or more, each named once")
        return replace(
            self,
            parameters={**self.parameters, "agent.weight": self.parameters["agent.weight"][:, chosen]},
            agent_labels=tuple(self.agent_labels[agent] for agent in chosen),
            covariates=None if self.covariates is None else self.covariates[chosen],
            outcomes={name: outcome.of_agents(chosen) for name, outcome in self.outcomes.items()},
            posterior=None if self.posterior is None else self.posterior.with_agents(chosen),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with everything else as JSON in its header, as a whole or not at all."""
        arrays = dict(self.parameters)
        arrays["initial_observations"] = self.initial_observations
        for name in _NORMALIZER:
            arrays[f"normalizer.{name}"] = getattr(self.normalizer, name)
        if self.covariates is not None:
            arrays["covariates"] = self.covariates
        for name, outcome in self.outcomes.items():
            arrays |= {f"{name}.{key}": array for key, array in outcome.parameters.items()}
            arrays |= {f"{name}.{key}": getattr(outcome, key) for key in _SCALING}
        if self.posterior is not None:
            arrays.update({f"{_POSTERIOR}{name}": array for name, array in self.posterior.to_arrays().items()})
        if self.calibration is not None:
            arrays["calibration"] = self.calibration
        # A log of half a million agents without names needs no list of names.
        numbered = self.agent_labels == NumberedLabels(self.num_agents)
        storage.write(
            path,
            _KIND,
            arrays,
            {
                **task_fields(self.task),
                "outcomes": list(self.outcomes),
                "num_agents": self.num_agents,
                "agent_labels": None if numbered else list(self.agent_labels),
                "config": self.config.to_json(),
                "provenance": dict(self.provenance),
            },
        )

    @classmethod
    def load(cls, path: str | Path, *, task: str | Task | None = None) -> Ensemble:
        """Read a file written by `save`.

        Args:
            path: the file.
            task: the task it must be for. If not given, it is the known one of the name in the file; else what the
                file's reference to a module has; else, where reward and termination were learned, made from the file.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: cut short, damaged, of a newer format, of another task, or not an ensemble.
            UnknownNameError: its task is not registered.

        """
        arrays, document = storage.read(path, _KIND)
        try:
            count = int(document["num_agents"])
            labels = tuple(document["agent_labels"]) if document["agent_labels"] else NumberedLabels(count)
            config = PerSimConfig.from_json(document["config"])
            provenance = document["provenance"]
            if len(labels) != count:
                raise ValueError(f"{len(labels)} labels for {count} agents")
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: the header is damaged ({error})") from error
        found = task_of_file(path, document, task)
        shapes = _expected_shapes(found, config, count)
        if any(key.startswith(_POSTERIOR) for key in arrays):
            known = FactorPosterior.array_shapes(config.num_members, count, config.rank, found.observation_size)
            shapes.update({f"{_POSTERIOR}{key}": shape for key, shape in known.items()})
        _check_shapes(path, arrays, shapes)
        outcomes = _read_outcomes(path, arrays, document.get("outcomes", []), found, config, count)
        normalizer = Normalizer(*(np.array(arrays.pop(f"normalizer.{name}")) for name in _NORMALIZER))
        initial = np.array(arrays.pop("initial_observations"))
        covariates = arrays.pop("covariates", None)
        parts = {key.removeprefix(_POSTERIOR): arrays.pop(key) for key in [*arrays] if key.startswith(_POSTERIOR)}
        posterior = FactorPosterior.from_arrays(parts) if parts else None
        calibration = arrays.pop("calibration", None)
        return cls(
            task=found,
            config=config,
            parameters=arrays,
            normalizer=normalizer,
            agent_labels=labels,
            initial_observations=initial,
            covariates=covariates,
            outcomes=outcomes,
            provenance=provenance,
            posterior=posterior,
            calibration=calibration,
        )

    def __repr__(self) -> str:
        size = sum(array.nbytes for array in self.parameters.values()) / 1e6
        error = self.provenance.get("validation_rmse")
        return (
            f"Ensemble({self.task.name}: {self.num_agents} agents, {self.num_members} members, "
            f"rank {self.config.rank}, {size:.1f} MB{'' if error is None else f', validation RMSE {error:.4g}'}"
            f"{synthetic_note(self.provenance.get('data', {})).replace('synthetic', 'learned from synthetic data')})"
        )


def _members(parameters: Mapping[str, np.ndarray], chosen: list[int]) -> dict[str, np.ndarray]:
    return {name: array[chosen] for name, array in parameters.items()}


def _expected_shapes(task: Task, config: PerSimConfig, num_agents: int) -> dict[str, tuple[int, ...]]:
    size = task.observation_size
    shapes = {
        key: shape
        for key, (shape, _) in parameter_shapes(
            config,
            num_agents=num_agents,
            observation_size=size,
            action_size=task.action_size,
            discrete=task.discrete,
        ).items()
    }
    for name in _NORMALIZER:
        shapes[f"normalizer.{name}"] = (size,)
    shapes["initial_observations"] = ()
    return shapes


def _check_shapes(path: str | Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        if key not in arrays or arrays[key].shape[: len(shape)] != shape:
            raise FileFormatError(f"{path}: array {key!r} is missing or has the wrong shape, expected {shape}")


def _read_outcomes(
    path: str | Path,
    arrays: dict[str, np.ndarray],
    names: Sequence[str],
    task: Task,
    config: PerSimConfig,
    num_agents: int,
) -> dict[str, Outcome]:
    """Take the outcomes out of a file's arrays."""
    outcomes = {}
    for name in names:
        shapes = {key: shape for key, (shape, _) in outcome_shapes(task, config, num_agents, name).items()}
        inputs = (shapes["state.0.weight"][2],)
        scaling = {"input_mean": inputs, "input_scale": inputs, "output_mean": (1,), "output_scale": (1,)}
        _check_shapes(path, arrays, {f"{name}.{key}": shape for key, shape in {**shapes, **scaling}.items()})
        outcomes[name] = Outcome(
            {key: arrays.pop(f"{name}.{key}") for key in shapes},
            **{key: np.array(arrays.pop(f"{name}.{key}")) for key in scaling},
        )
    if "reward" in task.learned and "reward" not in outcomes:
        raise FileFormatError(f"{path} has no learned reward, and task {task.name} has no reward function: give one")
    return outcomes
