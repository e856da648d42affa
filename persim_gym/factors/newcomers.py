"""New agents of a trained ensemble, known by transitions, by covariates, or by both."""

from __future__ import annotations

import reprlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persim_gym.arguments import as_list, first_repeated
from persim_gym.data.log_and_task import with_task_covariates
from persim_gym.data.provenance import with_update
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidArgumentError
from persim_gym.factors.covariates import CovariateMap, fit_covariate_map
from persim_gym.factors.inference import check_knows_factors, with_posterior_means
from persim_gym.factors.rewards import with_own_rewards
from persim_gym.factors.statistics import posterior_given
from persim_gym.model.dynamics import check_log_of
from persim_gym.model.ensemble import BY_COVARIATES, NEWCOMERS, Ensemble
from persim_gym.model.posterior import ASSUMED_DEVIATION, FactorPosterior, Prior
from persim_gym.tasks.covariates import covariate_array
from persim_gym.types import FloatArray
from persim_gym.user_warnings import warn_user

_LEAST_DEVIATION, _LARGEST_DEVIATION = 1e-4, 10.0


def personalize(
    ensemble: Ensemble,
    trajectories: Trajectories | None = None,
    *,
    agents: Sequence[str] | None = None,
    covariates: Mapping[str, Mapping[str, float]] | None = None,
    covariate_map: CovariateMap | None = None,
    device: str = "cpu",
) -> Ensemble:
    """Return the ensemble with new agents appended, known by transitions, by covariates, or by both. No gradient steps.

    A new agent gets the posterior mean of its factors. Their prior is the distribution estimated from the trained
    agents or, where covariates are given, the one predicted from them (paper, appendix F.5). Warns if these were too
    few agents (at most ``rank``) to tell how agents differ.

    Where the reward was learned with factors of each agent's own, a newcomer's are the posterior means given its
    rewards in the log, under the distribution of the trained agents'; without any they are those agents' mean. For the
    termination they are the mean of the ensemble's agents. A log whose rewards are all zero has none.

    Args:
        ensemble: trained, with the posterior of its agents' factors; covariates alone need none.
        trajectories: of the newcomers; their labels must be new.
        agents: labels of the newcomers, by default all of the log and of ``covariates``; one without a transition and
            without covariates gets the prior's mean.
        covariates: label -> {name: value}, of any of the newcomers.
        covariate_map: from covariates to factors; by default a Gaussian process on all agents of the ensemble whose
            covariates are known.
        device: device on which the transitions are summed up.

    Raises:
        MissingStatisticsError: the ensemble has no posterior.
        InvalidDataError: the log does not fit the ensemble's task.
        InvalidArgumentError: a label is taken, there is no newcomer, or its covariates are incomplete.
        UnknownNameError: the task has no such covariate.

    """
    check_knows_factors(ensemble)
    given = _by_label(covariates)
    if trajectories is not None:
        check_log_of(ensemble, trajectories)
        trajectories = with_task_covariates(trajectories, ensemble.task)
    labels = _newcomers(ensemble, trajectories, agents, given)
    values = _newcomers_covariates(ensemble, trajectories, labels, given)
    described = np.array([place for place, label in enumerate(labels) if label in given], np.int64)
    if len(described) and covariate_map is None:
        covariate_map = fit_covariate_map(ensemble)
    first, weight = ensemble.num_agents, ensemble.parameters["agent.weight"]
    empty = np.zeros((weight.shape[0], len(labels), weight.shape[2]), weight.dtype)
    grown = replace(
        ensemble,
        parameters={**ensemble.parameters, "agent.weight": np.concatenate([weight, empty], axis=1)},
        agent_labels=(*ensemble.agent_labels, *labels),
        covariates=_joined_covariates(ensemble, values),
        outcomes={
            name: outcome.of_agents([*range(first), *[None] * len(labels)])
            for name, outcome in ensemble.outcomes.items()
        },
        posterior=None,
        provenance=_grown_provenance(ensemble, trajectories, labels, [labels[place] for place in described]),
    )
    newcomers = np.arange(first, first + len(labels))
    if ensemble.posterior is None and trajectories is None and len(described) == len(labels):
        return grown.with_factors(covariate_map.predict(values)[0], newcomers)
    posterior = ensemble.known_posterior()
    prior_agents = first if posterior.prior.num_agents is None else posterior.prior.num_agents
    if prior_agents <= ensemble.config.rank:
        warn_user(
            f"the ensemble was trained on {prior_agents} agents for rank {ensemble.config.rank}, too few to tell how "
            f"agents differ; it is assumed to be by {ASSUMED_DEVIATION:.0%} of their factors: train on more agents "
            "than the rank",
        )
    known = _known_by_transitions(ensemble, trajectories, labels, silent_unless=given, device=device)
    if len(described):
        predicted = _as_information(posterior.prior, *covariate_map.predict(values[described]))
        known = known.with_information(predicted, described)
    if trajectories is not None:
        grown = with_own_rewards(grown, trajectories, newcomers, device=device)
    return with_posterior_means(replace(grown, posterior=FactorPosterior.concatenate([posterior, known])), newcomers)


def _by_label(covariates: Mapping[Any, Mapping[str, float]] | None) -> dict[str, Mapping[str, float]]:
    """Return covariates by the agents' labels, which are strings."""
    if covariates is None:
        return {}
    if not isinstance(covariates, Mapping):
        raise InvalidArgumentError(f"covariates={covariates!r} must be given by label: {{'a label': {{name: value}}}}")
    return {str(label): values for label, values in covariates.items()}


def _newcomers(
    ensemble: Ensemble, log: Trajectories | None, agents: Sequence[str] | None, covariates: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the labels of the newcomers, checked."""
    known = dict.fromkeys([*(() if log is None else log.agent_labels), *covariates])
    labels = tuple(map(str, known if agents is None else as_list("agents", agents, "labels")))
    different = set(labels)
    forgotten = [label for label in covariates if label not in different]
    if forgotten:
        raise InvalidArgumentError(
            f"covariates are given of {forgotten[0]!r}, who is not among agents={reprlib.repr(list(labels))}: name it "
            "there, too"
        )
    taken = set(ensemble.agent_labels) & different
    if taken:
        label = next(label for label in labels if label in taken)
        raise InvalidArgumentError(
            f"agent {label!r} is in the ensemble already: persim_gym.update adds its new transitions, or give the "
            "newcomer another label"
        )
    if not labels or first_repeated(labels) is not None:
        raise InvalidArgumentError(f"agents={reprlib.repr(list(labels))} must be one newcomer or more, each named once")
    return labels


def _newcomers_covariates(
    ensemble: Ensemble, log: Trajectories | None, labels: Sequence[str], given: Mapping[str, Mapping[str, float]]
) -> FloatArray:
    """Return covariates (n, K) of the newcomers, those given before those in the log; not a number where unknown."""
    values = np.full((len(labels), len(ensemble.task.covariates)), np.nan)
    if log is not None and log.covariates is not None:
        logged = dict(zip(log.agent_labels, log.covariates, strict=True))
        for place, label in enumerate(labels):
            values[place] = logged.get(label, np.nan)
    for place, label in enumerate(labels):
        if label in given:
            values[place] = covariate_array(ensemble.task, [given[label]])[0]
    return values


def _known_by_transitions(
    ensemble: Ensemble, log: Trajectories | None, labels: Sequence[str], *, silent_unless: Container[str], device: str
) -> FactorPosterior:
    """Return what a log says of the agents of those labels; warn of those of whom nothing at all is known."""
    in_log = set() if log is None else set(log.agent_labels)
    unknown = [label for label in labels if label not in in_log and label not in silent_unless]
    if unknown:
        warn_user(
            f"newcomer {unknown[0]!r} has no transition ({len(unknown)} such agents): "
            "its simulator is that of the mean agent",
        )
    posterior = ensemble.known_posterior()
    nothing = posterior.with_agents([None] * len(labels))
    wanted = [label for label in labels if label in in_log]
    if log is None or not wanted:
        return nothing
    chosen = log if tuple(wanted) == log.agent_labels else log.select(wanted)
    places = np.array([place for place, label in enumerate(labels) if label in in_log])
    return nothing.with_information(posterior_given(ensemble, chosen, posterior.prior, device=device), places)


def _as_information(prior: Prior, mean: FloatArray, covariance: FloatArray) -> FactorPosterior:
    """Return what, added to the prior, makes N(mean, covariance) of it: mean (M, n, r), covariance (M, n, r, r).

    Seen from the whitened prior, the deviation is kept between a ten-thousandth of the prior's and ten times it: beyond
    that the difference to the prior is lost in rounding.
    """
    inverse = np.linalg.inv(np.linalg.cholesky(prior.covariance))[:, None]  # whitens
    values, vectors = np.linalg.eigh(inverse @ covariance @ inverse.swapaxes(-1, -2))
    precisions = 1 / np.clip(values, _LEAST_DEVIATION**2, _LARGEST_DEVIATION**2)
    axes = inverse.swapaxes(-1, -2) @ vectors
    information = np.einsum("mnij,mnj,mnkj->mnik", axes, precisions - 1, axes)
    # information·prior mean + axes·precisions·axesᵀ·(mean − prior mean), the prior's own weight being left out
    offset = np.einsum("mnij,mni->mnj", axes, mean - prior.mean[:, None])
    information_vector = np.einsum("mnij,mnj->mni", axes, precisions * offset)
    information_vector = information_vector + np.einsum("mnij,mj->mni", information, prior.mean)
    return FactorPosterior(prior, information, information_vector, np.zeros(mean.shape[1], np.int64))


def _grown_provenance(
    ensemble: Ensemble, log: Trajectories | None, labels: Sequence[str], described: Sequence[str]
) -> dict[str, Any]:
    """Return the provenance of the ensemble with newcomers of those labels, some of whom a covariate map describes."""
    provenance = dict(ensemble.provenance)
    provenance[NEWCOMERS] = [*provenance.get(NEWCOMERS, ()), *labels]
    if log is not None:
        provenance = with_update(provenance, log.source, again=False)
    if described:
        provenance[BY_COVARIATES] = [*provenance.get(BY_COVARIATES, ()), *described]
    return provenance


def _joined_covariates(ensemble: Ensemble, covariates: FloatArray) -> FloatArray | None:
    """Return the covariates of the agents and then of the newcomers (n, K); None where nothing is known of anyone."""
    if ensemble.covariates is not None:
        return np.concatenate([ensemble.covariates, covariates])
    if not np.isfinite(covariates).any():
        return None
    return np.concatenate([np.full((ensemble.num_agents, covariates.shape[1]), np.nan), covariates])
