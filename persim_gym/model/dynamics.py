"""`LearnedDynamics`: a model of N agents, PerSim's or a baseline's; and what is known about its agents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.data.labels import find_agent
from persim_gym.data.log_and_task import check_log
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidArgumentError, InvalidDataError, MissingStatisticsError, UnknownNameError
from persim_gym.types import FloatArray, IntArray
from persim_gym.user_warnings import warn_user

if TYPE_CHECKING:
    from persim_gym.model.outcomes import Outcome
    from persim_gym.model.posterior import FactorPosterior
    from persim_gym.simulators.simulator import Simulator
    from persim_gym.tasks import Task


class LearnedDynamics(ABC):
    """A model of N agents, PerSim's ensemble or a baseline's: all that environments, planners and evaluation ask of it.

    Functions that take any such model say `LearnedDynamics`, those that need agents known by factors `Ensemble`.
    """

    task: Task
    agent_labels: Sequence[str]
    initial_observations: FloatArray
    """(E, D) float32: first observations of the log's episodes."""
    covariates: FloatArray | None
    """(N, K), if known; NaN for an agent whose covariates are not. For the true systems, never used by the model."""
    provenance: Mapping[str, Any]
    """Where the model comes from: data digest, seed, training errors."""
    outcomes: Mapping[str, Outcome] | None = None
    """"reward" and "terminated", as far as the task leaves them to be learned; None for a model that learns neither."""

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agent_labels)

    @property
    @abstractmethod
    def num_members(self) -> int:
        """M: trajectories that a simulator follows side by side, of members or of particles tied to them."""

    @property
    def clips_states(self) -> bool:
        """Whether predicted next states are kept within the bounds of the task's observations."""
        return False

    @property
    def state_bounds(self) -> tuple[FloatArray, FloatArray] | None:
        """Lower and upper bounds, (D,) each, that predicted next states are kept within; None for no bounds."""
        space = self.task.observation_space
        return (space.low, space.high) if self.clips_states else None

    @abstractmethod
    def simulator(
        self,
        agent: int | str | None = None,
        *,
        agents: Sequence[int | str] | None = None,
        aggregate: str = "mean",
        device: str = "cpu",
    ) -> Simulator:
        """Bind to one agent, or to one agent for each row of a batch."""

    def known_posterior(self) -> FactorPosterior:
        """Return the posterior of the agents' factors.

        Raises:
            MissingStatisticsError: the model has none.

        """
        raise no_posterior(self)

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
            if self.task.make_system is None:
                raise InvalidArgumentError(
                    f"task {self.task.name} has no true system: measure and draw along a log of its agents "
                    "(persim_gym.log_error, plot_trajectories(..., log=...), persim-gym evaluate --log)"
                )
            raise InvalidArgumentError(
                f"the covariates of agent {self.agent_labels[index]!r} are not recorded in this model, so its true "
                "system is unknown; give them (covariates=...), or measure along a log (persim_gym.log_error, "
                "persim-gym evaluate --log)"
            )
        return self.covariates[index]


def no_posterior(model: LearnedDynamics) -> MissingStatisticsError:
    """Return the error of a model that has no posterior of its agents' factors."""
    return MissingStatisticsError(
        f"{type(model).__name__} knows no posterior of its agents' factors; only PerSim's ensembles do"
    )


def known_agents(ensemble: LearnedDynamics, log: Trajectories) -> IntArray:
    """Return the index (n,) in a model of each agent of a log.

    Raises:
        UnknownNameError: one is not in the model.
        InvalidDataError: the log does not fit the model's task, or is of other agents of the same labels.

    """
    check_is_ensemble(ensemble)
    check_log_of(ensemble, log)
    index = {label: place for place, label in enumerate(ensemble.agent_labels)}
    strangers = [label for label in log.agent_labels if label not in index]
    if strangers:
        raise UnknownNameError(
            f"agent {strangers[0]!r} is not in the ensemble ({len(strangers)} such agents); "
            "persim_gym.personalize adds newcomers"
        )
    agents = np.array([index[label] for label in log.agent_labels], np.int64)
    check_same_covariates(ensemble, log, agents)
    return agents


def check_log_of(ensemble: LearnedDynamics, log: Trajectories) -> None:
    """Raise `InvalidDataError` if a log does not fit a model's task.

    Warns of a log of another task, and of one whose columns have other names than the task's and than those of the log
    that the model was trained on.
    """
    task = ensemble.task
    check_log(log, task)
    if log.task not in (None, task.name):
        warn_user(f"the log is of task {log.task!r}, and is taken for one of {task.name!r}, which the model is of")
    trained = ensemble.provenance.get("names") or {}
    for what, names in log.given_names.items():
        known = [tuple(one) for one in (task.given_names[what], trained.get(what, ())) if one]
        if names and known and names not in known:
            warn_user(
                f"{what}={list(names)} are taken for {list(known[-1])}, which the model was trained on: if these are "
                "the same quantities, name them alike; if not, the log tells the model nothing"
            )


def check_same_covariates(ensemble: LearnedDynamics, log: Trajectories, agents: IntArray | slice) -> None:
    """Raise `InvalidDataError` if both know covariates of a log's agents, ``agents`` of the model, and they differ."""
    if ensemble.covariates is None or log.covariates is None:
        return
    names = [name for name in ensemble.task.covariate_names if name in log.covariate_names]
    known = np.asarray(ensemble.covariates)[agents][:, [ensemble.task.covariate_names.index(name) for name in names]]
    logged = np.asarray(log.covariates)[:, [log.covariate_names.index(name) for name in names]]
    different = np.argwhere(np.isfinite(known) & ~np.isclose(known, logged))
    if len(different):
        agent, place = (int(one) for one in different[0])
        raise InvalidDataError(
            f"agent {log.agent_labels[agent]!r} has {names[place]} {logged[agent, place]:.6g} in the log and "
            f"{known[agent, place]:.6g} in the ensemble: they are different agents, which need different labels; "
            "persim_gym.personalize adds newcomers"
        )


def check_is_ensemble(ensemble: Any, name: str = "ensemble") -> None:
    """Raise `InvalidArgumentError` for anything but a model, such as an environment, given as the argument ``name``."""
    if not isinstance(ensemble, LearnedDynamics):
        raise InvalidArgumentError(
            f"{name}={ensemble!r} must be an ensemble: persim_gym.load(name), or env.unwrapped.ensemble"
        )
