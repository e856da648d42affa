"""Continuous actions as networks learn from them: from −1 to 1 over the action space, whatever their units.

Networks are kept for actions as they are: what was learned of scaled ones is folded into the first layer.
"""

from __future__ import annotations

import numpy as np

from persim_gym.tasks import Task
from persim_gym.tasks.action_bounds import center_and_half_width, scale_actions


def scaled(task: Task, actions: np.ndarray) -> np.ndarray:
    """Return the actions (T, A) of a log, from −1 to 1; discrete ones (T,) as they are."""
    return np.asarray(actions) if task.discrete else scale_actions(actions, *task.action_bounds)


def folded(task: Task, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer that does with actions what one of weight (M, O, A) and bias (M, O, 1) does with scaled ones."""
    center, half_width = center_and_half_width(*task.action_bounds)
    of_raw = weight.astype(np.float64) / half_width
    shifted = bias.astype(np.float64) - of_raw @ center[:, None]
    return of_raw.astype(np.float32), shifted.astype(np.float32)


def for_raw_actions(task: Task, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return parameters, learned from scaled actions, of the model of actions as they are."""
    if task.discrete:
        return parameters
    weight, bias = folded(task, parameters["action.0.weight"], parameters["action.0.bias"])
    return {**parameters, "action.0.weight": weight, "action.0.bias": bias}
