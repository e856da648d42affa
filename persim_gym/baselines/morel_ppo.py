"""What Stable-Baselines3's PPO needs to learn in a pessimistic MDP; the extra `sb3` is imported on use."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from persim_gym.extras import optional
from persim_gym.interop.sb3 import to_sb3_vec_env
from persim_gym.tasks import Task
from persim_gym.tasks.action_bounds import unscale_actions
from persim_gym.types import FloatArray

_LAYERS: dict[str, Any] = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
"""Of the networks of policy and value."""


def check_installed() -> None:
    """Raise `MissingExtraError` unless Stable-Baselines3 is there."""
    optional("stable_baselines3", "sb3", library="stable-baselines3")


def new_ppo(
    env: gymnasium.vector.VectorEnv[Any, Any, Any], task: Task, *, mean: Tensor, scale: Tensor, seed: int
) -> Any:
    """Return Stable-Baselines3's PPO, not trained yet, with the settings of the MOReL code that the paper cites.

    Continuous actions are from −1 to 1 for it, whatever their units.

    What differs from that code: PPO learns from about 1024 steps of all environments together, with 64 of them
    16 steps of each, so that advantages are estimated over 16 steps where theirs see one rollout of 1024; and of
    Stable-Baselines3 stay the advantages normalized in each mini-batch, the orthogonal first weights and Adam's
    ε = 1e-5.

    Args:
        env: with same-step autoreset.
        task: whose actions and observations they are.
        mean: (D,) to subtract from observations before the networks see them.
        scale: (D,) to divide them by then.
        seed: of weights, actions and episodes.

    """
    check_installed()
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger

    rollout = max(4, 1024 // env.num_envs // 4 * 4)  # a multiple of the number of mini-batches
    ppo = PPO(
        "MlpPolicy",
        to_sb3_vec_env(env, rescale_actions=not task.discrete),
        n_steps=rollout,
        batch_size=rollout * env.num_envs // 4,
        n_epochs=4,
        learning_rate=2.7e-4,
        clip_range=0.2,
        clip_range_vf=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
        gamma=0.99,
        gae_lambda=0.95,
        max_grad_norm=0.5,
        policy_kwargs=_LAYERS,
        seed=seed % 2**32,  # NumPy's old generators, which Stable-Baselines3 seeds, take no more
        device="cpu",
    )
    ppo.set_logger(Logger(folder=None, output_formats=[]))  # its usual one makes a folder for what is not written
    network: Any = ppo.policy
    _fit_to_task(network, task)
    network.features_extractor.mean.copy_(mean)
    network.features_extractor.scale.copy_(scale)
    return ppo


def new_network(task: Task) -> Any:
    """Return the network that PPO learns, Stable-Baselines3's `ActorCriticPolicy`, with any weights.

    Continuous actions of it are from −1 to 1.

    Raises:
        MissingExtraError: Stable-Baselines3 is not installed.

    """
    check_installed()
    from stable_baselines3.common.policies import ActorCriticPolicy

    actions = task.action_space if task.discrete else spaces.Box(-1, 1, (task.action_size,))
    network = ActorCriticPolicy(task.observation_space, actions, _no_learning_rate, **_LAYERS)
    _fit_to_task(network, task)
    return network


def actions_of(network: Any, task: Task, observations: FloatArray, *, deterministic: bool) -> np.ndarray:
    """Return the task's actions (B,) or (B, A) that such a network takes, or draws, at observations (B, D)."""
    actions = network.predict(observations, deterministic=deterministic)[0]
    return actions if task.discrete else unscale_actions(actions, *task.action_bounds).astype(np.float32)


def _no_learning_rate(_: float) -> float:
    return 0.0


class _Standardization(nn.Module):
    """Observations (B, D) less a mean (D,), over a scale (D,)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, observations: Tensor) -> Tensor:
        return (observations - self.mean) / self.scale


def _fit_to_task(network: Any, task: Task) -> None:
    """Put a standardization before a new network and, if actions are continuous, a tanh behind its mean action.

    The network's optimizer knows its layers already; what is put beside them has no weights.
    """
    before = _Standardization(task.observation_size)
    network.features_extractor = network.pi_features_extractor = network.vf_features_extractor = before
    if not task.discrete:
        network.action_net = nn.Sequential(network.action_net, nn.Tanh())
