"""Which members to keep: those that stay closest to the log when they run freely.

Members of equal one-step error differ by ten to a hundred times when they run freely, and one that diverges ruins the
mean of all. The error along the log's own segments shows which.
"""

from __future__ import annotations

import numpy as np

from persim_gym.data.segments import Segments
from persim_gym.data.trajectories import Trajectories
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.normalizer import varies
from persim_gym.types import FloatArray, IntArray

_MAX_SEGMENTS = 512
_HORIZON = 50


def free_running_errors(ensemble: Ensemble, trajectories: Trajectories, *, rows: IntArray | None = None) -> FloatArray:
    """Return each member's error (M,) along segments of a log of its agents, of up to 50 steps, given the actions.

    It is the mean over segments of the root mean squared error over steps and coordinates, each coordinate in units of
    its standard deviation over the log. There is a segment of each of up to 512 episodes; where episodes are fewer,
    long ones have several, still 512 at most. A member that diverges to infinity has error infinity.

    Args:
        ensemble: of the members.
        trajectories: the log.
        rows: of the transitions whose next states are scored; by default all. Segments run through the others, too.

    """
    segments = _segments(trajectories, np.random.default_rng(0))
    starts, steps = segments.starts, segments.rows
    simulator = ensemble.simulator(agents=[trajectories.agent_labels[agent] for agent in trajectories.agents[starts]])
    predicted = simulator.rollout(trajectories.observations[starts], trajectories.actions[steps])
    observations = np.asarray(trajectories.observations, np.float64)
    scale = np.where(varies(observations), observations.std(axis=0), 1.0)
    true = np.asarray(trajectories.next_observations, np.float64)[steps]
    scored = segments.inside if rows is None else segments.inside & np.isin(steps, rows)
    predicted = np.where(scored[:, :, None], predicted, true)  # zero times infinity is not zero
    with np.errstate(over="ignore", invalid="ignore"):
        squared = ((predicted - true) / scale) ** 2
        segment = np.sqrt(squared.mean(axis=3).sum(axis=2) / np.maximum(scored.sum(axis=1), 1))
    return np.nan_to_num(segment.mean(axis=1), nan=np.inf)


def best_members(
    ensemble: Ensemble, trajectories: Trajectories, count: int, *, rows: IntArray | None = None
) -> Ensemble:
    """Return the ensemble of the ``count`` members with the lowest free-running error (over some rows)."""
    order = np.argsort(free_running_errors(ensemble, trajectories, rows=rows), kind="stable")
    return ensemble.with_members(sorted(int(member) for member in order[:count]))


def _segments(log: Trajectories, rng: np.random.Generator) -> Segments:
    """Return up to 512 segments, as many of each episode as there is room for, at random without overlap."""
    episodes = np.arange(log.num_episodes)
    if len(episodes) > _MAX_SEGMENTS:
        episodes = np.sort(rng.choice(episodes, _MAX_SEGMENTS, replace=False))
    counts = np.clip(log.episode_lengths[episodes] // _HORIZON, 1, _MAX_SEGMENTS // len(episodes))
    episodes = np.repeat(episodes, counts)
    lengths = np.minimum(log.episode_lengths[episodes], _HORIZON)
    room = log.episode_lengths[episodes] - np.repeat(counts, counts) * lengths
    gaps = rng.integers(0, room + 1)  # rows before a segment that are in none, once they are in order
    gaps = gaps[np.lexsort((gaps, episodes))]
    place = np.arange(len(episodes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Segments(log.episode_starts[episodes] + gaps + place * lengths, lengths)
