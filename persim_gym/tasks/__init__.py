"""The problems: what is known about each without learning. One file a task; `get_task` finds one by name."""

from persim_gym.tasks.base import Task
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.objective import PlanningObjective, RewardFn, TerminationFn, ToLearn
from persim_gym.tasks.registry import (
    get_task,
    is_built_in,
    known_tasks,
    register_task,
    task_names,
    warn_of_another_task,
)
from persim_gym.tasks.system import Renderer, System
from persim_gym.tasks.task_files import find_task, import_task, task_fields, task_of_file

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
