"""`mbrl` 0.2.0 like for like: a deterministic ensemble of 5 with one hidden layer of 256, 5 particles.

    pip install --no-deps mbrl==0.2.0 && pip install hydra-core omegaconf gym termcolor

Its models know no agents, so its network is smaller: an advantage it is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from persim_gym import Task, Trajectories


def available() -> bool:
    """Whether mbrl can be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mbrl.models  # noqa: F401
            import mbrl.util.replay_buffer  # noqa: F401
    except ImportError:
        return False
    return True


def _model(task: Task, action_size: int) -> Any:
    import mbrl.models

    size = task.observation_size
    network = mbrl.models.GaussianMLP(
        size + action_size,
        size,
        torch.device("cpu"),
        num_layers=2,
        ensemble_size=5,
        hid_size=256,
        deterministic=True,
        propagation_method="fixed_model",
    )
    return mbrl.models.OneDTransitionRewardModel(network, target_is_delta=True, normalize=False, learned_rewards=False)


def shooting_decision(task: Task, start: np.ndarray, rng: np.random.Generator) -> Callable[[], object]:
    """Return one decision of random shooting, 1000 candidates of 50 steps, by `ModelEnv.evaluate_action_sequences`."""
    import mbrl.models

    goal = task.objective

    def reward(actions: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return goal.reward(following, actions, following)[:, None]

    def terminated(actions: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        if goal.terminated is None:
            return torch.zeros(len(following), 1, dtype=torch.bool)
        return goal.terminated(following)[:, None]

    space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)  # its models take a discrete action as a number

    class Env(gymnasium.Env):
        observation_space, action_space = task.observation_space, space

    model_env = mbrl.models.ModelEnv(Env(), _model(task, 1), terminated, reward, torch.Generator())

    def decide() -> object:
        candidates = torch.as_tensor(rng.integers(task.action_size, size=(1000, 50, 1)), dtype=torch.float32)
        scores = model_env.evaluate_action_sequences(candidates, np.asarray(start, np.float32), num_particles=5)
        return candidates[scores.argmax(), 0]

    return decide


def training_epoch(log: Trajectories, task: Task, batch_size: int) -> Callable[[], object]:
    """Return an epoch of its trainer, every member in its own order."""
    import mbrl.models
    import mbrl.types
    import mbrl.util.replay_buffer

    count = log.num_transitions
    batch = mbrl.types.TransitionBatch(
        np.asarray(log.observations, np.float32),
        np.asarray(log.actions, np.float32).reshape(count, -1),
        np.asarray(log.next_observations, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, bool),
        np.zeros(count, bool),
    )
    model = _model(task, batch.act.shape[1])
    trainer = mbrl.models.ModelTrainer(model, optim_lr=1e-3, weight_decay=0.0)

    def epoch() -> object:
        rows = mbrl.util.replay_buffer.BootstrapIterator(batch, batch_size, 5, shuffle_each_epoch=True)
        return trainer.train(rows, num_epochs=1, evaluate=False, silent=True)

    return epoch
