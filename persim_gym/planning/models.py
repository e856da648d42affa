"""What can be planned in."""

from __future__ import annotations

from typing import Any

from persim_gym.errors import InvalidArgumentError
from persim_gym.simulator import Simulator
from persim_gym.tasks import System, Task


def model_and_task(model: Any, task: Task | None = None) -> tuple[Simulator | System, Task]:
    """Return what a planner rolls out, a simulator or a true system, and its task.

    Args:
        model: a simulator, an environment of this package, or a true system.
        task: only needed with a bare system.

    Raises:
        InvalidArgumentError: it is none of these, or a system without a task.

    """
    inner = getattr(model, "unwrapped", model)
    source = getattr(inner, "simulator", None) or getattr(inner, "system", None) or inner
    found = task or getattr(inner, "task", None)
    if found is None or not (isinstance(source, Simulator) or hasattr(source, "branch")):
        raise InvalidArgumentError(
            f"cannot plan in {model!r}: give a simulator, an environment of persim-gym, or a true system and task="
        )
    return source, found
