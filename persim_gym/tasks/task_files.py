"""How files name their task, and how it is found again: by name, by import, or from its definition."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persim_gym.errors import FileFormatError, PerSimError, UnknownNameError
from persim_gym.tasks.base import Task
from persim_gym.tasks.registry import get_task, is_built_in, task_names


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
    if name in task_names() or definition is None:
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
    except Exception as error:  # whatever the module's own code raises
        raise PerSimError(
            f"no task can be imported from {reference!r} ({type(error).__name__}: {error}): make the module importable "
            "here, or give task="
        ) from error
    if not isinstance(found, Task):
        raise PerSimError(f"{reference!r} is {found!r}, not a Task")
    return found
