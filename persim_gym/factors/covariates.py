"""From covariates to agent factors: simulators of agents that were never seen (paper, appendix F.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from persim_gym.arguments import checked_seed, finite_number
from persim_gym.devices import with_torch_defaults
from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.factors.covariate_prior import factors_given_covariates, with_one
from persim_gym.factors.inference import check_knows_factors
from persim_gym.model.ensemble import BY_COVARIATES, Ensemble
from persim_gym.model.posterior import FactorPosterior
from persim_gym.tasks import Task
from persim_gym.types import BoolArray, FloatArray
from persim_gym.user_warnings import warn_user

KINDS = ("gp", "ridge", "mlp")
"""Gaussian process, Bayesian linear regression, and the paper's network."""
_LITTLE = 0.01
"""Part of the prior's variance from which an agent's factor counts as hardly known."""
_ENOUGH = 5
"""Agents for each coefficient of a linear map that the Gaussian process keeps in any case, the best known ones."""
_FAR = 0.25
"""Distance from the known agents, in widths of their range, from which a prediction is far."""
_LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_NOISES = np.logspace(-8, 1, 28)
_NEGLIGIBLE = 1e-4
_ROUNDING = 1e-6
"""Part of a covariate by which two may differ that are the same."""
_PENALTY = 1e-6
_MLP_WIDTH, _MLP_STEPS, _MLP_RATE, _MLP_DECAY = 64, 2000, 1e-3, 1e-4


class _Regression(Protocol):
    """Of outputs (N, O) on inputs (N, K), both standardized."""

    def predict(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return means (n, O) and variances (n, O) at inputs (n, K)."""
        ...


@dataclass(frozen=True, eq=False)
class CovariateMap:
    """A regression from covariates to the factors of every member; made by `fit_covariate_map`.

    Each member's factors are first turned into uncorrelated outputs of unit variance, which are regressed one by one.
    "gp" and "ridge" take the agents' posteriors, where there are some, with what the covariates say in the prior's mean
    (`persim_gym.factors.covariate_prior`): posterior means under a prior that is the same for all would be drawn
    together, and the less an agent is known the more. What of a factor stays unknown then counts as uncertainty of the
    prediction. "gp" leaves out agents of whom hardly anything is known: they would pull it to the straight line.
    """

    task: Task
    kind: str
    num_known: int
    """Agents it has learned from."""
    low: FloatArray
    """(K,): smallest covariates of these."""
    high: FloatArray
    """(K,): largest."""
    centre: FloatArray
    """(M, r): mean factor of these."""
    root: FloatArray
    """(M, r, r): factor = centre + root · outputs."""
    regression: _Regression
    unknown: FloatArray
    """(M, p, r, p, r) with p = K + 1: covariance of the coefficients of 1 and the covariates, beyond what the
    regression knows of, as the agents' factors are not known exactly."""

    def predict(self, covariates: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean (M, n, r) and covariance (M, n, r, r) of the factors of agents with covariates (n, K).

        Warns when an agent is far outside the range of those the map has learned from.
        """
        distances = self.distance(covariates)
        worst = int(distances.argmax())
        if np.isinf(distances[worst]):
            warn_user(
                f"{_named(self.task, covariates[worst])}: a covariate that all known agents have alike "
                f"({_named(self.task, self.low)} to {_named(self.task, self.high)}) differs, and what it does is not "
                "known: the simulator is that of an agent who has it, too",
            )
        elif distances[worst] > _FAR:
            warn_user(
                f"{_named(self.task, covariates[worst])} lies {distances[worst]:.2g} times the known agents' range "
                f"outside it ({_named(self.task, self.low)} to {_named(self.task, self.high)}): "
                "its simulator is an extrapolation",
            )
        members, rank = self.centre.shape
        inputs = _unit(covariates, self.low, self.high)
        outputs, variances = (a.reshape(-1, members, rank) for a in self.regression.predict(inputs))
        mean = self.centre[:, None] + np.einsum("mij,nmj->mni", self.root, outputs)
        covariance = np.einsum("mij,nmj,mkj->mnik", self.root, variances, self.root)
        design = with_one(inputs)
        return mean, covariance + np.einsum("np,mpiqj,nq->mnij", design, self.unknown, design, optimize=True)

    def distance(self, covariates: FloatArray) -> FloatArray:
        """Return how far (n,) agents with covariates (n, K) lie outside the known range, in widths of that range.

        It is infinite where a covariate that never varied differs by more than rounding.
        """
        excess = np.maximum(self.low - covariates, covariates - self.high)
        alone = self.high <= self.low
        excess = np.where(alone & (excess <= _ROUNDING * np.abs(self.high)), 0.0, excess)
        with np.errstate(divide="ignore"):  # by a range of 0
            return np.divide(excess, self.high - self.low, out=np.zeros_like(excess), where=excess > 0).max(axis=1)


@with_torch_defaults
def fit_covariate_map(ensemble: Ensemble, *, kind: str = "gp", fraction: float = 1.0, seed: int = 0) -> CovariateMap:
    """Learn the map from covariates to factors from the ensemble's own agents.

    Args:
        ensemble: whose log recorded the covariates of at least some agents. Agents of whom a map has predicted anything
            are no data, even where their transitions are known, too.
        kind: "gp", a Gaussian process with a linear trend; "ridge", linear; or "mlp", the paper's network with two
            hidden layers of 64 (its training is not in the paper: Adam, 2000 steps on all agents, weight decay 1e-4).
            The network takes the factors as they are, as the paper's does, and "gp" and "ridge" their posteriors.
        fraction: p, the part of the agents with known covariates to learn from, drawn at random (paper, appendix F.5).
        seed: seed of the draw and of the network.

    Raises:
        UnknownNameError: there is no such kind.
        MissingStatisticsError: the model is not one of PerSim's.
        InvalidArgumentError: the fraction is not in (0, 1], too few covariates are known, or a seed below 0.

    """
    check_knows_factors(ensemble)
    seed = checked_seed(seed)
    if kind not in KINDS:
        raise UnknownNameError(f"no covariate map {kind!r}; there are {', '.join(KINDS)}")
    if finite_number("fraction", fraction, 0, above=True) > 1:
        raise InvalidArgumentError(f"fraction={fraction} must be above 0 and at most 1")
    chosen = _known_agents(ensemble, fraction, seed)
    if kind == "gp" and ensemble.posterior is not None:
        chosen = _well_known(ensemble.posterior, chosen, _ENOUGH * (len(ensemble.task.covariates) + 1))
    covariates = np.asarray(ensemble.covariates)[chosen]
    low, high = covariates.min(0), covariates.max(0)
    inputs = _unit(covariates, low, high)
    if kind == "mlp" or ensemble.posterior is None:
        factors = ensemble.agent_factors(chosen).astype(np.float64)
        members, _, rank = factors.shape
        unknown = np.zeros((members, inputs.shape[1] + 1, rank, inputs.shape[1] + 1, rank))
    else:
        factors, unknown = factors_given_covariates(ensemble.posterior.with_agents(chosen.tolist()), inputs)
    centre = factors.mean(1)
    centred = factors - centre[:, None]
    values, vectors = np.linalg.eigh(np.einsum("mni,mnj->mij", centred, centred) / len(chosen))
    deviation = np.sqrt(np.maximum(values, 1e-12 * np.maximum(values[:, -1:], 1e-100)))
    outputs = np.einsum("mni,mij->nmj", centred, vectors / deviation[:, None]).reshape(len(chosen), -1)
    if kind == "mlp":
        regression: _Regression = _Network(inputs, outputs, seed, members=len(centre))
    else:
        regression = (_GaussianProcess if kind == "gp" else _Ridge)(inputs, outputs)
    root = vectors * deviation[:, None]
    return CovariateMap(ensemble.task, kind, len(chosen), low, high, centre, root, regression, unknown)


def known_by_transitions_only(ensemble: Ensemble) -> BoolArray:
    """Return of which agents (N,) all that is known comes from transitions, and none of it from a covariate map."""
    predicted = set(ensemble.provenance.get(BY_COVARIATES, ()))
    own = np.array([label not in predicted for label in ensemble.agent_labels])
    return own if ensemble.posterior is None else own & (ensemble.posterior.num_transitions > 0)


def _known_agents(ensemble: Ensemble, fraction: float, seed: int) -> np.ndarray:
    """Return the indices of the agents to learn from."""
    covariates = np.nan if ensemble.covariates is None else ensemble.covariates
    known = np.flatnonzero(known_by_transitions_only(ensemble) & np.isfinite(covariates).all(axis=-1))
    count = round(fraction * len(known))
    least = len(ensemble.task.covariates) + 2
    if count < least or not ensemble.task.covariates:
        raise InvalidArgumentError(
            f"the covariates of {len(known)} of the ensemble's agents are known, and fraction={fraction} of them are "
            f"{count}; a map from covariates needs at least {least}: train on a log with covariates"
        )
    return np.sort(np.random.default_rng([seed, 2]).permutation(known)[:count])


def _well_known(posterior: FactorPosterior, agents: np.ndarray, enough: int) -> np.ndarray:
    """Return the agents but for those hardly known; those about as well known as the ``enough`` best ones all stay."""
    variances = np.einsum("mnii->mn", posterior.moments(agents)[1])
    unknown = (variances / np.einsum("mii->m", posterior.prior.covariance)[:, None]).mean(0)
    usual = np.sort(unknown)[min(enough, len(agents)) - 1]
    return agents[unknown <= max(_LITTLE, 10 * usual)]


def _width(low: FloatArray, high: FloatArray) -> FloatArray:
    return np.where(high > low, high - low, 1.0)


def _unit(covariates: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return covariates (n, K) scaled so that the known agents lie from −1 to 1; −1 where they are all alike."""
    return 2 * (np.where(high > low, covariates, low) - low) / _width(low, high) - 1


def _named(task: Task, values: FloatArray) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in zip(task.covariate_names, values, strict=True))


class _Ridge:
    """Bayesian linear regression with a flat prior but for a small penalty; the variance is that of Student's t."""

    def __init__(self, inputs: FloatArray, outputs: FloatArray) -> None:
        design = with_one(inputs)
        self._inverse = np.linalg.inv(design.T @ design + _PENALTY * len(inputs) * np.eye(design.shape[1]))
        self._weight = self._inverse @ design.T @ outputs
        freedom = max(len(inputs) - design.shape[1] - 2, 0.5)  # with two degrees or less t has no variance
        self._variance = ((outputs - design @ self._weight) ** 2).sum(0) / freedom

    def predict(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        design = with_one(inputs)
        leverage = np.einsum("ni,ij,nj->n", design, self._inverse, design)
        return design @ self._weight, (1 + leverage[:, None]) * self._variance


class _GaussianProcess:
    """Regression with kernel 1 + x·x′ + exp(−|x − x′|² / 2l²), times a variance, plus noise, an output at a time.

    Predictions are averaged over a grid of lengths and noises by their likelihood (Rasmussen and Williams, Gaussian
    Processes for Machine Learning, 2006, equation 5.8), as few agents leave much of it open; for each, the variance is
    integrated out under Jeffreys' prior, which gives Student's t with N degrees of freedom. One eigendecomposition a
    length serves all outputs and noises.
    """

    def __init__(self, inputs: FloatArray, outputs: FloatArray) -> None:
        self._inputs = inputs
        count = len(inputs)
        self._parts: list[tuple[float, FloatArray, FloatArray]] = []
        shape = (len(_LENGTHS), len(_NOISES), outputs.shape[1])
        likelihood, self._scale = np.empty(shape), np.empty(shape)
        for index, length in enumerate(_LENGTHS):
            values, vectors = np.linalg.eigh(_kernel(inputs, inputs, length))
            projected = vectors.T @ outputs
            self._parts.append((length, values, vectors))
            for place, noise in enumerate(_NOISES):
                spectrum = np.maximum(values, 0) + noise
                variance = np.maximum((projected**2 / spectrum[:, None]).mean(0), 1e-30)
                likelihood[index, place] = -0.5 * (count * np.log(variance) + np.log(spectrum).sum())
                self._scale[index, place] = variance * count / (count - 2)
        weight = np.exp(likelihood - likelihood.max((0, 1)))
        weight[weight < _NEGLIGIBLE] = 0
        self._outputs, self._weight = outputs, weight / weight.sum((0, 1))

    def predict(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean, square, variance = np.zeros((3, len(inputs), self._outputs.shape[1]))
        own = 2 + (inputs**2).sum(1)
        for index, (length, values, vectors) in enumerate(self._parts):
            across = _kernel(inputs, self._inputs, length) @ vectors
            for place in np.flatnonzero(self._weight[index].any(axis=1)):
                weight = self._weight[index, place]
                chosen = np.flatnonzero(weight)
                spectrum = np.maximum(values, 0) + _NOISES[place]
                found = (across / spectrum) @ (vectors.T @ self._outputs[:, chosen])
                left = np.maximum(own - (across**2 / spectrum).sum(1), 0) + _NOISES[place]
                mean[:, chosen] += weight[chosen] * found
                square[:, chosen] += weight[chosen] * found**2
                variance[:, chosen] += weight[chosen] * left[:, None] * self._scale[index, place, chosen]
        return mean, variance + np.maximum(square - mean**2, 0)  # within and between


class _Network:
    """The paper's: a network for each member's factors; the variance is that of its residuals."""

    def __init__(self, inputs: FloatArray, outputs: FloatArray, seed: int, *, members: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = (inputs.shape[1], _MLP_WIDTH, _MLP_WIDTH, outputs.shape[1] // members)
        self._layers = [
            tuple(
                (torch.rand(members, rows, after, generator=generator) * 2 - 1) * before**-0.5 for rows in (before, 1)
            )
            for before, after in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        x = torch.tensor(inputs, dtype=torch.float32)
        y = torch.tensor(outputs, dtype=torch.float32).view(len(inputs), members, -1).transpose(0, 1)
        parameters = [tensor.requires_grad_() for layer in self._layers for tensor in layer]
        optimizer = torch.optim.Adam(parameters, lr=_MLP_RATE, weight_decay=_MLP_DECAY)
        for _ in range(_MLP_STEPS):
            optimizer.zero_grad()
            (members * torch.nn.functional.mse_loss(self._forward(x), y)).backward()
            optimizer.step()
        self._variance = ((self._apply(inputs) - outputs) ** 2).mean(0)

    def predict(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = self._apply(inputs)
        return mean, np.broadcast_to(self._variance, mean.shape)

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the members' outputs (M, n, r) at inputs (n, K)."""
        hidden = inputs.expand(len(self._layers[0][0]), -1, -1)
        for weight, bias in self._layers[:-1]:
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        return torch.baddbmm(self._layers[-1][1], hidden, self._layers[-1][0])

    def _apply(self, inputs: FloatArray) -> FloatArray:
        with torch.inference_mode():
            outputs = self._forward(torch.tensor(inputs, dtype=torch.float32)).transpose(0, 1)
        return outputs.reshape(len(inputs), -1).double().numpy()


def _kernel(one: FloatArray, other: FloatArray, length: float) -> FloatArray:
    squared = ((one[:, None] - other[None]) ** 2).sum(2)
    return 1 + one @ other.T + np.exp(-0.5 * squared / length**2)
