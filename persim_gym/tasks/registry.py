"""Which tasks are known by name: those that are built in, one file each, and those that a user registers."""

from __future__ import annotations

from dataclasses import fields

from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.tasks import cart_pole, half_cheetah, mountain_car
from persim_gym.tasks.base import Task
from persim_gym.user_warnings import warn_user

_BUILT_IN = (mountain_car.TASK, cart_pole.TASK, half_cheetah.TASK)
_TASKS: dict[str, Task] = {task.name: task for task in _BUILT_IN}


def task_names() -> tuple[str, ...]:
    """Names of all known tasks."""
    return tuple(_TASKS)


def known_tasks() -> tuple[Task, ...]:
    """All known tasks; whatever is registered anew, the tuple is another one."""
    return tuple(_TASKS.values())


def get_task(task: str | Task) -> Task:
    """Return the task of that name; a `Task` is returned as it is.

    Raises:
        UnknownNameError: no task of that name is known.

    """
    if isinstance(task, Task):
        return task
    if task not in _TASKS:
        raise UnknownNameError(
            f"unknown task {task!r}; known are {', '.join(_TASKS)}. "
            "Of a log only the name of its task is kept: give one of your own again, as in fit(log, task=task), or "
            "make it known by persim_gym.register_task(task); on the command line by --task my_module:TASK"
        )
    return _TASKS[task]


def register_task(task: Task, *, replace: bool = False) -> None:
    """Make a task known under its name, so that ensembles trained for it can be loaded and made into environments.

    Args:
        task: of your own.
        replace: whether to replace another task of this name, for example an earlier version of this one. Ensembles
            that are loaded afterwards use the new one, and so do environments made afterwards by a file or an id
            of one.

    Raises:
        InvalidArgumentError: another task has this name.

    """
    if not isinstance(task, Task):
        raise InvalidArgumentError(f"task={task!r} must be a Task: persim_gym.Task(name=…, …)")
    known = _TASKS.get(task.name)
    same = known is not None and _means_the_same(known, task)
    if known in _BUILT_IN and not same:
        raise InvalidArgumentError(f"a built-in task is named {task.name!r}; give yours another name")
    if known is not None and not same and not replace:
        raise InvalidArgumentError(
            f"another task named {task.name!r} is known: give yours another name, or let it take that one's place, "
            "persim_gym.register_task(task, replace=True)"
        )
    _TASKS[task.name] = task


def warn_of_another_task(task: Task) -> None:
    """Warn where another task is known under the name of the one given, for files would load with that one."""
    known = _TASKS.get(task.name)
    if known is not None and not _means_the_same(known, task):
        warn_user(
            f"another task named {task.name!r} is registered, and a file of what is learned now would be loaded with "
            "it: persim_gym.register_task(task, replace=True) lets this one take its place, or give it another name",
        )


def _means_the_same(known: Task, task: Task) -> bool:
    known, task = known.named_as(task.given_names), task.named_as(known.given_names)
    return _is_same(known, task) or (not task.has_own_functions and known.to_json() == task.to_json())


def _is_same(first: Task, second: Task) -> bool:
    """Whether two tasks are equal field by field, as a task and its copy from another process are."""
    return all(getattr(first, field.name) == getattr(second, field.name) for field in fields(Task))


def is_built_in(task: Task) -> bool:
    """Whether every process knows the task.

    Raises:
        InvalidArgumentError: it has the name of a built-in task, and is another.

    """
    named = next((known for known in _BUILT_IN if known.name == task.name), None)
    if named is not None and not _is_same(named, task):
        raise InvalidArgumentError(
            f"a built-in task is named {task.name!r}, and yours is another; give it another name, "
            "dataclasses.replace(task, name=...)"
        )
    return named is not None
