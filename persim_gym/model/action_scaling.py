"""Continuous actions as networks learn from them: from −1 to 1 over what the log's agents did, whatever their units.

Not over the action space, whose bounds may be far wider than what was done. Networks are kept for actions as they are:
what was learned of scaled ones is folded into the first layer.
"""

from __future__ import annotations

import numpy as np

from persim_gym.model.normalizer import varies
from persim_gym.tasks.action_bounds import center_and_half_width, scale_actions
from persim_gym.types import FloatArray


def scaled(actions: np.ndarray) -> np.ndarray:
    """Return the actions (T, A) of a log, from −1 to 1; discrete ones (T,) as they are."""
    return np.asarray(actions) if actions.ndim == 1 else scale_actions(actions, *_range(actions))


def folded(actions: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer that does with actions what one of weight (M, O, A) and bias (M, O, 1) does with scaled ones.

    They were scaled by the actions (T, A) of the log.
    """
    center, half_width = center_and_half_width(*_range(actions))
    of_raw = weight.astype(np.float64) / half_width
    shifted = bias.astype(np.float64) - of_raw @ center[:, None]
    return of_raw.astype(np.float32), shifted.astype(np.float32)


def for_raw_actions(actions: np.ndarray, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return parameters, learned from the scaled actions of a log, of the model of actions as they are."""
    if actions.ndim == 1:
        return parameters
    weight, bias = folded(actions, parameters["action.0.weight"], parameters["action.0.bias"])
    return {**parameters, "action.0.weight": weight, "action.0.bias": bias}


def _range(actions: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """Return the least and the greatest (A,) of actions (T, A); their middle for a coordinate that does not vary."""
    values = np.asarray(actions, np.float64)
    low, high = values.min(0), values.max(0)
    middle, differ = (low + high) / 2, varies(values)
    return np.where(differ, low, middle), np.where(differ, high, middle)
