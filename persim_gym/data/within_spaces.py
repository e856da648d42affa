"""Whether the columns of a log lie within the spaces of a task or an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from persim_gym.data.validation import CHUNK
from persim_gym.errors import InvalidDataError
from persim_gym.tasks.spaces import outside
from persim_gym.types import FloatArray, IntArray

if TYPE_CHECKING:
    from gymnasium import spaces


def check_actions(actions: np.ndarray, space: spaces.Discrete | spaces.Box, *, rows: IntArray | None = None) -> None:
    """Raise `InvalidDataError` if the actions of a log are outside their space by more than rounding.

    The message numbers the log's rows, or says what ``rows`` (T,) has for them.
    """
    rows = np.arange(len(actions)) if rows is None else rows
    num_actions = getattr(space, "n", None)
    if num_actions is not None:
        if actions.ndim != 1:
            raise InvalidDataError(f"actions have shape {actions.shape}; the task takes one integer a row")
        beyond = np.flatnonzero((actions < 0) | (actions >= num_actions))
        if len(beyond):
            raise InvalidDataError(
                f"action {actions[beyond[0]]} in row {rows[beyond[0]]} is outside 0 … {num_actions - 1}: number the "
                "actions from 0 on, or give the task more of them"
            )
        return
    box = cast("spaces.Box", space)
    if actions.ndim != 2 or actions.shape[1:] != box.shape:
        raise InvalidDataError(f"actions have shape {actions.shape}; the task takes (rows, {box.shape[0]})")
    beyond = np.flatnonzero(outside(actions, box).any(axis=1))
    if len(beyond):
        raise InvalidDataError(
            f"action {actions[beyond[0]].tolist()} in row {rows[beyond[0]]} is outside the action space, from "
            f"{box.low.tolist()} to {box.high.tolist()}: correct it, or widen the space"
        )


def check_within(
    name: str,
    states: FloatArray,
    space: spaces.Box,
    coordinates: Sequence[str],
    agent_of: Callable[[int], str] | None = None,
) -> None:
    """Raise `InvalidDataError` if a column of observations (T, D) leaves its space by more than rounding.

    The message names the agent, too, where ``agent_of`` gives the label of a row's.
    """
    for start in range(0, len(states), CHUNK):
        part = states[start : start + CHUNK]
        beyond = np.argwhere(outside(part, space))
        if len(beyond):
            row, column = start + int(beyond[0, 0]), int(beyond[0, 1])
            whose = "" if agent_of is None else f", of agent {agent_of(row)!r}"
            raise InvalidDataError(
                f"{name} holds {coordinates[column]} = {states[row, column]:.6g} in row {row}{whose}, outside its "
                f"range from {space.low[column]:.6g} to {space.high[column]:.6g} in the task's observation_space: "
                "correct the value, or widen the space"
            )
