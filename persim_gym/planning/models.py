"""What can be planned in."""

from __future__ import annotations

from typing import Any

from persim_gym.errors import InvalidArgumentError
from persim_gym.simulators.simulator import Simulator
from persim_gym.tasks import PlanningObjective, System, Task

_NEUTRAL = (
    "TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "Autoreset", "RecordEpisodeStatistics", "RecordVideo",
    "RenderCollection", "HumanRendering", "Monitor",
)  # fmt: skip
"""Wrappers that change nothing of what an agent sees, does and earns: Gymnasium's, and Stable-Baselines3's monitor."""


def model_and_task(model: Any, task: Task | None = None) -> tuple[Simulator | System, Task]:
    """Return what a planner rolls out, a simulator or a true system, and its task.

    Args:
        model: a simulator, an environment of this package, or a true system.
        task: only needed with a bare system.

    Raises:
        InvalidArgumentError: it is none of these, or a system without a task, or an environment in a wrapper that may
            change what is seen, done or earned, of which the model knows nothing, or one in which disagreement
            costs reward or ends the episode.

    """
    inner = _without_wrappers(model)
    if getattr(inner, "caution", None):
        raise InvalidArgumentError(
            "plans follow the task's own objective and would know nothing of disagreement_penalty and "
            "max_disagreement: give an environment without them, or ensemble.simulator(agent)"
        )
    source = getattr(inner, "simulator", None) or getattr(inner, "system", None) or inner
    found = task or getattr(inner, "task", None)
    if found is None or not (isinstance(source, Simulator) or hasattr(source, "branch")):
        raise InvalidArgumentError(
            f"cannot plan in {model!r}: give a simulator, such as ensemble.simulator(agent), an environment of "
            "persim-gym, or a true system and task="
        )
    return source, found


def checked_objective(objective: Any) -> PlanningObjective | None:
    """Return what is to be maximized, None if nothing is given, or raise `InvalidArgumentError`."""
    if objective is not None and not isinstance(objective, PlanningObjective):
        raise InvalidArgumentError(
            f"objective={objective!r} must be a persim_gym.tasks.PlanningObjective of a reward and a termination"
        )
    return objective


def _without_wrappers(model: Any) -> Any:
    while getattr(model, "unwrapped", model) is not model:
        if not any(kind.__name__ in _NEUTRAL for kind in type(model).__mro__):
            raise InvalidArgumentError(
                f"the plan would know nothing of what {type(model).__name__} makes of observations, actions or "
                "rewards: give env.unwrapped, and predict() its observations; what it returns are its actions"
            )
        model = model.env
    return model
