"""Epochs of a small network on the CPU by a kernel that numba compiles; imported only where numba is installed.

`persim_gym.gradients` sends the hidden units of a whole batch of all members through the memory several times a step,
and calls torch some thirty times. Here a member runs an epoch by itself: its parameters stay in the second-level cache,
the hidden units of eight transitions in the first. `tests/test_compiled_training.py` holds an epoch against torch's;
sums are taken in another order, so the bits differ.

The inner loops run along the hidden units and write one array each, so that the compiler sees that what they read does
not change meanwhile, and uses the processor's vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from persim_gym.config import PerSimConfig
from persim_gym.jit import compile_for, fast
from persim_gym.types import FloatArray, IntArray

ROWS = 8
"""Transitions at once; `_combine_block` and `_forward` are written out for so many."""
_VECTORS = 32
"""Numbers that the compiled inner loops take at a time."""
_AGENT, _AGENT_BIAS, _FIRST, _FIRST_BIAS, _SECOND, _SECOND_BIAS, _ACTION, _ACTION_BIAS, _SKIP = range(9)
_NAMES = (
    "agent.weight", "agent.bias", "state.0.weight", "state.0.bias", "state.1.weight", "state.1.bias",
    "action.weight", "action.bias", "state.skip",
)  # fmt: skip
"""The order of a member's parameters, each flat."""
_BETA1, _BETA2, _EPSILON = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


def run_epoch(
    states: Sequence[Mapping[str, FloatArray]],
    data: tuple[FloatArray, IntArray, IntArray],
    order: IntArray,
    config: PerSimConfig,
    *,
    learning_rate: float,
    steps_done: int,
) -> float:
    """Run one member through an epoch of Adam with decoupled decay, in place; return its mean squared error.

    Args:
        states: four of the member's own: its parameters, by the names of `persim_gym.model.parameter_shapes` without
            the members' axis; room for their gradients; Adam's first moments; its second ones.
        data: (T, 2·D) standardized states and changes side by side; (T,) agents; (T,) actions.
        order: (n,) rows of the log, as they are visited.
        config: of the model and its training.
        learning_rate: of this epoch.
        steps_done: optimizer steps before it.

    """
    nothing = np.zeros(0, np.float32)
    flat = [tuple(state[name].reshape(-1) if name in state else nothing for name in _NAMES) for state in states]
    threshold = np.inf if config.huber_threshold is None else config.huber_threshold
    return _epoch(
        *flat, *data, order, config.batch_size_for(len(order)),
        learning_rate, config.weight_decay, threshold, steps_done,
    )  # fmt: skip


@fast
def _combine(into: Any, at: int, rows: Any, weights: Any, by: int, width: int) -> None:
    """Add the sum of rows (n, width …), each times a weight of row ``by`` (·, n), to row ``at`` (·, width …)."""
    count, row = len(rows), 0
    while row + 8 <= count:
        a, b, c, d = weights[by, row], weights[by, row + 1], weights[by, row + 2], weights[by, row + 3]
        e, f, g, h = weights[by, row + 4], weights[by, row + 5], weights[by, row + 6], weights[by, row + 7]
        for unit in range(width):
            into[at, unit] += (
                a * rows[row, unit] + b * rows[row + 1, unit] + c * rows[row + 2, unit] + d * rows[row + 3, unit]
                + e * rows[row + 4, unit] + f * rows[row + 5, unit] + g * rows[row + 6, unit] + h * rows[row + 7, unit]
            )  # fmt: skip
        row += 8
    while row + 4 <= count:
        a, b, c, d = weights[by, row], weights[by, row + 1], weights[by, row + 2], weights[by, row + 3]
        for unit in range(width):
            into[at, unit] += (
                a * rows[row, unit] + b * rows[row + 1, unit] + c * rows[row + 2, unit] + d * rows[row + 3, unit]
            )
        row += 4
    while row < count:
        a = weights[by, row]
        for unit in range(width):
            into[at, unit] += a * rows[row, unit]
        row += 1


@fast
def _combine_block(into: Any, rows: Any, weights: Any, width: int) -> None:
    """Add to every row of (n, width …) the sum of a block's rows (ROWS, width …) times its own weights (n, ROWS)."""
    for at in range(len(into)):
        a, b, c, d = weights[at, 0], weights[at, 1], weights[at, 2], weights[at, 3]
        e, f, g, h = weights[at, 4], weights[at, 5], weights[at, 6], weights[at, 7]
        for unit in range(width):
            into[at, unit] += (
                a * rows[0, unit] + b * rows[1, unit] + c * rows[2, unit] + d * rows[3, unit]
                + e * rows[4, unit] + f * rows[5, unit] + g * rows[6, unit] + h * rows[7, unit]
            )  # fmt: skip


@fast
def _forward(first: Any, second: Any, inputs: Any, hidden: Any, heads: Any) -> None:
    """Fill the hidden units (ROWS, units, …) and the state's factors (ROWS, O), from inputs (ROWS, D + 1)."""
    width = first.shape[1]
    for place in range(ROWS):
        for unit in range(width):
            hidden[place, unit] = _ZERO
        _combine(hidden, place, first, inputs, place, width)
        for unit in range(width):
            hidden[place, unit] = _HALF * (hidden[place, unit] + abs(hidden[place, unit]))  # vectors know no maximum
    for output in range(0, len(second), 2):
        for place in range(0, ROWS, 4):
            a, b, c, d, e, f, g, h = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            for unit in range(second.shape[1]):
                one, other = second[output, unit], second[output + 1, unit]
                a += one * hidden[place, unit]
                b += one * hidden[place + 1, unit]
                c += one * hidden[place + 2, unit]
                d += one * hidden[place + 3, unit]
                e += other * hidden[place, unit]
                f += other * hidden[place + 1, unit]
                g += other * hidden[place + 2, unit]
                h += other * hidden[place + 3, unit]
            heads[place, output], heads[place + 1, output] = a, b
            heads[place + 2, output], heads[place + 3, output] = c, d
            heads[place, output + 1], heads[place + 1, output + 1] = e, f
            heads[place + 2, output + 1], heads[place + 3, output + 1] = g, h


@fast
def _backward(
    second: Any, turned_inputs: Any, hidden: Any, slopes: Any, turned: Any, back: Any, to_first: Any, to_second: Any
) -> None:
    """Add the gradients of both layers, from the slopes (ROWS, O), (O, ROWS) of the loss in the state's factors."""
    width = to_first.shape[1]
    _combine_block(to_second, hidden, turned, second.shape[1])
    for place in range(ROWS):
        for unit in range(width):
            back[place, unit] = _ZERO
        _combine(back, place, second, slopes, place, width)
        for unit in range(width):
            back[place, unit] = back[place, unit] if hidden[place, unit] > _ZERO else _ZERO  # through the ReLU
    _combine_block(to_first, back, turned_inputs, width)


@fast
def _head(
    parameters: Any, gradients: Any, heads: Any, slopes: Any, turned: Any, factors: Any, place: int,
    agent: int, action: int, numbers: Any, row: int, scale: Any, threshold: Any,
) -> float:  # fmt: skip
    """Add the gradients of one transition's agent and action, fill its slopes, and return its squared error.

    The change of coordinate d is Σ_l u_l(agent)·v_dl·w_l(action) (paper, eq. 3).
    """
    rank, size = len(parameters[_AGENT_BIAS]), numbers.shape[1] // 2
    total = 0.0
    for factor in range(rank):
        factors[0, factor] = parameters[_AGENT][agent * rank + factor] + parameters[_AGENT_BIAS][factor]
        factors[1, factor] = parameters[_ACTION][action * rank + factor] + parameters[_ACTION_BIAS][factor]
        factors[2, factor] = factors[0, factor] * factors[1, factor]
        factors[3, factor] = _ZERO
    for coordinate in range(size):
        change, begin = _ZERO, coordinate * rank
        for factor in range(rank):
            change += factors[2, factor] * heads[place, begin + factor]
        error = change - numbers[row, size + coordinate]
        total += error * error
        error = scale * min(max(error, -threshold), threshold)
        for factor in range(rank):
            output = begin + factor
            factors[3, factor] += error * heads[place, output]
            slopes[place, output] = turned[output, place] = error * factors[2, factor]
    for factor in range(rank):
        of_agent, of_action, slope = factors[0, factor], factors[1, factor], factors[3, factor]
        gradients[_AGENT][agent * rank + factor] += slope * of_action
        gradients[_AGENT_BIAS][factor] += slope * of_action
        gradients[_ACTION][action * rank + factor] += slope * of_agent
        gradients[_ACTION_BIAS][factor] += slope * of_agent
    return total


@fast
def _read(arrays: Any, first: Any, second: Any) -> None:
    """Copy the layers out of a member's parameters.

    The bias is one more input of the first, (D + 1, units); of the second, (O, units + 1 …), it is one more unit after
    the hidden ones, and the inputs of the linear path are yet others.
    """
    width, outputs = len(arrays[_FIRST_BIAS]), len(arrays[_SECOND_BIAS])
    size = len(arrays[_FIRST]) // width
    for unit in range(width):
        first[size, unit] = arrays[_FIRST_BIAS][unit]
        for coordinate in range(size):
            first[coordinate, unit] = arrays[_FIRST][unit * size + coordinate]
    for output in range(outputs):
        for unit in range(width):
            second[output, unit] = arrays[_SECOND][output * width + unit]
        second[output, width] = arrays[_SECOND_BIAS][output]
        for index in range(len(arrays[_SKIP]) // outputs):
            second[output, width + 1 + index] = arrays[_SKIP][output * size + index]


@fast
def _write(arrays: Any, first: Any, second: Any) -> None:
    """Copy the layers' gradients to where `_read` takes parameters from."""
    width, outputs = len(arrays[_FIRST_BIAS]), len(arrays[_SECOND_BIAS])
    size = len(arrays[_FIRST]) // width
    for unit in range(width):
        arrays[_FIRST_BIAS][unit] = first[size, unit]
        for coordinate in range(size):
            arrays[_FIRST][unit * size + coordinate] = first[coordinate, unit]
    for output in range(outputs):
        for unit in range(width):
            arrays[_SECOND][output * width + unit] = second[output, unit]
        arrays[_SECOND_BIAS][output] = second[output, width]
        for index in range(len(arrays[_SKIP]) // outputs):
            arrays[_SKIP][output * size + index] = second[output, width + 1 + index]


@fast
def _descend(values: Any, slopes: Any, means: Any, squares: Any, rate: Any, decay: Any, correction: Any) -> None:
    """Take Adam's step: ``rate`` is over the first bias correction, ``correction`` the root of the second."""
    for index in range(len(values)):
        slope = slopes[index]
        mean = _BETA1 * means[index] + (_ONE - _BETA1) * slope
        square = _BETA2 * squares[index] + (_ONE - _BETA2) * slope * slope
        means[index], squares[index] = mean, square
        values[index] = (_ONE - decay) * values[index] - rate * mean / (np.sqrt(square) / correction + _EPSILON)


def _run_epoch(
    parameters: Any, gradients: Any, means: Any, squares: Any, numbers: Any, agents: Any, actions: Any, order: Any,
    batch_size: int, learning_rate: Any, weight_decay: Any, threshold: Any, steps_done: int,
) -> float:  # fmt: skip
    size, width, rank = numbers.shape[1] // 2, len(parameters[_FIRST_BIAS]), len(parameters[_AGENT_BIAS])
    outputs = -(-size * rank // 2) * 2
    used = width + 1 + (size if len(parameters[_SKIP]) else 0)
    columns = -(-used // _VECTORS) * _VECTORS
    fours = -(-(size + 1) // 4) * 4
    first, to_first = np.zeros((fours, width), np.float32), np.zeros((size + 1, width), np.float32)
    second, to_second = np.zeros((outputs, columns), np.float32), np.zeros((outputs, columns), np.float32)
    hidden, back = np.zeros((ROWS, columns), np.float32), np.zeros((ROWS, width), np.float32)
    heads, slopes = np.zeros((ROWS, outputs), np.float32), np.zeros((ROWS, outputs), np.float32)
    turned, factors = np.zeros((outputs, ROWS), np.float32), np.zeros((4, rank), np.float32)
    inputs, turned_inputs = np.zeros((ROWS, fours), np.float32), np.ones((size + 1, ROWS), np.float32)
    inputs[:, size] = _ONE
    total = 0.0
    hidden[:, width] = _ONE
    for start in range(0, len(order), batch_size):
        stop = min(start + batch_size, len(order))
        scale = np.float32(2.0 / (size * (stop - start)))
        _read(parameters, first, second)
        to_first[:] = _ZERO
        to_second[:] = _ZERO
        for index in (_AGENT, _AGENT_BIAS, _ACTION, _ACTION_BIAS):
            gradients[index][:] = _ZERO
        for left in range(start, stop, ROWS):
            count = min(ROWS, stop - left)
            if count < ROWS:  # what is left there of the rows before counts for nothing
                slopes[:] = _ZERO
                turned[:] = _ZERO
            for place in range(count):
                for coordinate in range(size):
                    inputs[place, coordinate] = numbers[order[left + place], coordinate]
                    turned_inputs[coordinate, place] = inputs[place, coordinate]
                for column in range(width + 1, used):
                    hidden[place, column] = inputs[place, column - width - 1]
            _forward(first, second, inputs, hidden, heads)
            for place in range(count):
                row = order[left + place]
                total += _head(
                    parameters, gradients, heads, slopes, turned, factors, place,
                    agents[row], actions[row], numbers, row, scale, threshold,
                )  # fmt: skip
            _backward(second, turned_inputs, hidden, slopes, turned, back, to_first, to_second)
        _write(gradients, to_first, to_second)
        steps_done += 1
        rate = np.float32(learning_rate / (1.0 - 0.9**steps_done))
        correction = np.float32(np.sqrt(1.0 - 0.999**steps_done))
        for index in range(len(parameters)):
            _descend(
                parameters[index], gradients[index], means[index], squares[index],
                rate, learning_rate * weight_decay, correction,
            )  # fmt: skip
    return total / (size * len(order))


_floats, _indices = numba.float32, numba.int64
_several = numba.types.UniTuple(_floats[::1], len(_NAMES))
_epoch = compile_for(
    numba.float64(
        _several, _several, _several, _several, _floats[:, ::1], _indices[::1], _indices[::1], _indices[::1],
        _indices, _floats, _floats, _floats, _indices,
    ),
    _run_epoch,
)  # fmt: skip
