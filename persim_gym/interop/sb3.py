"""Stable-Baselines3: its trained policies as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persim_gym.errors import InvalidArgumentError
from persim_gym.policies import MLPPolicy
from persim_gym.tasks import Task


def policy_from_sb3(
    model: Any, task: str | Task, *, epsilon: float = 0.0, provenance: Mapping[str, Any] | None = None
) -> MLPPolicy:
    """Return the greedy network of a trained Stable-Baselines3 DQN, or the actor of a TD3 or DDPG, as an `MLPPolicy`.

    Args:
        model: the trained algorithm, with an `MlpPolicy` of ReLU layers.
        task: the task it was trained in.
        epsilon: probability of a uniform action when it acts (discrete actions only).
        provenance: how it was trained.

    Raises:
        InvalidArgumentError: another kind of algorithm or network.

    """
    from torch import nn

    name = type(model).__name__
    if name == "DQN":
        network = model.policy.q_net.q_net
    elif name in ("TD3", "DDPG"):
        network = model.policy.actor.mu
    else:
        raise InvalidArgumentError(f"a policy can be taken from DQN, TD3 or DDPG, not from {name}")
    modules = list(network)
    if isinstance(modules[-1], nn.Tanh):
        modules = modules[:-1]
    if not all(isinstance(module, (nn.Linear, nn.ReLU)) for module in modules):
        raise InvalidArgumentError("only networks of linear layers with ReLU between them can be taken over")
    layers = [
        (module.weight.detach().cpu().numpy().T, module.bias.detach().cpu().numpy())
        for module in modules
        if isinstance(module, nn.Linear)
    ]
    return MLPPolicy(task, layers, epsilon=epsilon, provenance=provenance)
