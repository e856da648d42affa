"""The last layer of the state encoder and the agents' factors, refitted in turns after training, each in closed form.

Given everything else the model is linear in either. Gradient descent stops where noise, the decay of the weights and a
falling learning rate leave it; these steps go on from there, and their error is that of the hidden features alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from persim_gym.data import Trajectories
from persim_gym.devices import resolve_device, threads_for
from persim_gym.factors import refit_factors, standardized_batches, usable_rows
from persim_gym.gradients import head_inputs, num_layers
from persim_gym.model import SKIP, Ensemble
from persim_gym.terminal import ProgressBar
from persim_gym.types import IntArray

_BATCH = 4096
_GROUPS_AT_ONCE = 64
_RIDGE = 1e-4
"""Of the least squares, relative to the features' mean square: it holds weights that the log says little of where they
were. Chosen, as the number of rounds, by the errors of training agents (benchmarks/settings.py)."""


def refit_in_turns(
    ensemble: Ensemble,
    trajectories: Trajectories,
    *,
    rounds: int,
    rows: IntArray | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Ensemble:
    """Return the ensemble after so many rounds of `refit_state_head` and `persim_gym.refit_factors`.

    Args:
        ensemble: trained.
        trajectories: of exactly the ensemble's agents.
        rounds: how many.
        rows: (n,) of the transitions to use; by default all.
        device: to compute on.
        progress: whether to show a bar.

    """
    with ProgressBar(f"{ensemble.task.name}, refit", rounds, progress) as bar:
        for _ in range(rounds):
            ensemble = refit_state_head(ensemble, trajectories, rows=rows, device=device)
            ensemble = refit_factors(ensemble, trajectories, rows=rows, device=device)
            noise = ensemble.known_posterior().prior.noise
            bar.advance(f"noise {np.sqrt(noise.mean()):.3e}")
    return ensemble


def refit_state_head(
    ensemble: Ensemble, trajectories: Trajectories, *, rows: IntArray | None = None, device: str = "cpu"
) -> Ensemble:
    """Return the ensemble with the last layer of v, and its linear path, refitted by least squares on a log.

    The ridge is towards the weights there are. A posterior, which is of other features, goes.

    Args:
        ensemble: trained.
        trajectories: of exactly the ensemble's agents.
        rows: (n,) of the transitions to use; by default all.
        device: to compute on.

    """
    used = usable_rows(ensemble, trajectories, rows)
    parameters = {name: np.array(array) for name, array in ensemble.parameters.items()}
    with torch.inference_mode(), threads_for(ensemble.config.state_hidden):
        for member in range(ensemble.num_members):
            change = _solve(ensemble.with_members([member]), trajectories, used, resolve_device(device))
            for name, part in _unpacked(ensemble, change).items():
                parameters[name][member] += part
    return replace(ensemble, parameters=parameters, posterior=None)


def _solve(member: Ensemble, log: Trajectories, rows: IntArray, device: torch.device) -> np.ndarray:
    """Return the change (D, r·K) of one member's last layer; K is hidden units, 1 and, with a linear path, D.

    Of the features g ⊗ h of `head_inputs` g is the same in all transitions of an agent with the same action. So the
    products of h are summed over each such group first, which costs 1/r² of the products of the features.
    """
    parameters = {name: torch.tensor(np.asarray(array), device=device) for name, array in member.parameters.items()}
    rank, size = member.config.rank, member.task.observation_size
    width = member.config.state_hidden[-1] + 1 + (size if SKIP in parameters else 0)
    gram = torch.zeros(rank * rank, width * width, dtype=torch.float64, device=device)
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
            pairs = (own[:, None] * own).view(rank * rank, -1)
            batch_gram.addmm_(pairs, squares[:count].flatten(1))
            batch_slopes += own @ products[:count].flatten(1)
        gram += batch_gram
        slopes += batch_slopes
    gram = gram.view(rank, rank, width, width).transpose(1, 2).reshape(rank * width, -1)
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, slopes.view(rank * width, size)).T.cpu().numpy()


def _grouped(log: Trajectories, rows: IntArray) -> IntArray:
    """Return the rows in an order that has those of one agent, and of one discrete action, together."""
    keys = (log.agents[rows],) if log.actions.ndim > 1 else (log.actions[rows], log.agents[rows])
    return rows[np.lexsort(keys)]


def _group_starts(log: Trajectories, rows: IntArray) -> list[int]:
    """Return the positions where agent or action is not that of the row before, the first among them."""
    keys = np.column_stack([log.agents[rows], log.actions[rows]])
    return [0, *(np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1).tolist()]


def _unpacked(ensemble: Ensemble, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return a matrix (D, r·K) as one member's parameters."""
    last = num_layers(ensemble.parameters, "state") - 1
    parts = matrix.reshape(matrix.shape[0] * ensemble.config.rank, -1)
    width = ensemble.parameters[f"state.{last}.weight"].shape[2]
    found = {f"state.{last}.weight": parts[:, :width], f"state.{last}.bias": parts[:, width : width + 1]}
    if SKIP in ensemble.parameters:
        found[SKIP] = parts[:, width + 1 :]
    return found
