"""What action sequences earn: rollouts of planner candidates in a simulator or in the true system."""

from persim_gym.rollouts.batching import PROPAGATIONS, simulated_returns
from persim_gym.rollouts.loops import true_returns

__all__ = ["PROPAGATIONS", "simulated_returns", "true_returns"]
