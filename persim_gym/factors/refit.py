"""The last layer of the state encoder and the agents' factors, refitted in turns after training, each in closed form.

Given everything else the model is linear in either. Gradient descent stops where noise, the decay of the weights and a
falling learning rate leave it; these steps go on from there, and their error is that of the hidden features alone. Mere
turns crawl along valleys in which both must change together, so each turn of the layer starts some way further along
its last change (Nesterov, Soviet Mathematics Doklady 27, 1983); the factors are solved for anew in any case.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device, resolve_device
from persim_gym.factors.inference import refit_factors
from persim_gym.factors.statistics import standardized_batches, usable_rows
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.factorization import head_inputs
from persim_gym.model.parameters import SKIP
from persim_gym.terminal import ProgressBar
from persim_gym.threads import limited_threads
from persim_gym.types import IntArray

_BATCH = 4096
_GROUPS_AT_ONCE = 64
_RIDGE = 1e-4
"""Of the least squares, relative to the features' mean square: it holds weights that the log says little of where they
were. Chosen, as CartPole's number of rounds, by the free-running errors of training agents."""


def refit_in_turns(
    ensemble: Ensemble,
    trajectories: Trajectories,
    *,
    rounds: int,
    rows: IntArray | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Ensemble:
    """Return the ensemble after so many rounds of `persim_gym.refit_factors` and `refit_state_head`.

    Args:
        ensemble: trained.
        trajectories: of exactly the ensemble's agents.
        rounds: how many.
        rows: (n,) of the transitions to use; by default all.
        device: to compute on.
        progress: whether to show a bar.

    """
    with ProgressBar(f"{ensemble.task.name}, refit", rounds, progress) as bar:
        before = head = _head(ensemble)
        for turn in range(rounds):
            momentum = turn / (turn + 3)
            further = {name: head[name] + np.float32(momentum) * (head[name] - before[name]) for name in head}
            ensemble = replace(ensemble, parameters={**ensemble.parameters, **further})
            ensemble = refit_factors(ensemble, trajectories, rows=rows, device=device)
            noise = ensemble.known_posterior().prior.noise_of_predictions
            ensemble = refit_state_head(ensemble, trajectories, rows=rows, device=device)
            before, head = head, _head(ensemble)
            bar.advance(f"noise {np.sqrt(noise.mean()):.3e}")
    return refit_factors(ensemble, trajectories, rows=rows, device=device)


def refit_state_head(
    ensemble: Ensemble, trajectories: Trajectories, *, rows: IntArray | None = None, device: str = "cpu"
) -> Ensemble:
    """Return the ensemble with the last layer of v, and its linear path, refitted by least squares on a log.

    The ridge is towards the weights there are. A posterior and a calibration, which are of other features, go.

    Args:
        ensemble: trained.
        trajectories: of exactly the ensemble's agents.
        rows: (n,) of the transitions to use; by default all.
        device: to compute on.

    """
    used = usable_rows(ensemble, trajectories, rows)
    parameters = {name: np.array(array) for name, array in ensemble.parameters.items()}
    if len(used) == 0:  # every transition ends on a bound
        return replace(ensemble, posterior=None, calibration=None)
    with torch.inference_mode(), limited_threads(ensemble.config.state_hidden):
        for member in range(ensemble.num_members):
            change = _solve(ensemble.with_members([member]), trajectories, used, resolve_device(device))
            for name, part in _unpacked(ensemble, change).items():
                parameters[name][member] += part
    return replace(ensemble, parameters=parameters, posterior=None, calibration=None)


def _head(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """Return the parameters of the last layer of v, and of its linear path."""
    last = len(ensemble.config.state_hidden)
    names = (f"state.{last}.weight", f"state.{last}.bias", SKIP)
    return {name: ensemble.parameters[name] for name in names if name in ensemble.parameters}


def _solve(member: Ensemble, log: Trajectories, rows: IntArray, device: torch.device) -> np.ndarray:
    """Return the change (D, r·J) of one member's last layer; J is hidden units, 1 and, with a linear path, D.

    With the features ψ of all rows as columns of Ψ it is (Ψ Ψᵀ + λI)⁻¹ Ψ·errors = Ψ (Ψᵀ Ψ + λI)⁻¹ errors; the smaller
    matrix of the two is solved for.
    """
    columns = sum(array[0].size for array in _head(member).values()) // member.task.observation_size
    if len(rows) < columns:
        features, errors = _features(member, log, rows, device)
        gram = features.T @ features
        gram.diagonal().add_(_RIDGE * gram.diagonal().sum() / columns)
        change = features @ torch.cholesky_solve(errors, torch.linalg.cholesky(gram))
    else:
        gram, slopes = _normal_equations(member, log, rows, device)
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
        change = torch.cholesky_solve(slopes, torch.linalg.cholesky(gram))
    return change.T.cpu().numpy()


def _features(member: Ensemble, log: Trajectories, rows: IntArray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ψ (r·J, n) and the errors (n, D) of some rows, float64."""
    parameters = on_device(member.parameters, device)
    features, errors = [], []
    for part, states, actions, changes in standardized_batches(member, log, rows, device, _BATCH):
        agents = torch.tensor(np.asarray(log.agents[part], np.int64), device=device)
        inputs, weights, predicted = (output[0] for output in head_inputs(parameters, states, agents, actions))
        features.append((weights[:, None] * inputs).flatten(0, 1).double())
        errors.append((changes - predicted).T)
    return torch.cat(features, dim=1), torch.cat(errors)


def _normal_equations(
    member: Ensemble, log: Trajectories, rows: IntArray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return Σ ψ ψᵀ (r·J, r·J) and Σ ψ·error (r·J, D) over some rows, for one member's features ψ = g ⊗ h.

    g and h are those of `head_inputs`. All transitions of an agent with the same action have the same g, so the
    products of h are summed over each such group first, which costs 1/r² of the products of ψ.
    """
    parameters = on_device(member.parameters, device)
    rank, size = member.config.rank, member.task.observation_size
    width = member.config.state_hidden[-1] + 1 + (size if SKIP in parameters else 0)
    upper = torch.triu_indices(rank, rank, device=device)
    gram = torch.zeros(upper.shape[1], width * width, dtype=torch.float64, device=device)
    slopes = torch.zeros(rank, width * size, dtype=torch.float64, device=device)
    squares = torch.empty(_GROUPS_AT_ONCE, width, width, device=device)
    products = torch.empty(_GROUPS_AT_ONCE, width, size, device=device)
    for part, states, actions, changes in standardized_batches(member, log, _grouped(log, rows), device, _BATCH):
        agents = torch.tensor(np.asarray(log.agents[part], np.int64), device=device)
        inputs, weights, predicted = (output[0] for output in head_inputs(parameters, states, agents, actions))
        errors = (changes - predicted).float()
        bounds = [*_group_starts(log, part), len(part)]
        # Products in single precision, their sums over the batches in double: what is lost is far below the ridge.
        batch_gram, batch_slopes = torch.zeros_like(gram, dtype=torch.float32), 0.0
        for first in range(0, len(bounds) - 1, _GROUPS_AT_ONCE):
            chosen = bounds[first : first + _GROUPS_AT_ONCE + 1]
            count = len(chosen) - 1
            for place, (start, stop) in enumerate(zip(chosen[:-1], chosen[1:], strict=True)):
                group = inputs[:, start:stop]
                torch.mm(group, group.T, out=squares[place])
                torch.mm(group, errors[:, start:stop].T, out=products[place])
            own = weights[:, chosen[:-1]]
            batch_gram.addmm_(own[upper[0]] * own[upper[1]], squares[:count].flatten(1))
            batch_slopes += own @ products[:count].flatten(1)
        gram += batch_gram
        slopes += batch_slopes
    whole = torch.empty(rank, rank, width, width, dtype=torch.float64, device=device)
    whole[upper[0], upper[1]] = whole[upper[1], upper[0]] = gram.view(-1, width, width)
    return whole.transpose(1, 2).reshape(rank * width, -1), slopes.view(rank * width, size)


def _grouped(log: Trajectories, rows: IntArray) -> IntArray:
    """Return the rows in an order that has those of one agent, and of one discrete action, together."""
    keys = (log.agents[rows],) if log.actions.ndim > 1 else (log.actions[rows], log.agents[rows])
    return rows[np.lexsort(keys)]


def _group_starts(log: Trajectories, rows: IntArray) -> list[int]:
    """Return the positions where agent or action is not that of the row before, the first among them."""
    keys = np.column_stack([log.agents[rows], log.actions[rows]])
    return [0, *(np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1).tolist()]


def _unpacked(ensemble: Ensemble, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return a matrix (D, r·J) as one member's parameters of `_head`."""
    parts, start, found = matrix.reshape(matrix.shape[0] * ensemble.config.rank, -1), 0, {}
    for name, array in _head(ensemble).items():
        found[name] = parts[:, start : start + array.shape[2]]
        start += array.shape[2]
    return found
