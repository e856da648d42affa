"""Stable-Baselines3: its trained policies as ours, our vector environment as one of its own, logs in its buffers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from persim_gym.collection.policies import MLPPolicy, check_sees_observations
from persim_gym.data.trajectories import Trajectories, check_is_log
from persim_gym.data.within_spaces import check_actions
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.extras import optional
from persim_gym.tasks import Task
from persim_gym.tasks.action_bounds import center_and_half_width, scale_actions, unscale_actions
from persim_gym.user_warnings import warn_user


def policy_from_sb3(
    model: Any, task: str | Task, *, epsilon: float = 0.0, provenance: Mapping[str, Any] | None = None
) -> MLPPolicy:
    """Return the greedy network of a trained Stable-Baselines3 DQN, or the actor of a TD3 or DDPG, as an `MLPPolicy`.

    Args:
        model: the trained algorithm, with an `MlpPolicy` of ReLU layers that sees observations as they are.
        task: the task it was trained in.
        epsilon: probability of a uniform action when it acts (discrete actions only).
        provenance: how it was trained.

    Raises:
        InvalidArgumentError: another kind of algorithm or network, or one that sees normalized or other features.
        MissingExtraError: Stable-Baselines3 is not installed.

    """
    from torch import nn

    sb3 = optional("stable_baselines3", "sb3", library="stable-baselines3")
    flat = optional("stable_baselines3.common.torch_layers", "sb3", library="stable-baselines3").FlattenExtractor
    if isinstance(model, sb3.DQN):
        whole, network = model.policy.q_net, model.policy.q_net.q_net
    elif isinstance(model, sb3.TD3):  # DDPG is one, too
        whole, network = model.policy.actor, model.policy.actor.mu
    else:
        raise InvalidArgumentError(f"a policy can be taken from DQN, TD3 or DDPG, not from {type(model).__name__}")
    check_sees_observations(model)
    if type(whole.features_extractor) is not flat:
        raise InvalidArgumentError(
            f"the network sees what a {type(whole.features_extractor).__name__} makes of observations, which cannot be "
            "taken over: use the model itself as policy"
        )
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


def fill_replay_buffer(model: Any, log: Trajectories) -> None:
    """Put the transitions of a log into the replay buffer of an off-policy Stable-Baselines3 model (DQN, SAC, TD3, …).

    An episode that ends without a terminal state is marked as cut by a time limit: its last transition is bootstrapped.
    In a buffer for n environments each takes the next of n equal parts of the log, and its part's last row is marked
    so, too, for n-step returns to end there; to make the last part as long, up to n − 1 rows are stored a second time.

    Args:
        model: the algorithm, made with an environment of the log's spaces.
        log: the trajectories, recorded or synthetic.

    Raises:
        InvalidArgumentError: a model without a replay buffer, or with too little room in it, or with one that takes
            the next row's observation for the next one (``optimize_memory_usage``).
        InvalidDataError: the log's observations or actions are not those of the model's spaces.

    """
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        raise InvalidArgumentError(f"{type(model).__name__} has no replay buffer: use DQN, SAC, TD3 or DDPG")
    if getattr(buffer, "optimize_memory_usage", False):
        raise InvalidArgumentError(
            "a buffer with optimize_memory_usage=True has no room for the observations that a log's episodes end with: "
            "make the model without it"
        )
    check_is_log(log)
    room = (buffer.buffer_size - buffer.size()) * buffer.n_envs
    if log.num_transitions > room:
        raise InvalidArgumentError(
            f"the log has {log.num_transitions} transitions, the replay buffer room for {room} beside the "
            f"{buffer.size() * buffer.n_envs} that it holds: make the model with a larger buffer_size"
        )
    # That of a log where `to_sb3_vec_env` rescales, below wrappers of any number.
    space = getattr(getattr(model.env, "unwrapped", None), "task_action_space", model.action_space)
    discrete = isinstance(space, spaces.Discrete)
    if model.observation_space.shape != log.observations.shape[1:]:
        raise InvalidDataError(
            f"the log's observations have shape {log.observations.shape[1:]}, the model's "
            f"{model.observation_space.shape}"
        )
    if discrete != log.discrete or (not discrete and space.shape != log.actions.shape[1:]):
        raise InvalidDataError(f"the log's actions {log.actions.shape[1:]} do not fit {space}")
    check_actions(log.actions, space)
    # Buffers hold actions as the actor gives them: scaled to [−1, 1].
    actions = log.actions if discrete else scale_actions(log.actions, space.low, space.high)
    length = -(-log.num_transitions // buffer.n_envs)
    parts = np.resize(np.arange(log.num_transitions), (buffer.n_envs, length))
    ended, last = log.terminated | log.truncated, np.zeros(log.num_transitions, bool)
    last[log.episode_ends - 1] = True
    for step, rows in enumerate(parts.T, start=1):
        cut = ~log.terminated[rows] & (last[rows] | (step == length))
        buffer.add(
            np.asarray(log.observations[rows]),
            np.asarray(log.next_observations[rows]),
            actions[rows],
            np.asarray(log.rewards[rows]),
            ended[rows],
            [{"TimeLimit.truncated": bool(flag)} for flag in cut],
        )


def to_sb3_vec_env(env: Any, *, rescale_actions: bool = False) -> Any:
    """Return a vector environment as a Stable-Baselines3 `VecEnv`, to train any of its algorithms in.

    ``to_sb3_vec_env(gymnasium.make_vec("PerSim-CartPole-agent7-v0", num_envs=64,
    vectorization_mode="vector_entry_point", autoreset_mode="same_step"))``

    An episode's last info holds ``terminal_observation`` and, in every info, ``TimeLimit.truncated`` says whether the
    episode was cut off and not terminated: by the time limit, because the model diverged, when ``diverged`` is True, or
    because of its ``max_disagreement``, when ``unknown`` is.
    What else the info of a `PersonalizedEnv` holds is there at every step, such as ``disagreement`` (D,). One generator
    draws all start states: a seed gives the same episodes every time, but not those of `DummyVecEnv`.

    Stable-Baselines3's PPO and A2C begin with actions of about −1 to 1 and hardly move where bounds are far from these,
    which is warned of; SAC, TD3 and DDPG scale by themselves.

    Args:
        env: of this package, with same-step autoreset, and without Gymnasium's wrappers.
        rescale_actions: whether the actions of the `VecEnv` are from −1 to 1, mapped linearly to the task's bounds. A
            trained model's actions are so, too; ``env.unscaled(actions)`` returns the task's. `fill_replay_buffer` of a
            model made with it takes logs as they are.

    Raises:
        InvalidArgumentError: not a vector environment of this package, or a wrapped one, or one of another autoreset
            mode, or discrete actions to be rescaled.
        MissingExtraError: Stable-Baselines3 is not installed.

    """
    inner = getattr(env, "unwrapped", env)
    mode = getattr(inner, "autoreset_mode", None)
    if not isinstance(inner, gymnasium.vector.VectorEnv) or mode is None:
        raise InvalidArgumentError(
            f"{env!r} is not a vector environment of persim-gym: make it with "
            "gymnasium.make_vec(id, num_envs=..., vectorization_mode='vector_entry_point')"
        )
    if mode != "same_step":
        raise InvalidArgumentError(
            f"autoreset_mode={mode!r}: Stable-Baselines3 resets at once; make the environment with "
            "autoreset_mode='same_step'"
        )
    if env is not inner:
        raise InvalidArgumentError(
            f"{type(env).__name__} would be lost, for Gymnasium's wrappers do not know Stable-Baselines3's interface: "
            "give env.unwrapped, and wrap what this function returns in Stable-Baselines3's (VecNormalize, VecMonitor, "
            "a VecEnvWrapper of your own)"
        )
    if rescale_actions and not isinstance(inner.single_action_space, spaces.Box):
        raise InvalidArgumentError(
            f"rescale_actions=True: the actions, {inner.single_action_space}, are discrete, so there is nothing to "
            "rescale; leave it out"
        )
    if not rescale_actions:
        _warn_of_bounds(inner.single_action_space)
    return _vec_env_class()(inner, rescale_actions)


def _warn_of_bounds(space: Any) -> None:
    """Warn of continuous actions whose bounds are far from −1 and 1: that do not hold 0, or are half or twice these."""
    if not isinstance(space, spaces.Box):
        return
    center, half_width = center_and_half_width(space.low, space.high)
    if (np.abs(center) > half_width).any() or half_width.min() < 0.5 or half_width.max() > 2:
        warn_user(
            f"actions are from {space.low.min():g} to {space.high.max():g}, but Stable-Baselines3's PPO and A2C begin "
            "with some from about -1 to 1 and then hardly move: to_sb3_vec_env(vec, rescale_actions=True) lets them "
            "act between -1 and 1",
        )


@cache
def _vec_env_class() -> Any:
    base: Any = optional("stable_baselines3.common.vec_env", "sb3", library="stable-baselines3").VecEnv

    class SimulatorVecEnv(base):
        """A vector environment with Stable-Baselines3's interface."""

        def __init__(self, env: Any, rescale_actions: bool) -> None:
            self.env, self.task_action_space = env, env.single_action_space
            self._moves, self._rescaled = np.empty(0), rescale_actions
            shape = env.single_action_space.shape
            space = spaces.Box(-1, 1, shape, np.float32) if rescale_actions else env.single_action_space
            super().__init__(env.num_envs, env.single_observation_space, space)

        def unscaled(self, actions: Any) -> Any:
            """Return the task's actions for those of this environment."""
            if not self._rescaled:
                return actions
            space = self.task_action_space
            return unscale_actions(np.asarray(actions, np.float32), space.low, space.high)

        def reset(self) -> np.ndarray:
            states = [options.get("state") for options in self._options if options]
            if states and (len(states) < self.num_envs or any(state is None for state in states)):
                raise InvalidArgumentError("set_options() must give every environment a 'state', or none any options")
            options = {"state": np.array(states)} if states else None
            observations, _ = self.env.reset(seed=self._seeds[0], options=options)
            self._reset_seeds()
            self._reset_options()
            return observations

        def step_async(self, actions: np.ndarray) -> None:
            self._moves = self.unscaled(actions)

        def step_wait(self) -> Any:
            observations, rewards, terminated, truncated, info = self.env.step(self._moves)
            infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in truncated & ~terminated]
            for name in ("disagreement", "standard_deviation", "penalty"):
                for own, row in zip(infos, info.get(name, ()), strict=False):
                    own[name] = row
            for name in ("diverged", "unknown"):
                for row in np.flatnonzero(info.get("final_info", {}).get(name, ())):
                    infos[row][name] = True
            ended = terminated | truncated
            for row in np.flatnonzero(ended):
                infos[row]["terminal_observation"] = info["final_obs"][row]
            return observations, rewards.astype(np.float32), ended, infos

        def close(self) -> None:
            self.env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise InvalidArgumentError(f"set_attr({attr_name!r}): the environments share attributes; set them on .env")

        def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> Any:
            raise InvalidArgumentError(f"env_method({method_name!r}): the environments are one; call methods of .env")

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False for _ in self._get_indices(indices)]

    return SimulatorVecEnv
