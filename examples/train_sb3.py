"""Train Stable-Baselines3's PPO in one agent's simulator only, then try it in the agent's true system.

python examples/train_sb3.py [--agent 4] [--steps 50000] [--seed 0] [--json result.json]
"""

import argparse
import json
import sys

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import persim_gym

parser = argparse.ArgumentParser()
parser.add_argument("--agent", type=int, default=4)
parser.add_argument("--steps", type=int, default=50_000)
parser.add_argument("--episodes", type=int, default=100)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--json", help="file to write the result to")
arguments = parser.parse_args()
torch.set_num_threads(1)  # the networks are small

# Eight copies of the simulator. It was learned from random actions, one short trajectory of each agent.
env_id = f"PerSim-CartPole-agent{arguments.agent}-v0"
simulated = make_vec_env(env_id, n_envs=8, seed=arguments.seed)
model = PPO(
    "MlpPolicy",
    simulated,
    n_steps=min(32, max(2, arguments.steps // 8)),
    batch_size=256,
    n_epochs=20,
    gamma=0.98,
    gae_lambda=0.8,
    learning_rate=lambda left: 1e-3 * left,
    clip_range=lambda left: 0.2 * left,
    seed=arguments.seed,
    device="cpu",
)
model.learn(arguments.steps - arguments.steps % (model.n_steps * simulated.num_envs))  # whole rollouts

# The agent's true system: its covariates are known here, for the log was recorded in it.
force, length = gym.make(env_id).unwrapped.ensemble.agent_covariates(arguments.agent)
real = make_vec_env(lambda: gym.make("Heterogeneous-CartPole-v0", force=force, length=length), 8, seed=arguments.seed)
result = {"command": " ".join(["python", *sys.argv]), "env": env_id, "force": force, "length": length}
result |= {"steps": model.num_timesteps, "episodes": arguments.episodes, "persim_gym": persim_gym.__version__}
for name, env in (("simulated", simulated), ("real", real)):
    returns, _ = evaluate_policy(model, env, arguments.episodes, return_episode_rewards=True)
    result |= {f"{name}_mean": float(np.mean(returns)), f"{name}_min": float(np.min(returns))}
    print(f"{name}: mean return {np.mean(returns):.1f} of {len(returns)} episodes, least {np.min(returns):.0f}")
if arguments.json:
    with open(arguments.json, "w") as file:
        json.dump(result, file, indent=2)
