"""MOReL's policy while it learns: PPO in one pessimistic MDP, kept meanwhile, and how its episodes there end."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.baselines.morel_ppo import actions_of
from persim_gym.baselines.pessimistic import PessimisticVectorEnv
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.terminal import ProgressBar
from persim_gym.threads import single_thread
from persim_gym.training.checkpoint import Checkpoint, optimizer_state, restore_optimizer


class PolicyRun:
    """PPO that learns in one pessimistic MDP, and how its policy's episodes were found to end.

    The random numbers of a rollout are those of the seed and of the steps before it, so nothing of them has to be kept.
    To be made and used within `isolated_training`.
    """

    def __init__(
        self,
        make_env: Callable[[], PessimisticVectorEnv],
        make_ppo: Callable[[PessimisticVectorEnv], Any],
        *,
        seed: int,
        checkpoint: Checkpoint,
    ) -> None:
        """Make PPO, and let it go on where the checkpoint left it, if it did.

        Args:
            make_env: returns the pessimistic MDP.
            make_ppo: returns PPO, not trained yet, in one.
            seed: of rollouts, and of the episodes that are looked at.
            checkpoint: where the run is kept; whoever calls removes it.

        Raises:
            FileFormatError: the checkpoint is damaged, or of another run.

        """
        self._env, self.trial_env = make_env(), make_env()
        """PPO goes on in the one; episodes are looked at in the other."""
        self.ppo = make_ppo(self._env)
        self._seed, self._checkpoint = seed, checkpoint
        self._halted: dict[str, float] = {}
        """By the steps after which they were looked at."""
        self.earlier_seconds = self._seconds = 0.0
        """That the run has taken in earlier calls, and in all."""
        checkpoint.resume(self)

    def learn(self, steps: int, *, progress: bool = False) -> None:
        """Go on until PPO has learned from so many steps over all environments."""
        done = self.ppo.num_timesteps
        if done >= steps:
            return
        with ProgressBar("policy", steps, progress, done=done) as bar:
            while self.ppo.num_timesteps < steps:
                self._learn_from_a_rollout()
                bar.complete(self.ppo.num_timesteps)
                if self._checkpoint.due:
                    self._checkpoint.write(self)

    def halted_after(self, steps: int, *, progress: bool = False) -> float:
        """Return the part of the policy's episodes that end by halting, once it has learned from so many steps."""
        key = str(steps)
        if key not in self._halted:
            self.learn(steps, progress=progress)
            self._halted[key] = self.halting().halted
            self._checkpoint.write(self)
        return self._halted[key]

    def halting(self) -> Halting:
        """Return how the present policy's episodes end."""
        return halting(self.trial_env, self.ppo.policy, self._seed)

    def _learn_from_a_rollout(self) -> None:
        start = time.perf_counter()
        rng = np.random.default_rng([self._seed, self.ppo.num_timesteps])
        torch.manual_seed(int(rng.integers(2**63)))
        np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
        self._env.np_random = rng
        self.ppo.learn(1, reset_num_timesteps=False)
        self._seconds += time.perf_counter() - start

    def state(self) -> dict[str, Tensor]:
        """Return, with `progress`, everything that the steps to come depend on."""
        network = self.ppo.policy
        kept = with_prefix("network", network.state_dict()) | with_prefix("adam", optimizer_state(network.optimizer))
        return kept | {name: torch.tensor(array) for name, array in with_prefix("env", self._env.state()).items()}

    def progress(self) -> dict[str, Any]:
        """Return how far the run has come."""
        return {"steps": self.ppo.num_timesteps, "halted": self._halted, "learning_seconds": self._seconds}

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state` and `progress` returned."""
        network = self.ppo.policy
        network.load_state_dict(without_prefix("network", tensors))
        restore_optimizer(network.optimizer, without_prefix("adam", tensors))
        self._env.restore({name: tensor.numpy() for name, tensor in without_prefix("env", tensors).items()})
        state = self._env.state()
        self.ppo._last_obs, self.ppo._last_episode_starts = state["observations"], state["steps"] == 0
        self.ppo.num_timesteps, self._halted = int(progress["steps"]), dict(progress["halted"])
        self.earlier_seconds = self._seconds = float(progress["learning_seconds"])


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
        actions = actions_of(policy, env.task, observations, deterministic=True)
        observations, _, terminated, truncated, info = env.step(actions)
        lengths += running
        halted |= running & info["halted"]
        running &= ~(terminated | truncated)
    return Halting(float(halted.mean()), float(lengths.mean()))


@contextlib.contextmanager
def isolated_training() -> Iterator[None]:
    """Make PPO and train it in here: on one thread, and with everybody's random numbers put back at the end.

    Stable-Baselines3 seeds Python's, NumPy's and torch's when PPO is made, and draws from them when it learns.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with single_thread(), torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
