"""Epochs of training a small network on the CPU by a kernel that numba compiles (`persim_gym.training.trainer`).

`persim_gym.training.gradients` sends the hidden units of a whole batch of all members through the memory several times
a step, and calls torch some thirty times. Here a member runs an epoch by itself: its parameters stay in the
second-level cache, the hidden units of a few transitions in the first, and sums in registers (`tiles`).
`tests/test_epoch_kernel.py` holds an epoch against torch's; sums are taken in another order, so the bits differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np

from persim_gym.config import ADAM_BETAS, ADAM_EPSILON, PerSimConfig
from persim_gym.model.parameters import SKIP
from persim_gym.simulators.networks.kernels.jit import SOURCES, compile_for, fast
from persim_gym.simulators.networks.kernels.tiles import Tile, best_tile, multiply
from persim_gym.types import FloatArray, IntArray

ROWS = 16
"""Transitions at once, a multiple of every tile's rows."""
_AGENT, _AGENT_BIAS, _FIRST, _FIRST_BIAS, _SECOND, _SECOND_BIAS, _ACTION, _ACTION_BIAS, _SKIP = range(9)
_NAMES = (
    "agent.weight", "agent.bias", "state.0.weight", "state.0.bias", "state.1.weight", "state.1.bias",
    "action.weight", "action.bias", SKIP,
)  # fmt: skip
"""The order of a member's parameters, each flat."""
_BETA1, _BETA2, _EPSILON = np.float32(ADAM_BETAS[0]), np.float32(ADAM_BETAS[1]), np.float32(ADAM_EPSILON)
_ZERO, _ONE = np.float32(0), np.float32(1)


def run_epoch(
    states: Sequence[Mapping[str, FloatArray]],
    data: tuple[FloatArray, IntArray, IntArray],
    order: IntArray,
    config: PerSimConfig,
    *,
    learning_rate: float,
    steps_done: int,
    logistic: bool = False,
) -> float:
    """Run one member through an epoch of Adam with decoupled decay, in place; return its mean squared error.

    If ``logistic``, targets are 0 and 1, outputs their logits, and the loss is the cross entropy.

    Args:
        states: four of the member's own: its parameters, by the names of `persim_gym.model.parameters.parameter_shapes`
            without the members' axis; room for their gradients; Adam's first moments; its second ones.
        data: (T, I + O) standardized inputs and targets side by side, of the dynamics states and changes; (T,) agents;
            (T,) actions.
        order: (n,) rows of the log, as they are visited.
        config: of the model and its training.
        learning_rate: of this epoch.
        steps_done: optimizer steps before it.
        logistic: whether the targets are probabilities.

    """
    nothing = np.zeros(0, np.float32)
    flat = [tuple(state[name].reshape(-1) if name in state else nothing for name in _NAMES) for state in states]
    threshold = np.inf if config.huber_threshold is None else config.huber_threshold
    return _epoch_kernel(best_tile())(
        *flat, *data, order, config.batch_size_for(len(order)),
        learning_rate, config.weight_decay, threshold, steps_done, logistic,
    )  # fmt: skip


@fast
def _head(
    parameters: Any, gradients: Any, heads: Any, changes: Any, agents: Any, actions: Any, count: int,
    scale: Any, threshold: Any, logistic: bool, factors: Any, turned_heads: Any, errors: Any, turned_slopes: Any,
) -> float:  # fmt: skip
    """Add the gradients of the transitions' agents and actions, fill their slopes, and return their summed losses.

    The change of coordinate d is Σ_l u_l(agent)·v_dl·w_l(action) (paper, section 4). The transitions are the last axis
    of everything: what `count` leaves over of them counts for nothing.
    """
    rank, size = len(parameters[_AGENT_BIAS]), len(changes)
    of_agent, of_action, both, slope = factors[0], factors[1], factors[2], factors[3]
    for place in range(count):
        agent, action = agents[place] * rank, actions[place] * rank
        for factor in range(rank):
            of_agent[factor, place] = parameters[_AGENT][agent + factor] + parameters[_AGENT_BIAS][factor]
            of_action[factor, place] = parameters[_ACTION][action + factor] + parameters[_ACTION_BIAS][factor]
    for factor in range(rank):
        for place in range(ROWS):
            both[factor, place] = of_agent[factor, place] * of_action[factor, place]
        for place in range(ROWS):
            slope[factor, place] = _ZERO
    for output in range(size * rank):
        for place in range(ROWS):
            turned_heads[output, place] = heads[place, output]
    error, losses = errors[0], errors[1]
    for place in range(ROWS):
        losses[place] = _ZERO
    for coordinate in range(size):
        begin = coordinate * rank
        for place in range(ROWS):
            error[place] = -changes[coordinate, place]
        for factor in range(rank):
            for place in range(ROWS):
                error[place] += both[factor, place] * turned_heads[begin + factor, place]
        if logistic:
            for place in range(count):
                target = changes[coordinate, place]
                logit = error[place] + target
                losses[place] += max(logit, _ZERO) - logit * target + np.log1p(np.exp(-abs(logit)))
                error[place] = _ONE / (_ONE + np.exp(-logit)) - target
        for place in range(count, ROWS):
            error[place] = _ZERO
        if not logistic:
            for place in range(ROWS):
                losses[place] += error[place] * error[place]
        for place in range(ROWS):
            error[place] = scale * min(max(error[place], -threshold), threshold)
        for factor in range(rank):
            for place in range(ROWS):
                slope[factor, place] += error[place] * turned_heads[begin + factor, place]
            for place in range(ROWS):
                turned_slopes[begin + factor, place] = error[place] * both[factor, place]
    for place in range(count):
        agent, action = agents[place] * rank, actions[place] * rank
        for factor in range(rank):
            to_agent = slope[factor, place] * of_action[factor, place]
            to_action = slope[factor, place] * of_agent[factor, place]
            gradients[_AGENT][agent + factor] += to_agent
            gradients[_AGENT_BIAS][factor] += to_agent
            gradients[_ACTION][action + factor] += to_action
            gradients[_ACTION_BIAS][factor] += to_action
    total = 0.0
    for place in range(ROWS):
        total += losses[place]
    return total


@fast
def _read(arrays: Any, first: Any, second: Any, turned_second: Any) -> None:
    """Copy the layers out of a member's parameters.

    The bias is one more input of the first, (D + 1, units …); of the second, (O …, units + 1 …), it is one more unit
    after the hidden ones, and the inputs of the linear path are yet others. The second is copied turned, too.
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
    for unit in range(second.shape[1]):
        for output in range(outputs):
            turned_second[unit, output] = second[output, unit]


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


@cache
def _epoch_kernel(tile: Tile) -> Callable[..., float]:
    """Return the compiled epoch; its arguments are those of `run_epoch`, flat."""
    # Integers: what was compiled for them is found again by their values.
    lanes, vectors, tile_rows, sources = tile.lanes, tile.vectors, tile.rows, SOURCES

    def epoch(
        parameters: Any, gradients: Any, means: Any, squares: Any, numbers: Any, agents: Any, actions: Any, order: Any,
        batch_size: int, learning_rate: Any, weight_decay: Any, threshold: Any, steps_done: int, logistic: bool,
    ) -> float:  # fmt: skip
        _ = sources
        width, rank = len(parameters[_FIRST_BIAS]), len(parameters[_AGENT_BIAS])
        given = len(parameters[_FIRST]) // width
        size = numbers.shape[1] - given
        outputs, terms = size * rank, given + 1
        used = width + 1 + (given if len(parameters[_SKIP]) else 0)
        tile_columns = lanes * vectors
        columns, head_columns = -(-used // tile_columns) * tile_columns, -(-outputs // tile_columns) * tile_columns
        head_rows, term_rows = -(-outputs // tile_rows) * tile_rows, -(-terms // tile_rows) * tile_rows
        first, to_first = np.zeros((terms, columns), np.float32), np.zeros((term_rows, columns), np.float32)
        second, to_second = np.zeros((head_rows, columns), np.float32), np.zeros((head_rows, columns), np.float32)
        turned_second = np.zeros((columns, head_columns), np.float32)
        hidden, back = np.zeros((ROWS, columns), np.float32), np.zeros((ROWS, columns), np.float32)
        heads, turned_heads = np.zeros((ROWS, head_columns), np.float32), np.zeros((outputs, ROWS), np.float32)
        turned_slopes, factors = np.zeros((head_rows, ROWS), np.float32), np.zeros((4, rank, ROWS), np.float32)
        changes, errors = np.zeros((size, ROWS), np.float32), np.zeros((2, ROWS), np.float32)
        own_agents, own_actions = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
        inputs, turned_inputs = np.zeros((ROWS, terms), np.float32), np.zeros((term_rows, ROWS), np.float32)
        inputs[:, given], turned_inputs[given] = _ONE, _ONE
        total = 0.0
        for start in range(0, len(order), batch_size):
            stop = min(start + batch_size, len(order))
            scale = np.float32((1.0 if logistic else 2.0) / (size * (stop - start)))
            _read(parameters, first, second, turned_second)
            to_first[:] = _ZERO
            to_second[:] = _ZERO
            for index in (_AGENT, _AGENT_BIAS, _ACTION, _ACTION_BIAS):
                gradients[index][:] = _ZERO
            for left in range(start, stop, ROWS):
                count = min(ROWS, stop - left)
                for place in range(count):
                    row = order[left + place]
                    own_agents[place], own_actions[place] = agents[row], actions[row]
                    for coordinate in range(given):
                        inputs[place, coordinate] = turned_inputs[coordinate, place] = numbers[row, coordinate]
                    for coordinate in range(size):
                        changes[coordinate, place] = numbers[row, given + coordinate]
                multiply(
                    lanes, vectors, tile_rows, ROWS, columns, terms, inputs, terms, 1, first, columns,
                    hidden, columns, 0, 1,
                )  # fmt: skip
                for place in range(ROWS):
                    hidden[place, width] = _ONE
                    for column in range(width + 1, used):
                        hidden[place, column] = inputs[place, column - width - 1]
                multiply(
                    lanes, vectors, tile_rows, ROWS, head_columns, used, hidden, columns, 1,
                    turned_second, head_columns, heads, head_columns, 0, 0,
                )  # fmt: skip
                total += _head(
                    parameters, gradients, heads, changes, own_agents, own_actions, count, scale, threshold,
                    logistic, factors, turned_heads, errors, turned_slopes,
                )  # fmt: skip
                multiply(
                    lanes, vectors, tile_rows, head_rows, columns, ROWS, turned_slopes, ROWS, 1, hidden, columns,
                    to_second, columns, 1, 0,
                )  # fmt: skip
                multiply(
                    lanes, vectors, tile_rows, ROWS, columns, outputs, turned_slopes, 1, ROWS, second, columns,
                    back, columns, 0, 0,
                )  # fmt: skip
                _through_relu(back, hidden)
                multiply(
                    lanes, vectors, tile_rows, term_rows, columns, ROWS, turned_inputs, ROWS, 1, back, columns,
                    to_first, columns, 1, 0,
                )  # fmt: skip
            _write(gradients, to_first, to_second)
            steps_done += 1
            rate = np.float32(learning_rate / (1.0 - ADAM_BETAS[0] ** steps_done))
            correction = np.float32(np.sqrt(1.0 - ADAM_BETAS[1] ** steps_done))
            for index in range(len(parameters)):
                _descend(
                    parameters[index], gradients[index], means[index], squares[index],
                    rate, learning_rate * weight_decay, correction,
                )  # fmt: skip
        return total / (size * len(order))

    floats, indices = numba.float32, numba.int64
    several = numba.types.UniTuple(floats[::1], len(_NAMES))
    signature = numba.float64(
        several, several, several, several, floats[:, ::1], indices[::1], indices[::1], indices[::1],
        indices, floats, floats, floats, indices, numba.boolean,
    )  # fmt: skip
    return compile_for(signature, epoch)


@fast
def _through_relu(back: Any, hidden: Any) -> None:
    """Zero the gradients of the units that are not above zero."""
    for place in range(len(back)):
        for unit in range(back.shape[1]):
            back[place, unit] = back[place, unit] if hidden[place, unit] > _ZERO else _ZERO
