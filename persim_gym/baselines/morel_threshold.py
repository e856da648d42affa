"""How much disagreement MOReL's pessimistic MDP puts up with: the threshold, and what it makes of a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.baselines.morel_ppo import learn
from persim_gym.baselines.pessimistic import PessimisticVectorEnv, PlainDynamics
from persim_gym.data.trajectories import Trajectories

THRESHOLD_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""c, of which the first is taken that suits: the lower, the more counts as unknown."""


def largest_discrepancy(dynamics: PlainDynamics, log: Trajectories) -> float:
    """Return the largest discrepancy of the log's own pairs of state and action."""
    return float(dynamics.predict(np.asarray(log.observations), np.asarray(log.actions))[1].max())


@dataclass(frozen=True)
class Halting:
    """How a policy's episodes in the pessimistic MDP end."""

    halted: float
    """The part that ends by halting."""
    mean_episode_steps: float


def halting(env: PessimisticVectorEnv, policy: Any, seed: int) -> Halting:
    """Run an episode in each of the environments, by the policy's most likely actions."""
    observations, _ = env.reset(seed=seed)
    lengths, halted = np.zeros(env.num_envs), np.zeros(env.num_envs, bool)
    running = np.ones(env.num_envs, bool)
    while running.any():
        actions, _ = policy.predict(observations, deterministic=True)
        observations, _, terminated, truncated, info = env.step(actions)
        lengths += running
        halted |= running & info["halted"]
        running &= ~(terminated | truncated)
    return Halting(float(halted.mean()), float(lengths.mean()))


def first_that_seldom_halts(
    make_env: Callable[[float], PessimisticVectorEnv],
    make_ppo: Callable[[PessimisticVectorEnv], Any],
    *,
    trial_steps: int,
    policy_steps: int,
    max_halted: float,
    seed: int,
    progress: bool,
) -> tuple[float, Any]:
    """Return the lowest c whose policy seldom halts, and its PPO, which has learned for ``policy_steps``.

    Nothing but the learned dynamics is asked, as when the method's own threshold was chosen by how long episodes last.
    Where all of `THRESHOLD_SCALES` halt more often, it is the one that halted least when it was given up.

    Args:
        make_env: returns the pessimistic MDP of a threshold scale c.
        make_ppo: returns PPO, not trained yet, in one.
        trial_steps: that PPO learns from before its episodes are looked at, so that most c are given up early.
        policy_steps: after which they are looked at again: a policy goes on to learn that halting ends what costs more.
        max_halted: the part of them that may end by halting, each time.
        seed: of these episodes.
        progress: whether to show bars.

    """
    given_up = []
    for scale in THRESHOLD_SCALES:
        ppo, halted = make_ppo(make_env(scale)), 0.0
        for steps in (min(trial_steps, policy_steps), policy_steps):
            if halted <= max_halted:
                learn(ppo, steps, progress=progress)
                halted = halting(make_env(scale), ppo.policy, seed).halted  # elsewhere than where PPO goes on
        if halted <= max_halted:
            return scale, ppo
        given_up.append((halted, scale, ppo))
    _, scale, ppo = min(given_up, key=lambda one: one[:2])
    learn(ppo, policy_steps, progress=progress)
    return scale, ppo
