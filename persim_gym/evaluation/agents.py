"""Which agents of a model are measured, in their true systems or along a log, and what their true systems are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from persim_gym.data.labels import AgentIndex, find_listed
from persim_gym.data.trajectories import Trajectories
from persim_gym.model.dynamics import LearnedDynamics, check_is_ensemble, known_agents
from persim_gym.tasks.covariates import covariate_array
from persim_gym.types import FloatArray, IntArray
from persim_gym.user_warnings import warn_user

GivenCovariates = Mapping[str, Mapping[str, float] | Sequence[float]]
"""Covariates by an agent's label: each value by its name, or all (K,) in the task's order."""


def measured_agents(ensemble: LearnedDynamics, agents: Sequence[int | str] | None) -> list[int]:
    """Return the indices of the agents to measure: those given, else those like the task's test agents, else all."""
    check_is_ensemble(ensemble)
    if agents is not None:
        return [AgentIndex(agent) for agent in find_listed(agents, ensemble.agent_labels)]
    return [AgentIndex(agent) for agent in _test_agents(ensemble) or range(ensemble.num_agents)]


def _test_agents(ensemble: LearnedDynamics) -> list[int]:
    """Return the indices of the agents that have a test agent's covariates."""
    tests = np.array(ensemble.task.test_agents, np.float64)
    if ensemble.covariates is None or not len(tests):
        return []
    same = np.isclose(np.asarray(ensemble.covariates)[:, None], tests)  # (agents, test agents, K)
    return np.flatnonzero(np.any(np.all(same, axis=2), axis=1)).tolist()


def true_covariates(ensemble: LearnedDynamics, agent: int, covariates: GivenCovariates | None) -> FloatArray:
    """Return (K,) covariates of an agent's true system: those given for its label, else those the model knows."""
    label = ensemble.agent_labels[agent]
    if covariates is not None and label in covariates:
        given = covariates[label]
        named = isinstance(given, Mapping)
        return (covariate_array(ensemble.task, [given]) if named else ensemble.task.check_covariates([given]))[0]
    return np.asarray(ensemble.agent_covariates(agent), np.float64)


def agents_along(ensemble: LearnedDynamics, log: Trajectories) -> IntArray:
    """Return the index (n,) in a model of each agent of a log that it is to be measured along.

    Warns of a synthetic log, and of one that the model was trained on, or that has the beginnings of its episodes.

    Raises:
        UnknownNameError: one is not in the model.
        InvalidDataError: the log does not fit the model's task, or is of other agents of the same labels.

    """
    agents = known_agents(ensemble, log)
    if log.provenance.get("synthetic"):
        warn_user(
            "the log is synthetic, at least in part: errors along it say how far simulators are from one another, and "
            "nothing of the agents themselves",
        )
    advice = "hold a part out before training, kept, held_out = log.split(0.2), and measure along that part alone"
    if log.digest == ensemble.provenance.get("data_digest"):
        warn_user(
            f"the model was trained on this very log, along which its errors are smaller than along others: {advice}"
        )
    elif _begins_as_trained(ensemble, log):
        warn_user(
            "most episodes of the log begin as those that the model was trained on, and are of the same origin: along "
            f"them its errors are smaller than along others; {advice}"
        )
    return agents


def _begins_as_trained(ensemble: LearnedDynamics, log: Trajectories) -> bool:
    """Whether most episodes begin exactly as some of the training log do, which was recorded in the same way.

    Where many of those began alike, as in one fixed state, this says nothing.
    """
    if log.provenance != ensemble.provenance.get("data"):
        return False
    trained = [row.tobytes() for row in np.asarray(ensemble.initial_observations, np.float32)]
    known = set(trained)
    begun = [row.tobytes() in known for row in np.asarray(log.initial_observations, np.float32)]
    return len(known) > 0.9 * len(trained) and bool(np.mean(begun) > 0.5)
