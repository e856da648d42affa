"""Policies that need no reinforcement-learning library: random actions, any callable, a saved network."""

from __future__ import annotations

import copy
import inspect
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from persim_gym import storage
from persim_gym.arguments import as_array, generator_of, zero_to_one
from persim_gym.errors import FileFormatError, InvalidArgumentError
from persim_gym.tasks import Task, get_task, task_fields, task_of_file
from persim_gym.tasks.action_bounds import unscale_actions
from persim_gym.types import BoolArray, FloatArray, IntArray, Policy

_KIND = "policy"


class RandomPolicy:
    """Uniform actions of an action space, from its own generator."""

    def __init__(self, action_space: spaces.Discrete | spaces.Box, seed: int | np.random.Generator = 0) -> None:
        self._space = action_space
        self._rng = generator_of(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        count = len(np.atleast_2d(observation))
        if isinstance(self._space, spaces.Discrete):
            actions = self._rng.integers(self._space.n, size=count)
        else:
            actions = self._rng.uniform(self._space.low, self._space.high, (count, *self._space.shape))
        return (actions if np.ndim(observation) > 1 else actions[0]), None

    def reseeded(self, seed: int) -> RandomPolicy:
        """Return a copy whose actions are those of a seed."""
        other = copy.copy(self)
        other._rng = generator_of(seed)
        return other


class FunctionPolicy:
    """A plain function from observations (B, D) to actions (B,) or (B, A)."""

    def __init__(self, function: Callable[[FloatArray], Any]) -> None:
        self._function = function

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        actions = self._function(observation)
        if isinstance(actions, tuple) and len(actions) == 2 and actions[1] is None:
            raise InvalidArgumentError(
                "the policy returned a pair, as predict() of Stable-Baselines3 does, and not actions: take the "
                "first of it, lambda observations: model.predict(observations)[0]"
            )
        with suppress(ValueError):  # the check of actions says why
            actions = as_array(actions)
        return actions, None


class MLPPolicy:
    """A ReLU network with a greedy or tanh head: what DQN and TD3 leave behind.

    Discrete actions are the arg max of the outputs, replaced by a uniform action with probability ``epsilon``;
    continuous ones are tanh of the outputs, scaled to the action space.
    """

    def __init__(
        self,
        task: str | Task,
        layers: list[tuple[FloatArray, FloatArray]],
        *,
        epsilon: float = 0.0,
        provenance: Mapping[str, Any] | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:
        """Make the policy.

        Args:
            task: the task it acts in.
            layers: weight (inputs, outputs) and bias (outputs,) of each layer.
            epsilon: probability of a uniform action (discrete actions only).
            provenance: how it was trained.
            seed: of the uniform actions.

        """
        self.task = get_task(task)
        self.layers = [(np.asarray(weight, np.float32), np.asarray(bias, np.float32)) for weight, bias in layers]
        self.epsilon = zero_to_one("epsilon", epsilon)
        self.provenance = dict(provenance or {})
        sizes = (self.layers[0][0].shape[0], self.layers[-1][0].shape[1])
        if sizes != (self.task.observation_size, self.task.action_size):
            raise InvalidArgumentError(
                f"a policy of task {self.task.name} maps {self.task.observation_size} numbers to "
                f"{self.task.action_size}, this one {sizes[0]} to {sizes[1]}"
            )
        self._random = RandomPolicy(self.task.action_space, seed)
        self._rng = self._random._rng

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        """Return actions for observations (B, D) or (D,), and None."""
        hidden = np.atleast_2d(np.asarray(observation, np.float32))
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(np.dot(hidden, weight) + bias, 0.0)
        outputs = np.dot(hidden, self.layers[-1][0]) + self.layers[-1][1]
        if self.task.discrete:
            actions = outputs.argmax(axis=1)
            if self.epsilon:
                explore = self._rng.random(len(actions)) < self.epsilon
                actions = np.where(explore, self._random.predict(hidden)[0], actions)
        else:
            actions = unscale_actions(np.tanh(outputs), *self.task.action_bounds).astype(np.float32)
        return (actions if np.ndim(observation) > 1 else actions[0]), None

    def act(self, observations: FloatArray) -> np.ndarray:
        """Return actions for observations (B, D).

        Given as a policy, this function draws on from agent to agent, while the policy itself is reseeded for each
        (`as_policy`). The published prediction errors were measured so.
        """
        return self.predict(observations)[0]

    def reseeded(self, seed: int) -> MLPPolicy:
        """Return a copy whose uniform actions are those of a seed."""
        other = copy.copy(self)
        other._random = RandomPolicy(self.task.action_space, seed)
        other._rng = other._random._rng
        return other

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        arrays = {}
        for index, (weight, bias) in enumerate(self.layers):
            arrays[f"weight{index}"], arrays[f"bias{index}"] = weight, bias
        storage.write(
            path,
            _KIND,
            arrays,
            {**task_fields(self.task), "epsilon": self.epsilon, "provenance": self.provenance},
        )

    @classmethod
    def load(
        cls, path: str | Path, *, task: str | Task | None = None, seed: int | np.random.Generator = 0
    ) -> MLPPolicy:
        """Read a file written by `save`.

        Args:
            path: the file.
            task: the task it must be for; by default the one the file names.
            seed: of its random actions.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: damaged, of another task, or not a policy.
            UnknownNameError: its task is not registered.

        """
        arrays, document = storage.read(path, _KIND)
        found = task_of_file(path, document, task)
        try:
            layers = [(arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(len(arrays) // 2)]
            epsilon, provenance = float(document["epsilon"]), dict(document["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {error} is missing or of the wrong kind") from error
        layers = [(np.array(weight), np.array(bias)) for weight, bias in layers]
        return cls(found, layers, epsilon=epsilon, provenance=provenance, seed=seed)


def _takes_observations_only(predict: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(predict).parameters.values()
    except (TypeError, ValueError):
        return False
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return len(parameters) == 1 and all(parameter.kind not in several for parameter in parameters)


def _check_takes_state(policy: Any) -> None:
    """Raise `InvalidArgumentError` unless `predict` can be called as that of `Policy` is, by position or name."""
    try:
        signature = inspect.signature(policy.predict)
    except (TypeError, ValueError):  # none is known of a compiled function
        return
    try:
        signature.bind(None, None, None, True)
        signature.bind(None, None, None, deterministic=True)
    except TypeError as error:
        raise InvalidArgumentError(
            f"predict{signature} of {type(policy).__name__} does not take the arguments of "
            f"predict(observations, state, episode_start, deterministic=True) ({error}): let it take these and return "
            "actions and the state, or give a function of observations alone, lambda observations: …"
        ) from error


def asked(policy: Policy, observations: FloatArray, state: Any, begun: BoolArray, **told: Any) -> tuple[Any, Any]:
    """Return a policy's actions, still to be checked, and its state, or raise `InvalidArgumentError` for no such pair.

    Args:
        policy: as `as_policy` returned it.
        observations: (B, D).
        state: what it returned before, or None.
        begun: (B,) whether an episode begins here.
        **told: what else the policy takes.

    """
    answer = policy.predict(observations, state, begun, deterministic=True, **told)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise InvalidArgumentError(
            f"predict of {type(policy).__name__} takes (observations, state, episode_start, deterministic=True), and "
            f"so must return a pair, actions and the state or None; it returned {reprlib.repr(answer)}"
        )
    return answer


def policy_name(policy: Any) -> str:
    """Return what a policy is called in results and provenance: its own name, a function's, or that of its class."""
    return policy if isinstance(policy, str) else getattr(policy, "__name__", type(policy).__name__)


def action_seed(seed: int, agent: int = 0) -> int:
    """Return the seed of a policy's random actions where ``[seed, agent]`` is that of the initial states."""
    return int(np.random.SeedSequence([seed, agent, 2]).generate_state(1)[0])


def rows_of_state(state: Any, rows: IntArray) -> Any:
    """Return a policy's state for some of the episodes that it acts in, given by their places (n,).

    Raises:
        InvalidArgumentError: the state's first axis is not that of the episodes.

    """
    if state is None:
        return None
    try:
        return state[rows]
    except (TypeError, IndexError) as error:
        raise InvalidArgumentError(
            f"a policy's state, here a {type(state).__name__}, must be None or an array whose first axis is that of "
            "the episodes: some of them are over, and the policy goes on with the others"
        ) from error


def check_sees_observations(model: Any) -> None:
    """Raise `InvalidArgumentError` for a model of Stable-Baselines3 whose environment normalizes what it sees."""
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    if getattr(normalizer, "norm_obs", False):
        raise InvalidArgumentError(
            f"this {type(model).__name__} was trained on observations that VecNormalize had normalized, and would see "
            "others: give a function instead, lambda observations: model.predict("
            "model.get_vec_normalize_env().normalize_obs(observations), deterministic=True)[0]"
        )


def as_policy(policy: str | Policy | Callable[[FloatArray], Any], task: Task, seed: int = 0) -> Policy:
    """Return something with `predict` from "random", an object that has it, or a function of observations.

    An object's `predict` is Stable-Baselines3's, ``predict(observations, state, episode_start, deterministic=True)``,
    which returns actions and the state (`Policy`), or d3rlpy's, ``predict(observations)``, which returns actions. One
    that also has `reseeded` is asked for a copy that draws its random numbers from the seed: what it does then depends
    on no earlier use. Others draw on from where they are.

    Raises:
        InvalidArgumentError: none of these, a `predict` that takes other arguments, or a model that was trained on
            normalized observations.

    """
    if isinstance(policy, str):
        if policy != "random":
            raise InvalidArgumentError(f"policy={policy!r}: the only policy known by name is 'random'")
        return RandomPolicy(task.action_space, seed)
    if hasattr(policy, "predict"):
        check_sees_observations(policy)
        actor: Any = policy
        actor = actor.reseeded(seed) if hasattr(actor, "reseeded") else actor
        if _takes_observations_only(actor.predict):
            return FunctionPolicy(actor.predict)
        _check_takes_state(actor)
        return actor
    if callable(policy):
        return FunctionPolicy(policy)
    raise InvalidArgumentError(f"policy {policy!r} is neither a name, nor a function, nor an object with predict()")
