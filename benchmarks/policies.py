"""Train the logging and test policies that ship with the package.

    python benchmarks/policies.py MountainCar CartPole HalfCheetah

The MountainCar test policy, of a strength on the five test agents like that of the paper's, was trained by

    python benchmarks/policies.py MountainCar --only test --seed 1 --max-steps 150000 --evaluation-episodes 20

DQN for the discrete tasks and TD3 for HalfCheetah, online in the true system, each stopped at the first evaluation
above its threshold (paper, section 5). A policy whose file exists is not trained again.

HalfCheetah's test policy, and the logging policy of mass 0.6 and damping 0.6, which alone got no further than 1850 in
130 000 steps with any of three seeds, by

    python benchmarks/policies.py HalfCheetah --only test --seed 1 --evaluate-every 2500
    python benchmarks/policies.py HalfCheetah --only logging2 --seed 1 --evaluate-every 2500 \
        --first-on 1,1=5000 0.8,0.8=3500

A training amplifies the processor's rounding, so that on another one its returns and steps come out differently. The
returns in the files are of the evaluation that ended it, five episodes; of 60 the means are 4800 and 3150, for some of
each fall. The trajectories of the test policy spread about as far as those of the authors' (policy_scale.py).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from script import script
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise

from persim_gym.interop.sb3 import policy_from_sb3
from persim_gym.tasks import Task, get_task
from persim_gym.tasks.heterogeneous import HeterogeneousEnv

OUT = Path(__file__).parents[1] / "persim_gym" / "assets" / "policies"
UNFINISHED = Path(__file__).parent / ".cache" / "policies"
"""The best of each training so far, above its threshold or not."""
LOGGING_THRESHOLD = {"MountainCar": -200.0, "CartPole": 120.0, "HalfCheetah": 3000.0}
# The strength of the test policies behind the paper's published tables, measured in its default agent.
TEST_THRESHOLD = {"MountainCar": -110.0, "CartPole": 195.0, "HalfCheetah": 5000.0}
EPSILON = 0.01
MAX_STEPS = {"MountainCar": 600_000, "CartPole": 600_000, "HalfCheetah": 1_000_000}
EVALUATION_EPISODES = {"MountainCar": 50, "CartPole": 50, "HalfCheetah": 5}


def make_env(task: Task, covariates: tuple[float, ...]) -> gym.Env:
    """Return the true system with the task's time limit."""
    return HeterogeneousEnv(task.name, **dict(zip(task.covariate_names, covariates, strict=True)))


def make_learner(task: Task, env: gym.Env, seed: int) -> DQN | TD3:
    """Return the untrained learner of a task."""
    if task.name == "MountainCar":
        return DQN(
            "MlpPolicy", env, learning_rate=4e-3, batch_size=128, buffer_size=50_000, learning_starts=1_000,
            gamma=0.99, target_update_interval=600, train_freq=16, gradient_steps=8, exploration_fraction=0.1,
            exploration_final_eps=0.07, policy_kwargs={"net_arch": [256, 256]}, seed=seed, device="cpu",
        )  # fmt: skip
    if task.name == "CartPole":
        return DQN(
            "MlpPolicy", env, learning_rate=2.3e-3, batch_size=64, buffer_size=50_000, learning_starts=1_000,
            gamma=0.99, target_update_interval=10, train_freq=256, gradient_steps=128, exploration_fraction=0.02,
            exploration_final_eps=0.1, policy_kwargs={"net_arch": [256, 256]}, seed=seed, device="cpu",
        )  # fmt: skip
    return TD3(
        "MlpPolicy", env, learning_rate=3e-4, batch_size=256, buffer_size=1_000_000, learning_starts=25_000,
        gamma=0.99, tau=0.005, action_noise=NormalActionNoise(np.zeros(6), 0.1 * np.ones(6)), policy_delay=2,
        target_policy_noise=0.2, target_noise_clip=0.5, seed=seed, device="cpu",
        policy_kwargs={"net_arch": [256, 256], "optimizer_kwargs": {"fused": True}},
    )  # fmt: skip


class SaveBest(BaseCallback):
    """Called at each new best evaluation: hands its return on."""

    def __init__(self, save: Callable[[float], None]) -> None:
        super().__init__()
        self._save = save

    def _on_step(self) -> bool:
        assert isinstance(self.parent, EvalCallback)
        self._save(float(self.parent.best_mean_reward))
        return True


def stage(text: str) -> tuple[tuple[float, ...], float]:
    """Return covariates and the return to reach, written as 0.8,0.8=3500."""
    covariates, _, threshold = text.partition("=")
    return tuple(map(float, covariates.split(","))), float(threshold)


def train(
    task: Task,
    name: str,
    stages: Sequence[tuple[tuple[float, ...], float]],
    seed: int,
    max_steps: int,
    episodes: int,
    evaluate_every: int,
) -> None:
    """Train one policy until an evaluation exceeds the threshold, for one agent after the other; save the last."""
    path = OUT / f"{task.name}-{name}.safetensors"
    if path.exists():
        print(f"{path.name}: exists", flush=True)
        return
    start = time.perf_counter()
    learner = make_learner(task, make_env(task, stages[0][0]), seed)

    def save(covariates: tuple[float, ...], threshold: float, path: Path, reached: float) -> None:
        provenance = {
            "algorithm": type(learner).__name__,
            "covariates": dict(zip(task.covariate_names, covariates, strict=True)),
            "steps": learner.num_timesteps,
            "return": reached,
            "threshold": threshold,
            "seed": seed,
            "trained_before_on": [list(earlier) for earlier, _ in stages[:-1]],
        }
        epsilon = EPSILON if task.discrete else 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        policy_from_sb3(learner, task, epsilon=epsilon, provenance=provenance).save(path)

    reached = -math.inf
    for covariates, threshold in stages:
        unfinished = partial(save, covariates, threshold, UNFINISHED / path.name)
        evaluation = EvalCallback(
            Monitor(make_env(task, covariates)),
            callback_on_new_best=CallbackList([SaveBest(unfinished), StopTrainingOnRewardThreshold(threshold)]),
            n_eval_episodes=episodes,
            eval_freq=evaluate_every,
            deterministic=not task.discrete,
            verbose=1,
        )
        learner.set_env(make_env(task, covariates))
        learner.learn(max_steps, callback=evaluation, reset_num_timesteps=False)
        reached = float(evaluation.best_mean_reward)
        seconds = time.perf_counter() - start
        print(f"{path.name}: {learner.num_timesteps} steps, {covariates} {reached:.1f}, {seconds:.0f} s", flush=True)
        if reached < threshold:
            print(f"{path.name}: not saved, the threshold is {threshold}", flush=True)
            return
    save(*stages[-1], path, reached)


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Train every policy of the named tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["MountainCar", "CartPole", "HalfCheetah"])
    parser.add_argument("--only", help="train only the policies whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="give up after these; exploration ends after a part of them")
    parser.add_argument("--evaluation-episodes", type=int)
    parser.add_argument("--evaluate-every", type=int, default=5_000, help="steps")
    parser.add_argument("--first-on", nargs="+", type=stage, default=[], metavar="0.8,0.8=3500",
                        help="train on these agents before, in turn, until each return is reached")  # fmt: skip
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for task in map(get_task, given.tasks):
        wanted = [("test", tuple(task.default_covariates), TEST_THRESHOLD[task.name])]
        wanted += [
            (f"logging{index}", covariates, LOGGING_THRESHOLD[task.name])
            for index, covariates in enumerate(task.policy_training_agents)
        ]
        for name, covariates, threshold in wanted:
            if given.only is None or given.only in name:
                max_steps = given.max_steps or MAX_STEPS[task.name]
                episodes = given.evaluation_episodes or EVALUATION_EPISODES[task.name]
                stages = [*given.first_on, (covariates, threshold)]
                train(task, name, stages, given.seed, max_steps, episodes, given.evaluate_every)


if __name__ == "__main__":
    raise SystemExit(main())
