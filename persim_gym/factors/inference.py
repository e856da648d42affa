"""The posterior of u(agent) given the agent's transitions: of the agents of a log, and after more of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from persim_gym.data.log_and_task import check_log
from persim_gym.data.provenance import with_update
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.factors.rewards import with_own_rewards, with_reward_posterior
from persim_gym.factors.statistics import posterior_given, sampled_agents, sufficient_statistics
from persim_gym.model.dynamics import check_is_ensemble, check_same_covariates, known_agents, no_posterior
from persim_gym.model.ensemble import BY_COVARIATES, Ensemble
from persim_gym.model.normalizer import varies
from persim_gym.model.posterior import FactorPosterior, Prior
from persim_gym.types import FloatArray, IntArray


def refit_factors(
    ensemble: Ensemble,
    trajectories: Trajectories,
    *,
    rows: IntArray | None = None,
    replace_factors: bool = True,
    device: str = "cpu",
) -> Ensemble:
    """Return the ensemble with the posterior of its agents' factors, given the log it was trained on.

    Prior and noise are the most likely ones for the log, or for 5000 of its agents where there are more; v and w
    stay as they were. One pass over the data. A reward that was learned by agent gets the posterior of its factors,
    too, which themselves stay; another pass.

    Args:
        ensemble: trained.
        trajectories: of exactly the ensemble's agents.
        rows: (n,) of the transitions to use; by default all.
        replace_factors: whether the factors become the posterior means. Otherwise they stay as training left them, as
            in the paper, and the posterior serves newcomers and intervals only. So do in any case those of an agent
            whose transitions all end on a bound of the observation space, which cuts short what they would say.
        device: to compute on.

    Raises:
        InvalidDataError: the log does not fit the ensemble's task or has other agents.

    """
    check_knows_factors(ensemble)
    check_log(trajectories, ensemble.task)
    if trajectories.agent_labels != ensemble.agent_labels:
        raise InvalidDataError(
            f"the log is of {trajectories.num_agents} agents ({trajectories.agent_labels[0]!r}, …), the ensemble of "
            f"{ensemble.num_agents} ({ensemble.agent_labels[0]!r}, …): give the log the ensemble was trained on, or "
            "call persim_gym.personalize for new agents"
        )
    check_same_covariates(ensemble, trajectories, slice(None))
    sample = sampled_agents(ensemble.num_agents)
    statistics = sufficient_statistics(ensemble, trajectories, rows, agents=sample, device=device)
    states = np.asarray(trajectories.observations, np.float64)
    informative = varies(np.asarray(trajectories.next_observations, np.float64) - states, states)
    prior = Prior.estimate(statistics, ensemble.agent_factors(sample), informative)
    if len(sample) == ensemble.num_agents:
        posterior = FactorPosterior.of(prior, statistics)
    else:
        posterior = posterior_given(ensemble, trajectories, prior, rows, device=device)
    known = replace(ensemble, posterior=posterior, calibration=None)  # widths are in deviations of the former posterior
    known = with_reward_posterior(known, trajectories, rows=rows, device=device)
    if not replace_factors:
        return known
    from_log = {key: value for key, value in ensemble.provenance.items() if key != BY_COVARIATES}
    with_rows = np.unique(trajectories.agents if rows is None else trajectories.agents[rows])
    silent = np.setdiff1d(with_rows, np.flatnonzero(posterior.num_transitions))
    told = np.setdiff1d(np.arange(ensemble.num_agents), silent)
    return with_posterior_means(replace(known, provenance=from_log), told)


def update(ensemble: Ensemble, trajectories: Trajectories, *, device: str = "cpu") -> Ensemble:
    """Return the ensemble after more transitions of some of its agents: exact, as if all had been there at once.

    Prior and noise stay as they are, and so do the other agents. Covariates of an agent that were not known so far are
    taken from the log. Warns of a log that it was given before.

    A reward that was learned by agent is adapted to the agents' rewards in the log as by `personalize`, exactly, too;
    a log whose rewards are all zero has none.

    Args:
        ensemble: with the posterior of its agents' factors.
        trajectories: transitions that it has not seen yet, of agents that it knows.
        device: device on which the transitions are summed up.

    Raises:
        MissingStatisticsError: the ensemble has no posterior.
        InvalidDataError: the log does not fit the ensemble's task, or is of other agents of the same labels.
        UnknownNameError: an agent is not in the ensemble.

    """
    chosen = known_agents(ensemble, trajectories)
    posterior = ensemble.known_posterior()
    known = posterior_given(ensemble, trajectories, posterior.prior, device=device)
    adapted = with_own_rewards(ensemble, trajectories, chosen, device=device)
    provenance = with_update(ensemble.provenance, trajectories.source, again=True)
    updated = replace(
        adapted,
        posterior=posterior.with_information(known, chosen),
        covariates=_completed_covariates(ensemble, trajectories, chosen),
        provenance=provenance,
    )
    return with_posterior_means(updated, chosen)


def _completed_covariates(ensemble: Ensemble, log: Trajectories, agents: IntArray) -> FloatArray | None:
    """Return the covariates of the ensemble's agents, those it does not know from a log, whose are ``agents`` (n,)."""
    names = ensemble.task.covariate_names
    if log.covariates is None or not set(names) & set(log.covariate_names):
        return ensemble.covariates
    logged = np.full((ensemble.num_agents, len(names)), np.nan)
    for name, values in zip(log.covariate_names, np.asarray(log.covariates).T, strict=True):
        if name in names:
            logged[agents, names.index(name)] = values
    if ensemble.covariates is None:
        return logged
    return np.where(np.isfinite(ensemble.covariates), ensemble.covariates, logged)


def check_knows_factors(ensemble: Any) -> None:
    """Raise an error for anything but PerSim's ensembles, other learned dynamics too."""
    check_is_ensemble(ensemble)
    if not isinstance(ensemble, Ensemble):
        raise no_posterior(ensemble)


def with_posterior_means(ensemble: Ensemble, agents: IntArray) -> Ensemble:
    """Return the ensemble with the factors of some agents set to their posterior means."""
    return ensemble.with_factors(ensemble.known_posterior().moments(agents)[0], agents)
