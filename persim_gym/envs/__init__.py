"""The simulator of one agent as a Gymnasium environment, and of many as a vector environment."""

from persim_gym.envs.personalized import PersonalizedEnv
from persim_gym.envs.vector import PersonalizedVectorEnv

__all__ = ["PersonalizedEnv", "PersonalizedVectorEnv"]
