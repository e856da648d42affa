"""`Ensemble`: the learned parameters of all members, stacked, with all that is known about where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.arguments import as_list, first_repeated, whole_number
from persim_gym.config import PerSimConfig
from persim_gym.data.labels import find_agents, find_listed
from persim_gym.data.reprs import outcomes_note, synthetic_note, validation_text
from persim_gym.errors import InvalidArgumentError, MissingStatisticsError
from persim_gym.model import ensemble_file
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.outcomes import Outcome
from persim_gym.model.posterior import FactorPosterior
from persim_gym.tasks import Task
from persim_gym.types import FloatArray

if TYPE_CHECKING:
    from persim_gym.simulators.factor_simulator import FactorSimulator

MAX_INITIAL_OBSERVATIONS = 10_000
"""How many first observations of a log a model keeps, for its episodes to begin in."""
BY_COVARIATES = "known_by_covariates"
"""Where an ensemble's provenance has the labels of the agents of whom a covariate map has predicted anything."""
NEWCOMERS = "newcomers"
"""Where it has the labels of the agents that it was not trained on."""


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(LearnedDynamics):
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

    @property
    def clips_states(self) -> bool:
        return self.config.clip_states

    def agent_factors(self, agents: Any = slice(None)) -> FloatArray:
        """Return u (M, N, r) of the chosen agents, shared bias included."""
        return self.parameters["agent.weight"][:, agents] + self.parameters["agent.bias"][:, None]

    def table_rows(self, factors: FloatArray) -> FloatArray:
        """Return the rows (M, n, r) float32 of an agent table by which n agents have the factors u (M, n, r)."""
        return (factors - self.parameters["agent.bias"][:, None]).astype(np.float32)

    def with_factors(self, factors: FloatArray, agents: Any = slice(None)) -> Ensemble:
        """Return the ensemble whose `agent_factors` of the chosen agents are u (M, n, r); the posterior stays."""
        table = np.array(self.parameters["agent.weight"])
        table[:, agents] = self.table_rows(factors)
        return replace(self, parameters={**self.parameters, "agent.weight": table})

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
        # The one import against the layers' order: users meet the simulator here, and it needs the ensemble.
        from persim_gym.simulators.factor_simulator import FactorSimulator

        return FactorSimulator(self, find_agents(agent, agents, self.agent_labels), aggregate=aggregate, device=device)

    def with_members(self, members: Sequence[int]) -> Ensemble:
        """Return the ensemble of some of the members only, without the intervals that were calibrated for all.

        Args:
            members: indices, in the order wanted.

        Raises:
            InvalidArgumentError: no list of members, an empty one, one with a member twice, or no such member.

        """
        given = as_list("members", members, "indices")
        chosen = [whole_number("members", member, least=0) for member in given]
        if not chosen or first_repeated(chosen) is not None or max(chosen) >= self.num_members:
            raise InvalidArgumentError(f"members={chosen} must be some of 0 … {self.num_members - 1}, none twice")
        return replace(
            self,
            config=self.config.with_changes(num_members=len(chosen)),
            parameters={name: array[chosen] for name, array in self.parameters.items()},
            outcomes={name: outcome.with_members(chosen) for name, outcome in self.outcomes.items()},
            posterior=None if self.posterior is None else self.posterior.with_members(chosen),
            calibration=self.calibration if sorted(chosen) == list(range(self.num_members)) else None,
        )

    def with_agents(self, agents: Sequence[int | str]) -> Ensemble:
        """Return the ensemble of some of the agents only, in the order given.

        Raises:
            UnknownNameError: there is no such agent.
            InvalidArgumentError: no list of agents, an empty one, or one with an agent twice.

        """
        chosen: list[int] = find_listed(agents, self.agent_labels).tolist()
        labels = tuple(self.agent_labels[agent] for agent in chosen)
        return replace(
            self,
            parameters={**self.parameters, "agent.weight": self.parameters["agent.weight"][:, chosen]},
            agent_labels=labels,
            covariates=None if self.covariates is None else self.covariates[chosen],
            outcomes={name: outcome.of_agents(chosen) for name, outcome in self.outcomes.items()},
            provenance=_provenance_of_agents(self.provenance, labels),
            posterior=None if self.posterior is None else self.posterior.with_agents(chosen),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with everything else as JSON in its header, as a whole or not at all.

        Raises:
            FileWriteError: it cannot be written.
            InvalidArgumentError: there is a file that holds no ensemble, or the name is a table's.

        """
        ensemble_file.write(path, self)

    @classmethod
    def load(cls, path: str | Path, *, task: str | Task | None = None) -> Ensemble:
        """Read a file written by `save`.

        Args:
            path: the file.
            task: the task it must be for. If not given, it is the known one of the name in the file; else what the
                file's reference to a module has; else, or where that cannot be imported, made from the file, if the
                task has no functions.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: cut short, damaged, of a newer format, of another task, or not an ensemble.
            UnknownNameError: its task is not registered.

        """
        return cls(**ensemble_file.read(path, task=task))

    def __repr__(self) -> str:
        size = sum(array.nbytes for array in self.parameters.values()) / 1e6
        error = validation_text(self.provenance)
        return (
            f"Ensemble({self.task.name}: {self.num_agents} agents, {self.num_members} members, "
            f"rank {self.config.rank}, {size:.1f} MB{'' if error is None else f', validation error {error}'}"
            f"{'' if self.calibration is None else ', calibrated'}{outcomes_note(self.provenance)}"
            f"{synthetic_note(self.provenance.get('data', {})).replace('synthetic', 'learned from synthetic data')})"
        )


def _provenance_of_agents(provenance: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return an ensemble's provenance for those of its agents only: another of the same label may come later."""
    still_there = set(labels)
    lists = [name for name in (BY_COVARIATES, NEWCOMERS) if name in provenance]
    return {**provenance, **{name: [label for label in provenance[name] if label in still_there] for name in lists}}
