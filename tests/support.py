"""Reference implementations and toy problems that the tests compare the package with."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces

from persim_gym.config import PerSimConfig
from persim_gym.data.trajectories import Trajectories
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.parameters import parameter_shapes
from persim_gym.tasks import PlanningObjective, Task, get_task
from persim_gym.tasks.equations import EquationSystem
from persim_gym.training.checkpoint import Checkpoint

SMALL = PerSimConfig(rank=3, state_hidden=(8,), action_hidden=(8,), num_members=3, normalize=False)
DEEP = SMALL.with_changes(state_hidden=(8, 7), action_hidden=(6, 5), normalize=True)
SKIPPING, DEEP_SKIPPING = SMALL.with_changes(linear_skip=True), DEEP.with_changes(linear_skip=True)


@contextlib.contextmanager
def default_dtype(dtype):
    """Let torch make tensors of this type, as a user may have told it."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def keep_often(monkeypatch):
    """Let training keep its state whenever it may."""
    monkeypatch.setattr("persim_gym.training.checkpoint.SECONDS_BETWEEN_WRITES", -1.0)


def keep_checkpoints(monkeypatch):
    """Leave the checkpoints of finished training where they are."""
    monkeypatch.setattr(Checkpoint, "remove", lambda _: None)


def interrupt_after(writes, monkeypatch):
    """Interrupt training once, right after it has kept its state so many times, which it does whenever it may.

    Returns a list that every file written is appended to, the resumed training's too.
    """
    written, write = [], Checkpoint.write

    def interrupting(checkpoint, run):
        write(checkpoint, run)
        if checkpoint.path is not None:
            written.append(checkpoint.path.name)
            if len(written) == writes:
                raise KeyboardInterrupt

    keep_often(monkeypatch)
    monkeypatch.setattr(Checkpoint, "write", interrupting)
    return written


def random_ensemble(task, config=SMALL, *, num_agents=3, seed=0, step_size=0.1):
    """Return an untrained ensemble whose changes have roughly the size ``step_size``."""
    task = get_task(task)
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(
        config,
        num_agents=num_agents,
        observation_size=task.observation_size,
        action_size=task.action_size,
        discrete=task.discrete,
    )
    parameters = {}
    for name, (shape, fan_in) in shapes.items():
        spread = 1.0 if name.startswith("agent") or name == "action.weight" else fan_in**-0.5
        parameters[name] = (spread * rng.normal(size=shape)).astype(np.float32)
    size = task.observation_size
    normalizer = Normalizer.identity(size)
    if config.normalize:
        normalizer = Normalizer(
            rng.normal(size=size),
            rng.uniform(0.5, 2, size),
            0.1 * step_size * rng.normal(size=size),
            np.full(size, step_size),
        )
    else:
        head = f"state.{len(config.state_hidden)}"
        for kind in ("weight", "bias"):
            parameters[f"{head}.{kind}"] *= np.float32(step_size)
        if config.linear_skip:
            parameters["state.skip"] *= np.float32(step_size)
    return Ensemble(
        task=task,
        config=config,
        parameters=parameters,
        normalizer=normalizer,
        agent_labels=tuple(f"agent {index}" for index in range(num_agents)),
        initial_observations=rng.normal(size=(5, size)).astype(np.float32),
    )


def roomy(name):
    """Return a shipped task whose states have no bounds: any random ones are its own."""
    space = spaces.Box(-np.inf, np.inf, get_task(name).observation_space.shape, np.float32)
    return replace(get_task(name), observation_space=space)


def reference_changes(ensemble, agent, states, actions):
    """Return Σ_l u_l(agent)·v_l(state, d)·w_l(action) of every member (M, B, D), one row at a time in float64."""
    parameters = {name: np.asarray(array, np.float64) for name, array in ensemble.parameters.items()}
    normalizer, discrete = ensemble.normalizer, ensemble.task.discrete
    changes = np.empty((ensemble.num_members, *np.shape(states)))
    for member in range(ensemble.num_members):
        u = parameters["agent.weight"][member, agent] + parameters["agent.bias"][member]
        for row, (state, action) in enumerate(zip(states, actions, strict=True)):
            v = _network(parameters, "state", member, (state - normalizer.state_mean) / normalizer.state_scale)
            if discrete:
                w = parameters["action.weight"][member, action] + parameters["action.bias"][member]
            else:
                w = _network(parameters, "action", member, action)
            for coordinate, factors in enumerate(v.reshape(len(state), -1)):
                change = np.sum(u * factors * w)
                changes[member, row, coordinate] = (
                    change * normalizer.change_scale[coordinate] + normalizer.change_mean[coordinate]
                )
    return changes


def _network(parameters, name, member, inputs):
    depth = sum(key.startswith(f"{name}.") and key.endswith("weight") for key in parameters)
    skipped = parameters[f"{name}.skip"][member] @ inputs if f"{name}.skip" in parameters else 0.0
    for index in range(depth):
        inputs = (
            parameters[f"{name}.{index}.weight"][member] @ inputs + parameters[f"{name}.{index}.bias"][member, :, 0]
        )
        inputs = np.maximum(inputs, 0) if index < depth - 1 else inputs
    return inputs + skipped


def random_actions(task, rng, *shape):
    """Return random actions of a task, (*shape,) or (*shape, A)."""
    if task.discrete:
        return rng.integers(task.action_size, size=shape)
    return rng.uniform(-1, 1, size=(*shape, task.action_size))


def simulated_log(ensemble, counts, *, noise=1e-3, seed=0, labels=None):
    """Return transitions that the first member makes itself, with noise: ``counts`` of each of its agents."""
    rng, task = np.random.default_rng(seed), ensemble.task
    agents = np.repeat(np.arange(len(counts)), counts)
    states = 0.5 * rng.normal(size=(len(agents), task.observation_size))
    actions = random_actions(task, rng, len(agents))
    changes = np.stack(
        [
            reference_changes(ensemble, agent, [s], [a])[0, 0]
            for agent, s, a in zip(agents, states, actions, strict=True)
        ]
    )
    return Trajectories.from_arrays(
        agents=agents,
        agent_labels=labels or [f"agent {index}" for index in range(len(counts))],
        observations=states,
        actions=actions,
        next_observations=states + changes + noise * rng.normal(size=states.shape),
        task=task.name,
    )


def walk_dynamics(observations, actions, covariates):
    """A walk on a line: x' = x + speed·(a − 1), a in {0, 1, 2}; the second coordinate stays as it is."""
    moved = observations[:, 0] + covariates[:, 0] * (np.asarray(actions) - 1)
    return np.stack([moved, observations[:, 1]], axis=1)


def walk_task(start=3.0, goal=np.inf, limit=20):
    """The walk as a task: reward −|x'|, from ``start``, over when x reaches ``goal``; agents differ in their speed."""
    from persim_gym.tasks import Covariate

    def reward(observations, actions, next_observations):
        return -abs(next_observations[..., 0])

    def terminated(next_observations):
        return next_observations[..., 0] >= goal

    def initial_observations(rng, count):
        return np.tile([start, 0.0], (count, 1))

    return Task(
        name="Walk",
        observation_space=spaces.Box(-1e3, 1e3, (2,), np.float32),
        action_space=spaces.Discrete(3),
        reward=reward,
        terminated=terminated,
        max_episode_steps=limit,
        observation_names=("x", "idle"),
        planning_objective=PlanningObjective(reward, terminated),
        initial_observations=initial_observations,
        covariates=(Covariate("speed", 0.5, 2.0, 1.0),),
        test_agents=((0.5,), (1.0,), (2.0,)),
        make_system=lambda covariates: EquationSystem(walk_dynamics, initial_observations, covariates),
    )


def perfect_walk_ensemble(task, speeds=(0.5, 1.0, 2.0), members=2):
    """An ensemble that is exactly the walk: rank 1, u = speed, v = (1, 0), w = (−1, 0, 1)."""
    agents = len(speeds)
    parameters = {
        "agent.weight": np.tile(np.reshape(speeds, (1, agents, 1)), (members, 1, 1)),
        "agent.bias": np.zeros((members, 1)),
        "state.0.weight": np.zeros((members, 1, 2)),
        "state.0.bias": np.zeros((members, 1, 1)),
        "state.1.weight": np.zeros((members, 2, 1)),
        "state.1.bias": np.tile(np.array([[[1.0], [0.0]]]), (members, 1, 1)),
        "action.weight": np.tile(np.array([[[-1.0], [0.0], [1.0]]]), (members, 1, 1)),
        "action.bias": np.zeros((members, 1)),
    }
    return Ensemble(
        task=task,
        config=PerSimConfig(rank=1, state_hidden=(1,), num_members=members, normalize=False),
        parameters={name: array.astype(np.float32) for name, array in parameters.items()},
        normalizer=Normalizer.identity(2),
        agent_labels=tuple(str(index) for index in range(agents)),
        initial_observations=np.zeros((1, 2), np.float32),
        covariates=np.reshape(speeds, (agents, 1)).astype(np.float64),
    )
