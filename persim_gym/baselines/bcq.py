"""BCQ: Q-learning kept to actions like the logged ones (Fujimoto et al., 2019), by d3rlpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from persim_gym.baselines.offline import OfflinePolicy
from persim_gym.baselines.offline_training import PAPER_STEPS, Training, fit_policy
from persim_gym.data.trajectories import Trajectories
from persim_gym.extras import d3rlpy
from persim_gym.tasks import Task


def fit_bcq(
    trajectories: Trajectories,
    *,
    agent: int | str | None = None,
    task: str | Task | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    steps: int = PAPER_STEPS,
    callback: Callable[[OfflinePolicy, int], None] | None = None,
    callback_every: int = 10_000,
    select: Callable[[OfflinePolicy], float] | None = None,
    patience: int | None = None,
    **settings: Any,
) -> OfflinePolicy:
    """Learn a policy from a log with d3rlpy's discrete or continuous BCQ.

    Args:
        trajectories: the log.
        agent: index or label of the agent whose own trajectories are used ("BCQ-A"); everyone's if None ("BCQ-P").
        task: the task that the log was recorded in; by default the one named in it.
        seed: of the initial weights and the batches.
        device: "auto", "cpu", "cuda", … . It is d3rlpy's default, not "auto" as in `persim_gym.fit`: a seed so gives
            the same policy on a machine with a GPU and on one without.
        checkpoint: a file name; unfinished training is kept beside it and the same call continues where it stopped.
        progress: whether to show a bar.
        steps: gradient steps; the paper's 550,000 take an hour or more.
        callback: called with the policy and the steps done, for learning curves.
        callback_every: steps between its calls, and between those of ``select``.
        select: a score of the policy, the higher the better, such as its return in the agent's simulator; the weights
            that scored best are returned instead of the last.
        patience: training ends before ``steps`` when so many scores in a row stay at or below the best; never if None.
        **settings: to change in d3rlpy's ``DiscreteBCQConfig`` or ``BCQConfig``; its scalers are refused.

    Raises:
        InvalidDataError: too little data, no terminal flags, no rewards, or a log that does not fit the task.
        InvalidArgumentError: a setting out of its range, or fewer steps than the checkpoint has.
        UnknownNameError: there is no such agent, task or setting.
        TrainingDivergedError: the weights are no longer finite.
        MissingExtraError: d3rlpy is not installed.
        FileFormatError: the checkpoint is damaged, or of another run.

    """
    training = Training(
        seed=seed, device=device, checkpoint=checkpoint, progress=progress, steps=steps, callback=callback,
        callback_every=callback_every, select=select, patience=patience,
    )  # fmt: skip
    return fit_policy(trajectories, (discrete_config, continuous_config), settings, training, agent=agent, task=task)


def discrete_config() -> Any:
    """Return the settings of the authors' code for discrete actions.

    What d3rlpy does otherwise stays: its target network is replaced at once, here every 200 steps, where theirs follows
    by Polyak averaging with τ = 0.005; its penalty β is on the squares of the imitator's log-probabilities, theirs on
    those of the logits before they are normalized.
    """
    return d3rlpy().algos.DiscreteBCQConfig(
        batch_size=64,
        learning_rate=3e-4,
        action_flexibility=0.3,
        beta=0.01,
        share_encoder=False,
        target_update_interval=200,
    )


def continuous_config() -> Any:
    """Return the settings of the authors' code for continuous actions.

    What d3rlpy does otherwise stays: it acts, too, with the best of ``n_action_samples`` candidates, where the authors'
    code takes 100; its imitator's actions are not squashed; and it keeps the logarithm of the imitator's standard
    deviation within −20 … 2, theirs within −4 … 15.
    """
    encoders = d3rlpy().models.encoders.VectorEncoderFactory
    return d3rlpy().algos.BCQConfig(
        actor_learning_rate=1e-3,
        critic_learning_rate=1e-3,
        imitator_learning_rate=1e-3,
        actor_encoder_factory=encoders([400, 300]),
        critic_encoder_factory=encoders([400, 300]),
        imitator_encoder_factory=encoders([750, 750]),
        batch_size=100,
        lam=0.75,
        action_flexibility=0.05,
        beta=0.5,
        n_action_samples=10,
        update_actor_interval=1,
    )
