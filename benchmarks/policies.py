"""Train the logging and test policies that ship with the package.

    python benchmarks/policies.py MountainCar CartPole HalfCheetah

The MountainCar test policy, of a strength on the five test agents like that of the paper's, was trained by

    python benchmarks/policies.py MountainCar --only test --seed 1 --max-steps 150000 --evaluation-episodes 20

DQN for the discrete tasks and TD3 for HalfCheetah, online in the true system, each stopped at the first evaluation
above its threshold (paper, appendix D). A policy whose file exists is not trained again.

Two of HalfCheetah's ship although they are below their thresholds, as their files say. The test policy has 4124, after
95 000 steps. The same run reaches 5145 after 125 000, but that policy's trajectories spread up to 1.23 times as far as
those of the authors', the shipped one's up to 1.17 (policy_scale.py: 1.03 1.13 1.04 1.15 1.23 against 1.07 1.11 1.07
1.17 1.12). And logging2, of mass 0.6 and damping 0.6, has 1362: three seeds came to 1000 to 1850 in 130 000 steps, and
30 000 steps from the test policy's actor (--start-from), which has 800 there at once, to 300 at best.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise

from persim_gym.interop.sb3 import policy_from_sb3
from persim_gym.policies import MLPPolicy
from persim_gym.tasks import Task, get_task
from persim_gym.tasks.heterogeneous import HeterogeneousEnv

OUT = Path(__file__).parents[1] / "persim_gym" / "assets" / "policies"
UNFINISHED = Path(__file__).parent / ".cache" / "policies"
"""The best of each training so far, above its threshold or not."""
LOGGING_THRESHOLD = {"MountainCar": -200.0, "CartPole": 120.0, "HalfCheetah": 3000.0}
# The strength of the test policies behind the paper's published tables, measured in its default agent.
TEST_THRESHOLD = {"MountainCar": -110.0, "CartPole": 195.0, "HalfCheetah": 5000.0}
EPSILON = 0.01
EVALUATE_EVERY = 5_000
CRITICS_ALONE = 20_000
"""Steps during which a policy that another one is started from only acts."""
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
    """Called at each new best evaluation: hands the learner and its return on."""

    def __init__(self, save: Callable[[BaseAlgorithm, float], None]) -> None:
        super().__init__()
        self._save = save

    def _on_step(self) -> bool:
        assert isinstance(self.parent, EvalCallback)
        self._save(self.model, float(self.parent.best_mean_reward))
        return True


def take_over(learner: TD3, policy: MLPPolicy) -> None:
    """Let an actor start as a trained policy is."""
    linear = [module for module in learner.actor.mu if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for module, (weight, bias) in zip(linear, policy.layers, strict=True):
            module.weight.copy_(torch.tensor(weight.T))
            module.bias.copy_(torch.tensor(bias))
    learner.actor_target.load_state_dict(learner.actor.state_dict())


def train(
    task: Task,
    name: str,
    covariates: tuple[float, ...],
    threshold: float,
    seed: int,
    max_steps: int,
    episodes: int,
    start_from: Path | None,
) -> None:
    """Train one policy until an evaluation exceeds the threshold, and save it."""
    path = OUT / f"{task.name}-{name}.safetensors"
    if path.exists():
        print(f"{path.name}: exists", flush=True)
        return
    start = time.perf_counter()

    def save(learner: BaseAlgorithm, reached: float, path: Path) -> None:
        provenance = {
            "algorithm": type(learner).__name__,
            "covariates": dict(zip(task.covariate_names, covariates, strict=True)),
            "steps": learner.num_timesteps,
            "return": reached,
            "threshold": threshold,
            "seed": seed,
            "started_from": start_from and start_from.stem,
        }
        epsilon = EPSILON if task.discrete else 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        policy_from_sb3(learner, task, epsilon=epsilon, provenance=provenance).save(path)

    evaluation = EvalCallback(
        Monitor(make_env(task, covariates)),
        callback_on_new_best=CallbackList(
            [
                SaveBest(lambda learner, reached: save(learner, reached, UNFINISHED / path.name)),
                StopTrainingOnRewardThreshold(threshold),
            ]
        ),
        n_eval_episodes=episodes,
        eval_freq=EVALUATE_EVERY,
        deterministic=not task.discrete,
        verbose=1,
    )
    learner = make_learner(task, make_env(task, covariates), seed)
    if start_from is not None and isinstance(learner, TD3):
        take_over(learner, MLPPolicy.load(start_from))
        learner.learning_starts = learner.batch_size
        learner.actor.requires_grad_(False)  # it waits until the critics know it
        learner.learn(CRITICS_ALONE)
        learner.actor.requires_grad_(True)
    learner.learn(max_steps, callback=evaluation, reset_num_timesteps=False)
    reached = float(evaluation.best_mean_reward)
    print(f"{path.name}: {learner.num_timesteps} steps, {reached:.1f}, {time.perf_counter() - start:.0f} s", flush=True)
    if reached < threshold:
        print(f"{path.name}: not saved, the threshold is {threshold}", flush=True)
        return
    save(learner, reached, path)


def main() -> None:
    """Train every policy of the named tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["MountainCar", "CartPole", "HalfCheetah"])
    parser.add_argument("--only", help="train only the policies whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="give up after these; exploration ends after a part of them")
    parser.add_argument("--evaluation-episodes", type=int)
    parser.add_argument("--start-from", type=Path, help="file of a trained policy that TD3 starts from")
    arguments = parser.parse_args()
    if arguments.start_from and arguments.tasks != ["HalfCheetah"]:
        parser.error("--start-from is for TD3, which trains HalfCheetah's policies")
    torch.set_num_threads(1)
    for task in map(get_task, arguments.tasks):
        wanted = [("test", tuple(task.default_covariates), TEST_THRESHOLD[task.name])]
        wanted += [
            (f"logging{index}", covariates, LOGGING_THRESHOLD[task.name])
            for index, covariates in enumerate(task.policy_training_agents)
        ]
        for name, covariates, threshold in wanted:
            if arguments.only is None or arguments.only in name:
                max_steps = arguments.max_steps or MAX_STEPS[task.name]
                episodes = arguments.evaluation_episodes or EVALUATION_EPISODES[task.name]
                start_from = arguments.start_from
                train(task, name, covariates, threshold, arguments.seed, max_steps, episodes, start_from)


if __name__ == "__main__":
    main()
