"""MPC on several agents at once: each planned for in its own simulator, each acting in its own true system.

python examples/mpc_many_agents.py [--agents 0 1 2 3] [--steps 200] [--out mpc.csv]
"""

import argparse

import numpy as np

import persim_gym

parser = argparse.ArgumentParser()
parser.add_argument("--agents", type=int, nargs="+", default=[0, 1, 2, 3])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--candidates", type=int, default=1_000)
parser.add_argument("--out", default="mpc.csv")
arguments = parser.parse_args()

ensemble = persim_gym.load("CartPole")
task = ensemble.task
covariates = np.array([ensemble.agent_covariates(agent) for agent in arguments.agents])

# One planner, one state a row; row k is agent k's.
planner = persim_gym.MPCAgent(ensemble.simulator(agents=arguments.agents), num_candidates=arguments.candidates, seed=0)
systems = task.system(covariates)
observations = systems.reset(np.random.default_rng(0))
plans, standing = None, np.ones(len(arguments.agents), bool)
lengths = np.zeros(len(arguments.agents), int)
history = []
for _step in range(arguments.steps):
    actions, plans = planner.predict(observations, state=plans)
    observations = systems.step(actions)
    history.append(observations[:, 2])
    lengths += standing
    standing &= ~task.terminated(observations)
    if not standing.any():
        break
    observations = np.where(standing[:, None], observations, 0.0)  # whoever fell is planned for, but no longer counts

for agent, (force, length), count in zip(arguments.agents, covariates, lengths, strict=True):
    print(f"agent {agent} (force {force:g} N, half length {length:g} m): upright for {count} of {len(history)} steps")
header = ",".join(f"angle of agent {agent}" for agent in arguments.agents)
np.savetxt(arguments.out, np.array(history), delimiter=",", header=header, comments="")
print("pole angles:", arguments.out)
