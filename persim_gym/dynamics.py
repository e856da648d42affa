"""`AgentDynamics`: the agents of learned dynamics, PerSim's or a baseline's, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from persim_gym.errors import InvalidArgumentError
from persim_gym.labels import find_agent, find_agents
from persim_gym.types import FloatArray, LearnedDynamics


class AgentDynamics:
    """Learned dynamics of N agents: the part of `persim_gym.types.LearnedDynamics` that is the same for all models."""

    agent_labels: Sequence[str]
    covariates: FloatArray | None
    """(N, K), if known; NaN for an agent whose are not."""

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agent_labels)

    def agent_index(self, agent: int | str) -> int:
        """Return the index of an agent given by index (int) or label (str)."""
        return find_agent(agent, self.agent_labels)

    def agent_covariates(self, agent: int | str) -> FloatArray:
        """Return (K,) hidden covariates of an agent of a collected log.

        Raises:
            UnknownNameError: there is no such agent.
            InvalidArgumentError: its covariates are not known.

        """
        index = self.agent_index(agent)
        if self.covariates is None or not np.isfinite(self.covariates[index]).all():
            raise InvalidArgumentError(
                f"the covariates of agent {self.agent_labels[index]!r} are not recorded in this model, so its true "
                "system is unknown; give them (covariates=...), or measure along a log (persim_gym.log_error, "
                "persim-gym evaluate --log)"
            )
        return self.covariates[index]


def measured_agents(ensemble: LearnedDynamics, agents: Sequence[int | str] | None) -> list[int]:
    """Return the indices of the agents to measure: those given, else the task's test agents, else all."""
    if agents is None:
        agents = range(min(len(ensemble.task.test_agents) or ensemble.num_agents, ensemble.num_agents))
    return find_agents(None, agents, ensemble.agent_labels).tolist()


def true_covariates(
    ensemble: LearnedDynamics, agent: int, covariates: Mapping[str, Sequence[float]] | None
) -> FloatArray:
    """Return (K,) covariates of an agent's true system: those given for its label, else those the model knows."""
    label = ensemble.agent_labels[agent]
    if covariates is not None and label in covariates:
        return ensemble.task.check_covariates([covariates[label]])[0]
    return np.asarray(ensemble.agent_covariates(agent), np.float64)
