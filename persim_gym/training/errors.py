"""How far an ensemble's next states are from those of a log, and how far its members are from one another there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.factorization import predict
from persim_gym.model.normalizer import varies
from persim_gym.training.trainer import DeviceLog
from persim_gym.types import FloatArray, IntArray

_UNFAMILIAR = 0.01
"""Part of a log's own rows that may count as unfamiliar; each coordinate has an equal share of it."""


def familiar_disagreement(ensemble: Ensemble, trajectories: Trajectories) -> list[float]:
    """Return the members' disagreement (D,) that at most 1 % of a log's rows exceed, in any of their coordinates."""
    every = np.arange(trajectories.num_transitions)
    found = [predicted.std(0, correction=0) for predicted, _ in _changes(ensemble, trajectories, every)]
    share = _UNFAMILIAR / len(found[0])
    limits = np.quantile(torch.cat(found, dim=1).numpy(), 1 - share, axis=1, method="higher")
    rounding = np.finfo(np.float32).eps * np.abs(trajectories.observations).max(axis=0)  # of simulated states
    return (limits * ensemble.normalizer.change_scale + rounding).tolist()


def one_step_errors(ensemble: Ensemble, trajectories: Trajectories, rows: IntArray | None = None) -> np.ndarray:
    """Return the squared one-step error (M + 1, D), in squared units of the observation, averaged over some rows.

    The first M rows are the members', the last is that of their mean prediction.
    """
    rows = np.arange(trajectories.num_transitions) if rows is None else rows
    scale = torch.tensor(ensemble.normalizer.change_scale, dtype=torch.float64)
    members = ensemble.num_members
    total = torch.zeros(members + 1, trajectories.observations.shape[1], dtype=torch.float64)
    for predicted, true in _changes(ensemble, trajectories, rows):
        errors = (predicted - true).double()
        total += torch.cat([errors, errors.mean(0, keepdim=True)]).square().sum(2)
    return (total / len(rows) * scale**2).numpy()


def relative_error(squared: FloatArray, log: Trajectories) -> float:
    """Return the root mean over coordinates of squared errors (D,) / variance of the change: 1 for its mean.

    A coordinate whose change does not vary is left out; not a number if none does.
    """
    states = np.asarray(log.observations, np.float64)
    changes = np.asarray(log.next_observations, np.float64) - states
    differ = varies(changes, states)
    return float(np.sqrt(np.mean(squared[differ] / changes[:, differ].var(0)))) if differ.any() else float("nan")


def _changes(ensemble: Ensemble, trajectories: Trajectories, rows: IntArray) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the members' predicted and the true standardized changes, both (M, D, B), of some rows at a time."""
    columns = DeviceLog.of(trajectories, ensemble.task, ensemble.normalizer, torch.device("cpu"))
    parameters = on_device(ensemble.parameters, torch.device("cpu"))
    for states, agents, actions, changes in columns.batches(torch.as_tensor(rows), ensemble.num_members):
        yield predict(parameters, states, agents, actions), changes
