"""The problems: what is known about each without learning. One file a task; `get_task` finds one by name."""

from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.tasks import cart_pole, half_cheetah, mountain_car
from persim_gym.tasks.base import Covariate, PlanningObjective, Renderer, System, Task

__all__ = ["Covariate", "PlanningObjective", "Renderer", "System", "Task", "get_task", "register_task", "task_names"]

_TASKS: dict[str, Task] = {task.name: task for task in (mountain_car.TASK, cart_pole.TASK, half_cheetah.TASK)}


def task_names() -> tuple[str, ...]:
    """Names of all known tasks."""
    return tuple(_TASKS)


def get_task(task: "str | Task") -> Task:
    """Return the task of that name; a `Task` is returned as it is."""
    if isinstance(task, Task):
        return task
    if task not in _TASKS:
        raise UnknownNameError(
            f"unknown task {task!r}; known are {', '.join(_TASKS)}. "
            "A task of your own is made known by persim_gym.register_task(Task(...))"
        )
    return _TASKS[task]


def register_task(task: Task) -> None:
    """Make a task known under its name, so that ensembles trained for it can be loaded and made into environments."""
    known = _TASKS.get(task.name)
    if known is not None and known is not task:
        raise InvalidArgumentError(f"a task named {task.name!r} exists already; give yours another name")
    _TASKS[task.name] = task
