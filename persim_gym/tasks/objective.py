"""What is rewarded and what ends an episode, as functions, and what planners make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from persim_gym.errors import PerSimError

# Rewards and termination rules use operators only, so that the same definition serves NumPy arrays and torch tensors.
RewardFn = Callable[[Any, Any, Any], Any]
"""(observations (..., D), actions (...) or (..., A), next_observations (..., D)) -> rewards (...)."""
TerminationFn = Callable[[Any], Any]
"""next_observations (..., D) -> terminated (...), boolean."""
ProgressFn = Callable[[Any], Any]
"""observations (..., D) -> (...)."""


class ToLearn:
    """Stands where a task has no reward or termination function: `persim_gym.fit` learns it from the log."""

    def __call__(self, *columns: Any) -> Any:
        raise PerSimError(
            "this task has no such function of its own; fit learns it, and the tasks of its simulators have it "
            "(ensemble.simulator(agent).task). The models of persim_gym.baselines learn none: for them, give the task "
            "these functions or, to plan, the planner an objective=PlanningObjective(reward, terminated)"
        )

    def __reduce__(self) -> str:
        """Pickle and copy as what it is, the one object of its kind."""
        return "TO_LEARN"


TO_LEARN = ToLearn()


@dataclass(frozen=True)
class PlanningObjective:
    """What a planner maximizes over a rollout s_0, a_0, s_1, …, s_H.

    return = Σ_t alive_t · reward(s_t, a_t, s_{t+1}) + H · max_{0≤t≤H} progress(s_t),

    where alive_t is 0 after the step that ends in a terminal state or, without ``pays_last_step``, from this step on;
    where termination was learned, it is the probability of no end until then, the product of 1 − that of each state.
    """

    reward: RewardFn
    terminated: TerminationFn | None = None
    progress: ProgressFn | None = None
    max_reward: float | None = None
    """The largest reward of one step, if known: a search may stop at a rollout that earns it at every step."""
    of_agent: Callable[[int], PlanningObjective] | None = None
    """For a learned reward with factors of each agent's own: the objective of an agent's index."""
    pays_last_step: bool = True
    """Whether the step into a terminal state earns its reward, as it does in an episode."""

    def largest_return(self, horizon: int) -> float | None:
        """Return what no rollout of so many steps can exceed; None if that is not known."""
        if self.max_reward is None or self.progress is not None:
            return None
        # Where every step costs, a rollout that ends early has the best return.
        return horizon * (self.max_reward if self.terminated is None else max(self.max_reward, 0.0))
