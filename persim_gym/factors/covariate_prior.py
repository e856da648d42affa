"""Agents' factors under a prior whose mean depends on their covariates.

A posterior mean lies between what the agent's transitions say and the prior's mean. Under a prior that is the same for
all agents, means therefore depend less on the covariates than the factors do. Here the prior is N(B·(1, x), C) with
covariates x: the mixed model of Laird and Ware (Biometrics 38, 1982). B is the best for given C, in closed form, and C
is found by expectation maximization, so that the two steps are those of Liu and Rubin (Biometrika 81, 1994).
"""

from __future__ import annotations

import numpy as np

from persim_gym.model.posterior import FactorPosterior, posterior_moments
from persim_gym.types import FloatArray

_ITERATIONS = 30
_CHANGED = 0.01
"""Relative change of the covariance in some direction from which another iteration is worth its time."""
_LEAST_VARIANCE = 1e-12
"""Smallest variance of C in any direction, in units of the prior's."""


def factors_given_covariates(posterior: FactorPosterior, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the agents' factors given their transitions and covariates, and what remains unknown of such a prediction.

    Args:
        posterior: of N agents.
        inputs: (N, K) their covariates, from −1 to 1.

    Returns:
        Posterior means (M, N, r), and the covariance (M, p, r, p, r), p = K + 1, of the coefficients of (1, x) in
        excess of that of a regression on these means as if they were the factors; that of 1 includes what is unknown of
        a single agent's factor.

    """
    design = with_one(inputs)
    found = [_of_member(posterior, design, member) for member in range(len(posterior.prior.mean))]
    factors, unknown = (np.stack(parts) for parts in zip(*found, strict=True))
    return factors, unknown


def with_one(inputs: FloatArray) -> FloatArray:
    """Return the inputs (N, K) with a column of ones before them: (N, K + 1)."""
    return np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)


def _of_member(posterior: FactorPosterior, design: FloatArray, member: int) -> tuple[FloatArray, FloatArray]:
    """Return factors (N, r) and the excess covariance (p, r, p, r) of one member."""
    mean, prior_covariance = posterior.prior.mean[member], posterior.prior.covariance[member]
    information = posterior.information[member]
    information_vector = posterior.information_vector[member] - information @ mean  # of factors less the prior's mean
    covariance = prior_covariance
    for _ in range(_ITERATIONS):
        root = np.linalg.cholesky(covariance)
        differences, covariances = posterior_moments(np.zeros_like(mean), covariance, information, information_vector)
        open_part = _whitened(covariances, root)
        known = np.eye(len(mean)) - open_part
        precision = _precision(known, design, root, prior_covariance)
        score = design.T @ np.linalg.solve(root, differences.T).T
        expected = design @ np.linalg.solve(precision, score.ravel()).reshape(score.shape)  # whitened
        factors = differences + np.einsum("nij,nj->ni", open_part, expected) @ root.T
        residuals, unknown = factors - expected @ root.T, covariances.mean(0)
        covariance = unknown + residuals.T @ residuals / len(design) + _LEAST_VARIANCE * prior_covariance
        if np.abs(_whitened(covariance, root) - np.eye(len(mean))).max() < _CHANGED:
            break
    everything_known = _precision(np.broadcast_to(np.eye(len(mean)), known.shape), design, root, prior_covariance)
    excess = (np.linalg.inv(precision) - np.linalg.inv(everything_known)).reshape(2 * score.shape)
    excess = np.einsum("ik,pkql,jl->piqj", root, excess, root, optimize=True)
    excess[0, :, 0, :] += unknown
    return mean + factors, excess


def _precision(known: FloatArray, design: FloatArray, root: FloatArray, prior_covariance: FloatArray) -> FloatArray:
    """Return the precision (p·r, p·r) of coefficients (p, r) of factors that are whitened by ``root`` (r, r).

    Args:
        known: (N, r, r) what transitions say of each agent's factor, from nothing to the identity for all of it.
        design: (N, p).
        root: of the covariance of the factors around their expectation.
        prior_covariance: (r, r), that of the ensemble's prior, which each coefficient has for its own prior.

    """
    size = design.shape[1] * len(root)
    data = np.einsum("np,nij,nq->piqj", design, known, design, optimize=True).reshape(size, size)
    return data + np.kron(np.eye(design.shape[1]), root.T @ np.linalg.solve(prior_covariance, root))


def _whitened(covariance: FloatArray, root: FloatArray) -> FloatArray:
    """Return root⁻¹ · covariance · root⁻ᵀ of covariances (…, r, r)."""
    inverse = np.linalg.inv(root)
    return inverse @ covariance @ inverse.T
