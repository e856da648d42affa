"""What a log says of the agents' factors: the sums over transitions that posteriors are made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device, resolve_device
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.factorization import agent_features, member_actions
from persim_gym.model.posterior import FactorPosterior, Prior, SufficientStatistics
from persim_gym.threads import limited_threads
from persim_gym.types import IntArray

AGENTS_AT_ONCE = 5000
"""Agents whose statistics are in memory at the same time."""
_BATCH = 512
"""Rows of which the features are computed at once; with all members they about fill the processor's cache."""


def sampled_agents(count: int) -> IntArray:
    """Return the indices of the agents, evenly spaced, that a prior is estimated from: all, or some thousand."""
    return np.unique(np.linspace(0, count - 1, AGENTS_AT_ONCE).astype(np.int64))


def posterior_given(
    ensemble: Ensemble, log: Trajectories, prior: Prior, rows: IntArray | None = None, *, device: str = "cpu"
) -> FactorPosterior:
    """Return what a log says of its agents, some thousand agents at a time."""
    blocks = [
        FactorPosterior.of(prior, sufficient_statistics(ensemble, log, rows, agents=agents, device=device))
        for agents in np.split(np.arange(log.num_agents), range(AGENTS_AT_ONCE, log.num_agents, AGENTS_AT_ONCE))
    ]
    return FactorPosterior.concatenate(blocks)


def sufficient_statistics(
    ensemble: Ensemble,
    trajectories: Trajectories,
    rows: IntArray | None = None,
    *,
    agents: IntArray | None = None,
    device: str = "cpu",
) -> SufficientStatistics:
    """Return what the agents' transitions say of their factors, in one pass over the data.

    A transition that a bound of the observation space cuts short is left out (`usable_rows`).

    Args:
        ensemble: its state and action encoders are used, not its agents' factors.
        trajectories: of any agents.
        rows: (n,) of the transitions to use; by default all.
        agents: (N,) ascending indices of those asked about; by default all of the log.
        device: to compute on.

    """
    members, size = ensemble.num_members, ensemble.task.observation_size
    columns, place = ensemble.config.rank + 1, resolve_device(device)
    asked = np.arange(trajectories.num_agents) if agents is None else agents
    sums = torch.zeros(len(asked), members * size, columns, columns, dtype=torch.float64, device=place)
    counts = np.zeros(len(asked), np.int64)
    rows = usable_rows(ensemble, trajectories, rows)
    if agents is not None:
        rows = rows[np.isin(trajectories.agents[rows], agents)]
    rows = rows[np.argsort(trajectories.agents[rows], kind="stable")]
    with torch.inference_mode(), limited_threads(ensemble.config.state_hidden):
        for part, features in _features(ensemble, trajectories, rows, place):
            places = np.searchsorted(asked, trajectories.agents[part])
            bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
                own = features[:, :, start:stop]
                sums[places[start]].baddbmm_(own, own.transpose(1, 2))
                counts[places[start]] += stop - start
    joint = np.moveaxis(sums.view(-1, members, size, columns, columns).cpu().numpy(), 0, 1)
    return SufficientStatistics(joint[..., :-1, :-1], joint[..., :-1, -1], joint[..., -1, -1], counts)


def standardized_batches(
    ensemble: Ensemble, log: Trajectories, rows: IntArray, device: torch.device, size: int
) -> Iterator[tuple[IntArray, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield rows (B,) and, as in `persim_gym.model.factorization`, states, actions, and changes (D, B) float64."""
    normalizer, members = ensemble.normalizer, ensemble.num_members
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        states, changes = normalizer.standardized(log.observations[part], log.next_observations[part])
        actions = torch.tensor(np.asarray(log.actions[part]), device=device)
        actions = member_actions(actions, members, ensemble.task.action_size).contiguous()
        inputs = torch.tensor(states.astype(np.float32), device=device).T.expand(members, -1, -1).contiguous()
        yield part, inputs, actions, torch.tensor(changes, device=device).T


def _features(
    ensemble: Ensemble, log: Trajectories, rows: IntArray, device: torch.device
) -> Iterator[tuple[IntArray, torch.Tensor]]:
    """Yield rows (B,) and φ, with the change as one more column: (M·D, r + 1, B) float64."""
    members = ensemble.num_members
    parameters = on_device(ensemble.parameters, device)
    for part, states, actions, targets in standardized_batches(ensemble, log, rows, device, _BATCH):
        features = agent_features(parameters, states, actions)
        size, batch = features.shape[1], features.shape[3]
        joint = torch.empty(members, size, features.shape[2] + 1, batch, dtype=torch.float64, device=device)
        joint[:, :, :-1], joint[:, :, -1] = features, targets
        yield part, joint.view(members * size, -1, batch)


def usable_rows(ensemble: Ensemble, log: Trajectories, rows: IntArray | None) -> IntArray:
    """Return the rows, all if None, in which no bound that the ensemble keeps states within cuts a change short.

    That is where a coordinate comes from between its bounds and ends on one. One that begins on a bound lives there,
    as a flag does, or is pressed against it. Nor is a bound of whole numbers a wall: it is one of the values that a
    count or a score takes, and to leave out the rows that get there would be to choose rows by their outcome.
    """
    chosen = np.arange(log.num_transitions) if rows is None else np.asarray(rows, np.int64)
    if ensemble.state_bounds is None:
        return chosen
    low, high = ensemble.state_bounds
    given, following = log.observations[chosen], log.next_observations[chosen]
    before, after = ((states > low) & (states < high) for states in (given, following))
    counts = ((given == np.round(given)) & (following == np.round(following))).all(axis=0)
    return chosen[~(before & ~after & ~counts).any(axis=1)]
