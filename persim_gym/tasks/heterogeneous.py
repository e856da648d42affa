"""The true system of a task as a Gymnasium environment: ``gym.make("Heterogeneous-CartPole-v0", force=2.0)``."""

from __future__ import annotations

from typing import Any

from persim_gym.tasks import get_task
from persim_gym.tasks.environment import TaskEnv
from persim_gym.types import FloatArray


class HeterogeneousEnv(TaskEnv):
    """One agent's true system; its hidden covariates are keyword arguments.

    | task        | covariates (default)           | observation                                        | actions |
    |-------------|--------------------------------|----------------------------------------------------|---------|
    | MountainCar | gravity (0.0025)               | position, velocity                                 | 3       |
    | CartPole    | force (10 N), length (0.5 m)   | position, velocity, angle, angular velocity        | 2       |
    | HalfCheetah | mass (×1), damping (×1)        | forward speed, 8 positions, 9 velocities           | (6,)    |

    Reward, termination, time limit and start states are the task's (`persim_gym.tasks`), shared with the simulators.
    """

    def __init__(
        self, task: str, render_mode: str | None = None, time_limit: int | None = None, **covariates: float
    ) -> None:
        known = get_task(task)
        super().__init__(known, known.covariate_vector(covariates), render_mode, time_limit)
        self.system = known.system(self.covariates)

    def _begin(self, state: FloatArray | None) -> FloatArray:
        if state is None:
            return self.system.reset(self.np_random)[0]
        self.system.set_observations(state[None])
        return state

    def _advance(self, observation: FloatArray, action: Any) -> tuple[FloatArray, bool, dict[str, Any]]:
        return self.system.step([action])[0], False, {}
