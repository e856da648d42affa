"""d3rlpy's policies: `predict`, and a file. `persim_gym.baselines.offline_training` makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from persim_gym.arguments import finite_number, whole_number, yes_or_no, zero_to_one
from persim_gym.baselines.learned_policy import LearnedPolicy, OwnRandomness
from persim_gym.errors import InvalidArgumentError
from persim_gym.extras import d3rlpy
from persim_gym.settings import check_settings_known
from persim_gym.tasks import Task
from persim_gym.tasks.action_bounds import unscale_actions
from persim_gym.types import FloatArray

_CONFIGS = ("DiscreteBCQConfig", "BCQConfig", "DiscreteCQLConfig", "CQLConfig")
"""What a file may name."""
_COUNTS = ("batch_size", "n_critics", "target_update_interval", "n_action_samples", "update_actor_interval")
_PARTS = ("gamma", "tau", "lam")
_WEIGHTS = ("alpha", "beta", "alpha_threshold", "conservative_weight")
_POSITIVE = ("initial_temperature", "initial_alpha")
_CHOICES = ("soft_q_backup", "share_encoder", "max_q_backup")


def configured(config: Any, settings: dict[str, Any]) -> Any:
    """Return a d3rlpy configuration with some settings changed.

    Raises:
        UnknownNameError: there is no such setting.
        InvalidArgumentError: a count that is no whole number of at least 1, a learning rate, discount or weight out of
            its range, a choice that is not True or False, what is no factory of d3rlpy's, or a scaler.

    """
    check_settings_known(settings, {field.name for field in fields(config)}, of=f"d3rlpy's {type(config).__name__}")
    for name, value in settings.items():
        setattr(config, name, _checked(name, value))
    return config


def _checked(name: str, value: Any) -> Any:
    """Return the value of a setting of d3rlpy's, as far as it is one that can be checked here."""
    if name in _COUNTS:
        return whole_number(name, value)
    if name.endswith("learning_rate"):
        return finite_number(name, value, 0.0, above=True)
    if name in _PARTS:
        return zero_to_one(name, value)
    if name in _WEIGHTS:
        return finite_number(name, value, 0.0)
    if name in _POSITIVE:
        return finite_number(name, value, 0.0, above=True)
    if name in _CHOICES:
        return yes_or_no(name, value)
    if name.endswith("_factory") and not hasattr(value, "get_type"):
        raise InvalidArgumentError(
            f"{name}={value!r} must be a factory of d3rlpy's, such as those in d3rlpy.models and d3rlpy.optimizers"
        )
    if name == "action_flexibility":
        return zero_to_one(name, finite_number(name, value, 0.0, above=True))
    if name.endswith("_scaler") and value is not None:
        raise InvalidArgumentError(
            f"{name}={value!r} is not fitted to the log here: scale the log's own columns instead"
        )
    return value


def settings_of(config: Any) -> dict[str, Any]:
    """Return, for JSON, the name and the values of a d3rlpy configuration."""
    return {"config": type(config).__name__, "values": json.loads(config.serialize())}


def networks_of(algorithm: Any) -> Mapping[str, nn.Module]:
    """Return all networks of a d3rlpy algorithm."""
    return algorithm.impl.modules.get_torch_modules()


class OfflinePolicy(LearnedPolicy):
    """A policy learned by d3rlpy.

    Its greedy actions are all it has, deterministic or not; continuous BCQ draws the candidates for them.
    """

    kind = "a policy of BCQ or CQL"

    def __init__(self, algorithm: Any, task: Task, randomness: OwnRandomness, provenance: Mapping[str, Any]) -> None:
        super().__init__(task, randomness, provenance)
        self.algorithm = algorithm
        """d3rlpy's own object."""

    @property
    def learner(self) -> str:
        return type(self.algorithm).__name__

    def _act(self, observations: FloatArray, deterministic: bool) -> np.ndarray:
        actions = np.asarray(self.algorithm.predict(observations))
        if self.task.discrete:
            return actions
        return unscale_actions(np.clip(actions, -1, 1), *self.task.action_bounds).astype(np.float32)

    def _networks(self) -> Mapping[str, nn.Module]:
        return networks_of(self.algorithm)

    def _settings(self) -> dict[str, Any]:
        return settings_of(self.algorithm.config)

    @classmethod
    def _untrained(
        cls, task: Task, settings: Any, provenance: Mapping[str, Any], device: torch.device, randomness: OwnRandomness
    ) -> OfflinePolicy:
        if settings["config"] not in _CONFIGS:
            raise ValueError(f"config {settings['config']!r} is none of {', '.join(_CONFIGS)}")
        config = getattr(d3rlpy().algos, settings["config"]).deserialize(json.dumps(settings["values"]))
        algorithm = config.create(device=device_name(device))
        algorithm.create_impl((task.observation_size,), task.action_size)
        return cls(algorithm, task, randomness, provenance)


def device_name(device: torch.device) -> str:
    """Return d3rlpy's name of a torch device."""
    return f"{device.type}:{device.index or 0}"
