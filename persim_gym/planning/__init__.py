"""Planners, pure searches over action sequences that see only what a sequence earns, and `MPCAgent` on top."""

from persim_gym.planning.agent import PLANNERS, MPCAgent
from persim_gym.planning.cem import cross_entropy_method
from persim_gym.planning.icem import improved_cross_entropy_method
from persim_gym.planning.mppi import path_integral_control
from persim_gym.planning.random_shooting import random_shooting
from persim_gym.planning.search import ContinuousSearch, DiscreteSearch, Plan, Search
from persim_gym.planning.value_iteration import ValueIterationAgent, value_iteration

__all__ = [
    "PLANNERS",
    "ContinuousSearch",
    "DiscreteSearch",
    "MPCAgent",
    "Plan",
    "Search",
    "ValueIterationAgent",
    "cross_entropy_method",
    "improved_cross_entropy_method",
    "path_integral_control",
    "random_shooting",
    "value_iteration",
]
