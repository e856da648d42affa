"""Gaussian posteriors of the agents' factors, and their empirical-Bayes prior.

For fixed state and action factors the model is linear in u: a transition says
change_d = Σ_l φ_dl·u_l + ε_d, where φ_dl = v_dl(state)·w_l(action) and ε_d ~ N(0, noise_d). With a Gaussian prior the
posterior is Gaussian, and an agent's transitions enter through sums only (Bishop, Pattern Recognition and Machine
Learning, 2006, section 3.3). Prior and noise are those that make the log of all agents most likely, found by
expectation maximization (Laird and Ware, Biometrics 38, 1982). Everything is in the model's own, possibly standardized,
units, and for each member by itself, as every member has a basis of its own. Nothing here knows of networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from persim_gym.types import BoolArray, FloatArray, IntArray

_LEAST_ITERATIONS, _MOST_ITERATIONS = 30, 500
"""Long logs need few; short ones, and agents that are nearly alike, hundreds."""
_CONVERGED = 1e-3
"""Relative change of prior and noise in an iteration that is the last one if it changed nothing more."""
ASSUMED_DEVIATION = 0.3
"""Standard deviation of the factors, relative to their size, as long as the agents do not show it."""
_TINY = 1e-100
_LEAST_DEVIATION = 1e-6
"""Smallest standard deviation of the prior in any direction, and of the noise, relative to the size of factors and
changes; keeps both positive where all agents are alike or the model is exact."""


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    """What transitions say of their agents' factors: sums over each agent's transitions, coordinate by coordinate.

    These are the sufficient statistics of the linear regression of changes on φ (module docstring).
    """

    grams: FloatArray
    """(M, N, D, r, r): Σ φ φᵀ."""
    products: FloatArray
    """(M, N, D, r): Σ φ·change."""
    squares: FloatArray
    """(M, N, D): Σ change²."""
    counts: IntArray
    """(N,): transitions."""

    def of_agents(self, agents: IntArray) -> SufficientStatistics:
        """Return those of some agents (n,)."""
        sums = (self.grams[:, agents], self.products[:, agents], self.squares[:, agents])
        return SufficientStatistics(*sums, self.counts[agents])


@dataclass(frozen=True, eq=False)
class Prior:
    """The distribution of the factor of an agent about which nothing is known, and the noise of the changes."""

    mean: FloatArray
    """(M, r)."""
    covariance: FloatArray
    """(M, r, r)."""
    noise: FloatArray
    """(M, D): variance of a change around the model's; infinite for a coordinate that says nothing of the factors."""
    num_agents: int | None = None
    """From how many agents it was learned, if that is known; an ensemble may have lost some since, or gained others."""

    @classmethod
    def estimate(cls, statistics: SufficientStatistics, factors: FloatArray, informative: BoolArray) -> Prior:
        """Return the most likely prior and noise for the agents' statistics.

        Fewer than 2 (r + 1) agents do not tell a covariance; agents that nobody saw, of a spread of 0.3 times the size
        of the factors, make up that number.

        Args:
            statistics: of a sample of agents.
            factors: (M, N, r) of these agents, to begin with.
            informative: (D,) which coordinates say anything of the factors: those whose changes differ
                (`persim_gym.model.normalizer.varies`). One that always changes alike is fitted best by no factors at
                all, and would draw them there.

        """
        members = [_estimate_member(statistics, factors, informative, member) for member in range(len(factors))]
        return cls(*(np.stack(parts) for parts in zip(*members, strict=True)), num_agents=factors.shape[1])

    @property
    def noise_of_predictions(self) -> FloatArray:
        """(M, D): the noise, none for a coordinate that says nothing of the factors."""
        return np.where(np.isfinite(self.noise), self.noise, 0.0)


@dataclass(frozen=True, eq=False)
class FactorPosterior:
    """Gaussian posteriors of N agents' factors in every member; made by `persim_gym.refit_factors`.

    Kept as the prior and, of each agent, the natural parameters of what is known beyond it. They add up: whatever is
    learned of an agent, in whatever order, is one sum.
    """

    prior: Prior
    information: FloatArray
    """(M, N, r, r): Σ over transitions and coordinates of φ φᵀ / noise."""
    information_vector: FloatArray
    """(M, N, r): Σ over transitions and coordinates of φ·change / noise."""
    num_transitions: IntArray
    """(N,) int64: how many of each agent's transitions are in the sums."""

    @classmethod
    def of(cls, prior: Prior, statistics: SufficientStatistics) -> FactorPosterior:
        """Return the posteriors of agents of whom nothing is known but their transitions."""
        noise = prior.noise[:, None, :, None]
        return cls(
            prior,
            (statistics.grams / noise[..., None]).sum(2),
            (statistics.products / noise).sum(2),
            np.asarray(statistics.counts, np.int64),
        )

    def moments(self, agents: Sequence[int] | IntArray) -> tuple[FloatArray, FloatArray]:
        """Return mean (M, n, r) and covariance (M, n, r, r) of the factors of some agents."""
        chosen = np.asarray(agents, np.int64)
        return posterior_moments(
            self.prior.mean[:, None],
            self.prior.covariance[:, None],
            self.information[:, chosen],
            self.information_vector[:, chosen],
        )

    def draw(self, agents: Sequence[int] | IntArray, rng: np.random.Generator, count: int) -> FloatArray:
        """Return factors (count, M, n, r) of some agents, drawn from their posteriors, each member's by itself."""
        mean, covariance = self.moments(agents)
        root = np.linalg.cholesky(covariance)
        return mean + np.einsum("mnij,cmnj->cmni", root, rng.standard_normal((count, *mean.shape)))

    def with_members(self, members: Sequence[int]) -> FactorPosterior:
        """Return the posteriors in some of the members only."""
        chosen = list(members)
        prior = replace(
            self.prior,
            mean=self.prior.mean[chosen],
            covariance=self.prior.covariance[chosen],
            noise=self.prior.noise[chosen],
        )
        return FactorPosterior(prior, self.information[chosen], self.information_vector[chosen], self.num_transitions)

    def with_agents(self, agents: Sequence[int | None]) -> FactorPosterior:
        """Return the posteriors of some of the agents, in the order given; None for one of whom nothing is known."""
        chosen = [0 if agent is None else agent for agent in agents]
        unknown = [agent is None for agent in agents]
        information, vector = self.information[:, chosen], self.information_vector[:, chosen]
        counts = self.num_transitions[chosen]
        information[:, unknown], vector[:, unknown], counts[unknown] = 0, 0, 0
        return FactorPosterior(self.prior, information, vector, counts)

    def with_information(self, other: FactorPosterior, agents: IntArray) -> FactorPosterior:
        """Return the posteriors with what ``other`` knows of its n agents added to ``agents`` (n,) of this one."""
        information, information_vector = self.information.copy(), self.information_vector.copy()
        counts = self.num_transitions.copy()
        information[:, agents] += other.information
        information_vector[:, agents] += other.information_vector
        counts[agents] += other.num_transitions
        return replace(self, information=information, information_vector=information_vector, num_transitions=counts)

    @staticmethod
    def concatenate(parts: Sequence[FactorPosterior]) -> FactorPosterior:
        """Return the posteriors of all parts' agents, one part after the other, under the first one's prior."""
        return FactorPosterior(
            parts[0].prior,
            np.concatenate([part.information for part in parts], axis=1),
            np.concatenate([part.information_vector for part in parts], axis=1),
            np.concatenate([part.num_transitions for part in parts]),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays."""
        prior_agents = len(self.num_transitions) if self.prior.num_agents is None else self.prior.num_agents
        return {
            "prior_mean": self.prior.mean,
            "prior_covariance": self.prior.covariance,
            "noise": self.prior.noise,
            "prior_agents": np.array([prior_agents]),
            "information": self.information,
            "weighted": self.information_vector,
            "num_transitions": self.num_transitions,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FactorPosterior:
        """Return what `to_arrays` wrote."""
        mean, covariance, noise = (np.array(arrays[name]) for name in ("prior_mean", "prior_covariance", "noise"))
        prior = Prior(mean, covariance, noise, int(arrays["prior_agents"][0]))
        return cls(prior, arrays["information"], arrays["weighted"], np.array(arrays["num_transitions"]))

    @staticmethod
    def array_shapes(members: int, agents: int, rank: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array of `to_arrays`."""
        return {
            "prior_mean": (members, rank),
            "prior_covariance": (members, rank, rank),
            "noise": (members, size),
            "prior_agents": (1,),
            "information": (members, agents, rank, rank),
            "weighted": (members, agents, rank),
            "num_transitions": (agents,),
        }


def posterior_moments(
    mean: FloatArray, covariance: FloatArray, information: FloatArray, information_vector: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return mean (…, r) and covariance (…, r, r) of u under the prior N(mean, covariance), updated.

    The log-likelihood is −½ uᵀ·information·u + information_vectorᵀ·u. The prior is whitened first, so that one with
    hardly any variance in some direction does no harm.
    """
    root = np.linalg.cholesky(covariance)
    whitened = np.einsum("...ji,...jk,...kl->...il", root, information, root, optimize=True)
    precision = np.eye(mean.shape[-1]) + 0.5 * (whitened + np.swapaxes(whitened, -1, -2))
    half = np.einsum("...ij,...jk->...ik", root, _inverse_root(precision))
    posterior = np.einsum("...ik,...jk->...ij", half, half)
    residual_vector = information_vector - np.einsum("...ij,...j->...i", information, mean)
    return mean + np.einsum("...ij,...j->...i", posterior, residual_vector), posterior


def _inverse_root(precision: FloatArray) -> FloatArray:
    """Return a root (…, r, r) of the inverse of precisions (…, r, r) that are at least 1 in every direction."""
    try:
        return np.linalg.inv(np.linalg.cholesky(precision)).swapaxes(-1, -2)
    except np.linalg.LinAlgError:  # some so large in one direction that the 1 of another is lost in rounding
        values, vectors = np.linalg.eigh(precision)
        return vectors / np.sqrt(np.maximum(values, 1))[..., None, :]


_Estimate = tuple[FloatArray, FloatArray, FloatArray]
"""Mean (r,), covariance (r, r) and noise (D,) of one member."""


def _estimate_member(
    statistics: SufficientStatistics, factors: FloatArray, informative: BoolArray, member: int
) -> _Estimate:
    """Return the prior and the noise that make the statistics most likely."""
    grams, products, squares = statistics.grams[member], statistics.products[member], statistics.squares[member]
    means = _rescaled(np.asarray(factors[member], np.float64), grams, products, squares)
    total = max(int(statistics.counts.sum()), 1)
    size = max(float((means**2).mean()), _TINY) * np.eye(means.shape[1])
    mean_squares = squares.sum(0) / total
    least_noise = _LEAST_DEVIATION**2 * np.maximum(mean_squares, _TINY)
    # A covariance of r factors needs more than r agents. Ones with spread alike in all directions make up the number:
    # an inverse Wishart prior, but one that leaves the estimate to the agents where there are enough.
    num_pseudo_agents = max(2 * (len(size) + 1) - len(means), 0)

    def maximize(means: FloatArray, covariances: FloatArray) -> _Estimate:
        """Return the prior and the noise that are most likely given the agents' posteriors."""
        mean = means.mean(0)
        second = covariances + np.einsum("ni,nj->nij", means, means)
        centred = means - mean
        covariance = covariances.mean(0) + np.einsum("ni,nj->ij", centred, centred) / len(means)
        pseudo_share = num_pseudo_agents / (len(means) + num_pseudo_agents)
        covariance += (ASSUMED_DEVIATION**2 * size - covariance) * pseudo_share
        residual = squares - 2 * np.einsum("ndi,ni->nd", products, means) + np.einsum("ndij,nij->nd", grams, second)
        noise = np.where(informative, np.maximum(residual.sum(0) / total, least_noise), np.inf)
        return mean, covariance + _LEAST_DEVIATION**2 * size, noise

    # The factors may all be alike to begin with, from where expectation maximization would not come away.
    alike = np.broadcast_to(ASSUMED_DEVIATION**2 * size, (len(means), *size.shape))
    found = maximize(means, alike)
    for iteration in range(_MOST_ITERATIONS):
        (mean, covariance, noise), before = found, found
        information = np.einsum("ndij,d->nij", grams, 1 / noise)
        information_vector = np.einsum("ndi,d->ni", products, 1 / noise)
        found = maximize(*posterior_moments(mean, covariance, information, information_vector))
        if iteration + 1 >= _LEAST_ITERATIONS and _change(before, found) < _CONVERGED:
            break
    return found


def _rescaled(factors: FloatArray, grams: FloatArray, products: FloatArray, squares: FloatArray) -> FloatArray:
    """Return factors (N, r) times the number with which they explain the changes best.

    Those of a training that was cut short are too small, and expectation maximization takes long to make them larger.
    """
    weights = 1 / np.maximum(squares.sum(0), _TINY)  # coordinates differ in size
    explained = np.einsum("ndi,ni,d->", products, factors, weights)
    size = np.einsum("ndij,ni,nj,d->", grams, factors, factors, weights, optimize=True)
    scale = explained / size if size > 0 else 1.0
    return factors * (scale if np.isfinite(scale) and scale > 1 else 1.0)


def _change(before: _Estimate, after: _Estimate) -> float:
    """Return the largest change of mean and covariance, relative to the factors' deviations, and of the noise."""
    deviation = np.sqrt(np.diag(before[1]))
    mean = np.abs(after[0] - before[0]) / deviation
    covariance = np.abs(after[1] - before[1]) / np.outer(deviation, deviation)
    informative = np.isfinite(before[2])
    noise = np.abs(after[2][informative] / before[2][informative] - 1)
    return float(max(mean.max(), covariance.max(), noise.max(initial=0.0)))
