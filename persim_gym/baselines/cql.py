"""CQL: Q-learning that distrusts actions the log does not hold (Kumar et al., 2020), by d3rlpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from persim_gym.baselines.offline import OfflinePolicy
from persim_gym.baselines.offline_training import Training, fit_policy
from persim_gym.data.trajectories import Trajectories
from persim_gym.extras import d3rlpy
from persim_gym.tasks import Task

PAPER_STEPS = 550_000
"""The paper gives none for CQL; these are BCQ's."""


def fit_cql(
    trajectories: Trajectories,
    *,
    agent: int | str | None = None,
    task: str | Task | None = None,
    steps: int = PAPER_STEPS,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    callback: Callable[[OfflinePolicy, int], None] | None = None,
    callback_every: int = 10_000,
    select: Callable[[OfflinePolicy], float] | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> OfflinePolicy:
    """Learn a policy from a log with d3rlpy's discrete or continuous CQL.

    Args:
        trajectories: the log.
        agent: index or label of the agent whose own trajectories are used ("CQL-A"); everyone's if None ("CQL-P").
        task: what it is a log of; by default the task named in it.
        steps: gradient steps; 550,000 take hours.
        seed: of the initial weights and the batches.
        device: "auto", "cpu", "cuda", … .
        progress: whether to show a bar.
        callback: called with the policy and the steps done, for learning curves.
        callback_every: steps between its calls, and between those of ``select``.
        select: a score of the policy, the higher the better, such as its return in the agent's simulator; the weights
            that scored best are returned instead of the last.
        patience: training ends before ``steps`` when so many scores in a row stay at or below the best; never if None.
        checkpoint: a file name; unfinished training is kept beside it and the same call continues where it stopped.
        **settings: to change in d3rlpy's ``DiscreteCQLConfig`` or ``CQLConfig``.

    Raises:
        InvalidDataError: too little data, no terminal flags, no rewards, or a log that does not fit the task.
        InvalidArgumentError: a setting out of its range, or fewer steps than the checkpoint has.
        TrainingDivergedError: the weights are no longer finite.
        MissingExtraError: d3rlpy is not installed.
        FileFormatError: the checkpoint is of another run.

    """
    training = Training(
        steps=steps, seed=seed, device=device, progress=progress, callback=callback, callback_every=callback_every,
        select=select, patience=patience, checkpoint=checkpoint,
    )  # fmt: skip
    return fit_policy(trajectories, (discrete_config, continuous_config), settings, training, agent=agent, task=task)


def discrete_config() -> Any:
    """Return what the paper states (appendix D); the rest are d3rlpy's defaults, unchanged since the paper's time."""
    return d3rlpy().algos.DiscreteCQLConfig(batch_size=512, n_critics=3, alpha=1.0, learning_rate=1e-4)


def continuous_config() -> Any:
    """Return the same for continuous actions."""
    return d3rlpy().algos.CQLConfig(actor_learning_rate=3e-5, critic_learning_rate=3e-4, alpha_threshold=5.0)
