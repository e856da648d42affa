"""Five synthetic trajectories for an offline learner that has a single recorded one: CQL without and with them.

python examples/feed_d3rlpy.py [--agent 0] [--steps 5000]
"""

import argparse

import d3rlpy

import persim_gym
from persim_gym.interop import to_d3rlpy

parser = argparse.ArgumentParser()
parser.add_argument("--agent", type=int, default=0)
parser.add_argument("--steps", type=int, default=5_000)
parser.add_argument("--candidates", type=int, default=1_000, help="action sequences a plan is chosen from")
parser.add_argument("--episodes", type=int, default=20)
arguments = parser.parse_args()

# The shipped simulators, and this agent's trajectory in the log they were trained on.
ensemble = persim_gym.load("CartPole")
recorded = persim_gym.collect("CartPole", policy="random", num_agents=500, seed=0).select([arguments.agent])

# What the agent would do if it followed plans made in its simulator.
synthetic = persim_gym.generate(ensemble, [arguments.agent], 5, num_candidates=arguments.candidates, seed=0)
print(synthetic)

both = persim_gym.Trajectories.concatenate([recorded, synthetic])
for name, log in (("recorded", recorded), ("with synthetic", both)):
    cql = d3rlpy.algos.DiscreteCQLConfig(batch_size=128, learning_rate=1e-3).create(device="cpu:0")
    cql.fit(
        to_d3rlpy(log),
        n_steps=arguments.steps,
        n_steps_per_epoch=arguments.steps,
        save_interval=arguments.steps + 1,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    # Both are judged in the agent's true system.
    (row,) = persim_gym.policy_returns(ensemble, cql, agents=[arguments.agent], episodes=arguments.episodes)
    print(f"CQL, {name} ({log.num_transitions} transitions): mean return {row.mean:.1f} in the true system")
synthetic.save("synthetic.safetensors")
