"""Ensembles and logs whose size is what counts: made up, and the shipped ones."""

from __future__ import annotations

from functools import cache

import numpy as np

from persim_gym import Ensemble, Trajectories, get_task, load
from persim_gym.config import PerSimConfig
from persim_gym.data.labels import NumberedLabels
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.parameters import parameter_shapes
from persim_gym.registration import SHIPPED_MODELS
from persim_gym.tasks import Task

NUM_AGENTS = 500


def shapes_of(task: Task, config: PerSimConfig, num_agents: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of every parameter of an ensemble."""
    return parameter_shapes(
        config,
        num_agents=num_agents,
        observation_size=task.observation_size,
        action_size=task.action_size,
        discrete=task.discrete,
    )


def made_up_ensemble(task_name: str, config: PerSimConfig, num_agents: int = NUM_AGENTS) -> Ensemble:
    """Return an untrained ensemble: what a step costs does not depend on the weights."""
    task, rng = get_task(task_name), np.random.default_rng(0)
    shapes = shapes_of(task, config, num_agents)
    parameters = {
        name: (rng.uniform(-1, 1, shape) * fan_in**-0.5).astype(np.float32) for name, (shape, fan_in) in shapes.items()
    }
    size = task.observation_size
    start = np.zeros((1, size), np.float32)
    return Ensemble(task, config, parameters, Normalizer.identity(size), NumberedLabels(num_agents), start)


def made_up_log(task_name: str, count: int, num_agents: int = NUM_AGENTS, prefix: str = "") -> Trajectories:
    """Return transitions of agents numbered behind a prefix: what an epoch costs does not depend on what is in them."""
    task, rng = get_task(task_name), np.random.default_rng(0)
    agents = np.repeat(np.arange(num_agents), count // num_agents)
    labels = [f"{prefix}{agent}" for agent in range(num_agents)] if prefix else None
    states = rng.normal(size=(len(agents), task.observation_size)).astype(np.float32)
    if task.discrete:
        actions = rng.integers(task.action_size, size=len(agents))
    else:
        actions = rng.uniform(-1, 1, (len(agents), task.action_size)).astype(np.float32)
    return Trajectories.from_arrays(
        agents=agents, observations=states, actions=actions, next_observations=0.9 * states, task=task.name,
        agent_labels=labels,
    )  # fmt: skip


@cache
def shipped(name: str) -> Ensemble:
    """Return a shipped ensemble, whose rollouts end where trained ones do."""
    return load(SHIPPED_MODELS / f"{name}.persim")
