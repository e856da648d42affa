"""The problems: what is known about each without learning. One file a task; `get_task` finds one by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from persim_gym.errors import FileFormatError, InvalidArgumentError, PerSimError, UnknownNameError
from persim_gym.tasks import cart_pole, half_cheetah, mountain_car
from persim_gym.tasks.base import Task
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.objective import PlanningObjective, RewardFn, TerminationFn, ToLearn
from persim_gym.tasks.system import Renderer, System
from persim_gym.user_warnings import warn_user

__all__ = [
    "Covariate",
    "PlanningObjective",
    "Renderer",
    "RewardFn",
    "System",
    "Task",
    "TerminationFn",
    "ToLearn",
    "find_task",
    "get_task",
    "import_task",
    "is_built_in",
    "known_tasks",
    "register_task",
    "task_fields",
    "task_names",
    "task_of_file",
    "warn_of_another_task",
]

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
    return is_same(known, task) or (not task.has_own_functions and known.to_json() == task.to_json())


def is_same(first: Task, second: Task) -> bool:
    """Whether two tasks are equal field by field, as a task and its copy from another process are."""
    return all(getattr(first, field.name) == getattr(second, field.name) for field in fields(Task))


def is_built_in(task: Task) -> bool:
    """Whether every process knows the task.

    Raises:
        InvalidArgumentError: it has the name of a built-in task, and is another.

    """
    named = next((known for known in _BUILT_IN if known.name == task.name), None)
    if named is not None and not is_same(named, task):
        raise InvalidArgumentError(
            f"a built-in task is named {task.name!r}, and yours is another; give it another name, "
            "dataclasses.replace(task, name=...)"
        )
    return named is not None


def task_fields(task: Task) -> dict[str, Any]:
    """Return what a file says of its task: the name, and of one that is not built in how to find or make it."""
    return {"task": task.name, **({} if is_built_in(task) else {"task_definition": task.to_json()})}


def task_of_file(path: str | Path, document: Mapping[str, Any], task: str | Task | None) -> Task:
    """Return the task of a file.

    Args:
        path: of the file.
        document: in its header, with `task_fields`.
        task: what it must be, if that is known.

    Raises:
        FileFormatError: the header names no task, or another one than ``task``.
        UnknownNameError: see `find_task`.
        PerSimError: see `find_task`.

    """
    name = document.get("task")
    if not isinstance(name, str):
        raise FileFormatError(f"{path}: the header is damaged (it names no task)")
    definition = document.get("task_definition")
    try:
        found = find_task(name, definition) if task is None else get_task(task)
        if definition is not None:
            found = found.named_as(definition)
        spaces = (
            {} if definition is None else {what: definition[what] for what in ("observation_space", "action_space")}
        )
    except PerSimError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: the header is damaged (in task_definition, {error!r})") from error
    if found.name != name:
        raise FileFormatError(f"{path} is of task {name}, not of {found.name}")
    known = found.to_json()
    for what, space in spaces.items():
        if known[what] != space:
            raise FileFormatError(
                f"{path} is of a task {name} whose {what} is {space}; the one known here has {known[what]}: "
                "give task=, or persim_gym.register_task(task, replace=True)"
            )
    return found


def find_task(name: str, definition: Mapping[str, Any] | None) -> Task:
    """Return the task of an ensemble's file: the known one, the one it refers to, or one made from its definition.

    The last is made also where the reference cannot be imported, if the definition is all that simulating needs.

    Args:
        name: in the file.
        definition: `Task.to_json` in the file, if it has one.

    Raises:
        UnknownNameError: the task has functions that no file can hold, and no reference to where they are.
        PerSimError: what the reference names is another task, or cannot be imported although the task has functions.

    """
    if name in _TASKS or definition is None:
        return get_task(name)
    # What can be seen or drawn only in the true system is not missed.
    given = [what for what in ("planning_objective", "initial_observations") if what in definition["functions"]]
    own = [*(what for what in ("reward", "terminated") if what not in definition["learned"]), *given]
    reference = definition["reference"]
    if reference is not None:
        try:
            found = import_task(reference)
        except PerSimError:
            if own:
                raise
            return Task.from_json(definition)
        if found.name != name:
            raise PerSimError(f"{reference!r} is {found!r}, not the task {name}")
        return found
    if own:
        raise UnknownNameError(
            f"task {name!r} has functions of its own ({', '.join(own)}), which no file holds: give task=, call "
            "persim_gym.register_task(Task(...)) first, or make it with Task(reference='module:attribute')"
        )
    return Task.from_json(definition)


def import_task(reference: str) -> Task:
    """Import a task by "module:attribute"; nothing is called, but the module's own code runs.

    Raises:
        PerSimError: it cannot be imported, or is no task.

    """
    module, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise PerSimError(
            f"no task can be imported from {reference!r} ({error}): make the module importable here, or give task="
        ) from error
    if not isinstance(found, Task):
        raise PerSimError(f"{reference!r} is {found!r}, not a Task")
    return found
