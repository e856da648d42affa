"""One logged trajectory per agent in, one simulator per agent out.

python examples/quickstart.py [--agents 500] [--epochs 300]
"""

import argparse

import gymnasium as gym

import persim_gym

parser = argparse.ArgumentParser()
parser.add_argument("--agents", type=int, default=500)
parser.add_argument("--epochs", type=int, default=300)
arguments = parser.parse_args()

# A log: each agent acted at random once, in its own system. Yours comes in through Trajectories.from_arrays.
log = persim_gym.collect("CartPole", policy="random", num_agents=arguments.agents, seed=0)
print(log)

# One model for all agents, one latent factor vector for each.
ensemble = persim_gym.fit(log, epochs=arguments.epochs, seed=0)
ensemble.save("cartpole.persim")

# Each agent's simulator is an ordinary environment.
persim_gym.register_ensemble("cartpole.persim")
env = gym.make("PerSim-CartPole-agent4-v0")

# Plan in it.
agent = persim_gym.MPCAgent(env, num_candidates=200)
observation, _ = env.reset(seed=0)
plan, steps, over = None, 0, False
while not over:
    action, plan = agent.predict(observation, state=plan)
    observation, reward, terminated, truncated, info = env.step(action)
    steps, over = steps + 1, terminated or truncated
print(f"MPC kept the pole of agent 4 up for {steps} simulated steps; last disagreement {info['disagreement']}")
