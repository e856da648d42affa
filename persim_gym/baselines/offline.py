"""d3rlpy's offline algorithms, driven by us: batches from the columns of a log, its own random numbers, one thread.

Discrete ones with the usual networks take the same steps faster, by `persim_gym.baselines.discrete_q`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from persim_gym.baselines.discrete_q import DiscreteSteps, follows
from persim_gym.baselines.learned_policy import LearnedPolicy, OwnRandomness
from persim_gym.baselines.logs import finite_action_bounds, policy_log
from persim_gym.data import Trajectories
from persim_gym.devices import resolve_device, single_thread
from persim_gym.errors import InvalidArgumentError, MissingExtraError, UnknownNameError
from persim_gym.tasks import Task
from persim_gym.terminal import ProgressBar
from persim_gym.types import FloatArray, IntArray

_BAR_STEPS = 100
_CONFIGS = ("DiscreteBCQConfig", "BCQConfig", "DiscreteCQLConfig", "CQLConfig")
"""What a file may name."""


@cache
def d3rlpy() -> Any:
    """Import d3rlpy without the notices it prints.

    Raises:
        MissingExtraError: it is not installed.

    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import d3rlpy
    except ImportError as error:
        raise MissingExtraError("d3rlpy", "d3rlpy") from error
    return d3rlpy


def configured(config: Any, settings: dict[str, Any]) -> Any:
    """Return a d3rlpy configuration with some settings changed."""
    known = {field.name for field in fields(config)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise UnknownNameError(f"no setting {unknown[0]!r} of d3rlpy's {type(config).__name__}")
    for name, value in settings.items():
        setattr(config, name, value)
    return config


class OfflinePolicy(LearnedPolicy):
    """A policy learned by d3rlpy.

    Its greedy actions are all it has, deterministic or not; continuous BCQ draws the candidates for them.
    """

    kind = "a policy of BCQ or CQL"

    def __init__(self, algorithm: Any, task: Task, randomness: OwnRandomness, provenance: Mapping[str, Any]) -> None:
        super().__init__(task, randomness, provenance)
        self.algorithm = algorithm
        """d3rlpy's own object."""

    def _act(self, observations: FloatArray, deterministic: bool) -> np.ndarray:
        actions = np.asarray(self.algorithm.predict(observations))
        if self.task.discrete:
            return actions
        low, high = self.task.action_bounds
        return (low + 0.5 * (np.clip(actions, -1, 1) + 1) * (high - low)).astype(np.float32)

    def _networks(self) -> Mapping[str, nn.Module]:
        return self.algorithm.impl.modules.get_torch_modules()

    def _settings(self) -> dict[str, Any]:
        config = self.algorithm.config
        return {"config": type(config).__name__, "values": json.loads(config.serialize())}

    @classmethod
    def _untrained(
        cls, task: Task, settings: Any, provenance: Mapping[str, Any], device: str, randomness: OwnRandomness
    ) -> OfflinePolicy:
        if settings["config"] not in _CONFIGS:
            raise ValueError(f"config {settings['config']!r} is none of {', '.join(_CONFIGS)}")
        config = getattr(d3rlpy().algos, settings["config"]).deserialize(json.dumps(settings["values"]))
        algorithm = config.create(device=device_name(device))
        with randomness.active():
            algorithm.create_impl((task.observation_size,), task.action_size)
        return cls(algorithm, task, randomness, provenance)


def fit_policy(
    trajectories: Trajectories,
    configs: tuple[Callable[[], Any], Callable[[], Any]],
    settings: dict[str, Any],
    *,
    agent: int | str | None,
    task: str | Task | None,
    device: str,
    **training: Any,
) -> OfflinePolicy:
    """Learn a policy from a log, or from one agent's own part of it.

    Args:
        trajectories: the log.
        configs: d3rlpy's configuration for discrete actions, and that for continuous ones.
        settings: to change in it.
        agent: index or label of the agent; everyone's trajectories if None.
        task: what it is a log of; by default the task named in it.
        device: "auto", "cpu", "cuda", … .
        **training: arguments of `train`.

    """
    log, found = policy_log(trajectories, task, agent)
    config = configs[0]() if found.discrete else configs[1]()
    if not found.discrete:
        finite_action_bounds(found)
    algorithm = configured(config, settings).create(device=device_name(device))
    return train(algorithm, log, found, **training)


def train(
    algorithm: Any,
    log: Trajectories,
    task: Task,
    *,
    steps: int,
    seed: int,
    progress: bool,
    callback: Callable[[OfflinePolicy, int], None] | None = None,
    callback_every: int = 10_000,
    select: Callable[[OfflinePolicy], float] | None = None,
    patience: int | None = None,
) -> OfflinePolicy:
    """Run so many gradient steps of a d3rlpy algorithm on a log.

    Every row of the log is a transition of its own, the last of a truncated episode too, which d3rlpy's own data sets
    lose: it has a next observation and is not terminal.

    Args:
        algorithm: made by d3rlpy, not built yet.
        log: to learn from.
        task: of the log.
        steps: gradient steps.
        seed: of the initial weights and the batches.
        progress: whether to show a bar.
        callback: called with the policy and the number of steps done, for learning curves.
        callback_every: steps between its calls, and between those of ``select``.
        select: a score of the policy, the higher the better; the weights that scored best are those returned.
        patience: scores in a row that may stay at or below the best before training ends; it never ends early if None.

    """
    if steps < 1 or callback_every < 1:
        raise InvalidArgumentError(f"steps={steps} and callback_every={callback_every} must be at least 1")
    if patience is not None and (patience < 1 or select is None):
        raise InvalidArgumentError(f"patience={patience} must be at least 1, and needs the scores of select")
    weights_seed, noise_seed = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(2))
    with OwnRandomness(weights_seed).active():
        algorithm.create_impl((task.observation_size,), task.action_size)
    randomness = OwnRandomness(noise_seed)
    policy = OfflinePolicy(algorithm, task, randomness, {**log.source, "seed": seed})
    start = time.perf_counter()
    learner = DiscreteSteps(algorithm, log) if follows(algorithm.config) else D3rlpySteps(algorithm, log, task)
    rng, batch_size = np.random.default_rng(seed), algorithm.config.batch_size
    done, best = 0, _Best(algorithm)
    with ProgressBar(type(algorithm).__name__, steps, progress) as bar, single_thread():
        while done < steps and not (patience is not None and best.since >= patience):
            until = min(steps, done + _BAR_STEPS, (done // callback_every + 1) * callback_every)
            with randomness.active():
                for _ in range(until - done):
                    learner.update(rng.integers(log.num_transitions, size=batch_size))
                learner.finish()
            done = until
            bar.complete(done)
            if done % callback_every == 0 or done == steps:
                if callback is not None:
                    callback(policy, done)
                if select is not None:
                    best.offer(float(select(policy)))
    best.restore()
    policy.provenance |= {"gradient_steps": done, "wall_seconds": round(time.perf_counter() - start, 1)}
    return policy


class _Best:
    """The weights of a d3rlpy algorithm that scored best so far."""

    def __init__(self, algorithm: Any) -> None:
        self._algorithm, self._score, self._weights = algorithm, -np.inf, None
        self.since = 0
        """Offers since then."""

    def offer(self, score: float) -> None:
        """Keep the present weights if their score is above all before."""
        if np.isnan(score):
            raise InvalidArgumentError("select returned what is not a number; it must return a score")
        self.since += 1
        if self._weights is None or score > self._score:
            self._score, self._weights, self.since = score, copy.deepcopy(self._states()), 0

    def restore(self) -> None:
        """Give the algorithm the weights kept, if any were."""
        for name, module in self._algorithm.impl.modules.get_torch_modules().items():
            if self._weights is not None:
                module.load_state_dict(self._weights[name])

    def _states(self) -> dict[str, Any]:
        modules = self._algorithm.impl.modules.get_torch_modules()
        return {name: module.state_dict() for name, module in modules.items()}


def device_name(device: str) -> str:
    """Return d3rlpy's name of a torch device."""
    found = resolve_device(device)
    return f"{found.type}:{found.index or 0}"


class D3rlpySteps:
    """d3rlpy's own gradient steps, on batches as it wants them: all columns (B, …) float32."""

    def __init__(self, algorithm: Any, log: Trajectories, task: Task) -> None:
        self._algorithm = algorithm
        actions = np.asarray(log.actions, np.float32).reshape(log.num_transitions, -1)
        if not task.discrete:
            low, high = finite_action_bounds(task)
            actions = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
        self._columns: dict[str, FloatArray] = {
            "observations": np.asarray(log.observations, np.float32),
            "actions": actions,
            "rewards": np.asarray(log.rewards, np.float32)[:, None],
            "next_observations": np.asarray(log.next_observations, np.float32),
            "terminals": np.asarray(log.terminated, np.float32)[:, None],
        }
        # No algorithm here reads the next action; d3rlpy's batches hold it, zero where an episode ends.
        following = np.zeros_like(actions)
        following[:-1] = actions[1:]
        following[log.episode_ends - 1] = 0.0
        self._columns["next_actions"] = following

    def batch(self, rows: IntArray) -> Any:
        """Return d3rlpy's batch of some rows of the log."""
        columns = {name: column[rows] for name, column in self._columns.items()}
        intervals = np.ones((len(rows), 1), np.float32)
        return d3rlpy().dataset.TransitionMiniBatch(**columns, intervals=intervals, transitions=[])

    def update(self, rows: IntArray) -> None:
        """Take one step on a batch of some rows."""
        self._algorithm.update(self.batch(rows))

    def finish(self) -> None:
        """Do nothing: the networks are those that were trained."""
