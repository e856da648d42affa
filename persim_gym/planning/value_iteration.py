"""Value iteration on a grid of states: optimal planning where the state is small and the actions are few.

Random shooting looks some steps ahead; this solves the whole episode at once, in the simulator of one agent or in its
true system, and then acts greedily with one step of the same model (Bertsekas, Dynamic Programming and Optimal
Control, vol. 1, ch. 1 and 6: finite horizon, multilinear interpolation between the points of a grid).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, cast

import numpy as np

from persim_gym.arguments import batch_of, finite_number, whole_number
from persim_gym.errors import InvalidArgumentError, NonFiniteReturnError
from persim_gym.planning.models import checked_objective, model_and_task
from persim_gym.simulators.simulator import Simulator
from persim_gym.tasks import PlanningObjective, System, Task
from persim_gym.tasks.rules import TerminationRisk
from persim_gym.types import FloatArray, IntArray

StepFn = Callable[[FloatArray, int], FloatArray]
"""(states (B, D), action) -> next states (B, D)."""

MAX_POINTS = 2_000_000
_DEFAULT_POINTS = 90_000
_BATCH = 8192  # states a model is asked for at once: the hidden layers of a batch stay in the cache


@dataclass(frozen=True)
class Grid:
    """A regular grid over a box of states; what lies outside counts as the nearest point of the box."""

    low: FloatArray
    """(D,)."""
    high: FloatArray
    """(D,)."""
    shape: tuple[int, ...]
    """(D,): points along each coordinate, at least 2."""

    @cached_property
    def points(self) -> FloatArray:
        """(G, D): the points, the last coordinate fastest."""
        axes = [np.linspace(*ends) for ends in zip(self.low, self.high, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(self.shape))

    def corners(self, states: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return the points around states (B, D) and their weights in a multilinear interpolation.

        Returns:
            points (2^D, B) int32 and weights (2^D, B) float32, which sum to 1 over the first axis.

        """
        last = np.array(self.shape) - 1
        inside = np.minimum(np.maximum(states, self.low), self.high)
        position = (inside - self.low) / (self.high - self.low) * last
        cell = np.minimum(position.astype(np.int64), last - 1)
        fraction = position - cell
        strides = np.append(np.cumprod(self.shape[:0:-1])[::-1], 1)
        points = np.empty((2 ** len(last), len(states)), np.int32)
        weights = np.empty(points.shape, np.float32)
        for row, offset in enumerate(product((0, 1), repeat=len(last))):
            points[row] = (cell + offset) @ strides
            weights[row] = np.where(offset, fraction, 1.0 - fraction).prod(axis=1)
        return points, weights


@dataclass(frozen=True)
class ValueFunction:
    """What value iteration found, and what is needed to act on it."""

    grid: Grid
    values: FloatArray
    """(G,) float32: the largest return from each point of the grid on."""
    step: StepFn
    num_actions: int
    objective: PlanningObjective
    discount: float
    sweeps: int
    """Sweeps made; as many as allowed where the goal cannot be reached from everywhere."""
    change: float
    """Largest change of a value in the last sweep."""

    def __call__(self, states: FloatArray) -> FloatArray:
        """Return the interpolated values (B,) of states (B, D)."""
        return _interpolate(self.values, *self.grid.corners(states))

    def action_values(self, states: FloatArray) -> FloatArray:
        """Return the values (A, B) of every action in states (B, D): one step of the model, then the values."""
        rewards, running, next_states = _outcomes(states, self.step, self.num_actions, self.objective)
        return rewards + self.discount * running * np.stack([self(following) for following in next_states])


def value_iteration(
    step: StepFn,
    *,
    num_actions: int,
    objective: PlanningObjective,
    grid: Grid,
    discount: float = 1.0,
    tolerance: float = 1e-3,
    max_sweeps: int = 1000,
) -> ValueFunction:
    """Return the values of the best action sequences from every point of a grid.

    Value after k sweeps: V_k(s) = max_a [r(s, a, s') + discount · V_{k−1}(s')], with V = 0 in terminal states and
    V_0 = 0 elsewhere, so it is the largest return of k steps. Where termination was learned, V_{k−1}(s') is weighted by
    the probability that the episode does not end in s'.

    Args:
        step: the model, deterministic.
        num_actions: A.
        objective: reward and termination; the step into a terminal state earns its reward, and progress does not count.
        grid: where values are kept.
        discount: of later rewards.
        tolerance: stop when no value changes by more than this part of the largest reward of a step, whatever its sign.
        max_sweeps: stop after so many; the time limit of the episode, for instance.

    """
    rewards, running, next_states = _outcomes(grid.points, step, num_actions, objective)
    tables = [grid.corners(states) for states in next_states]
    for (_, weights), going in zip(tables, running, strict=True):
        weights *= discount * going
    ended = _going_on(objective, grid.points) == 0
    values, change, sweep = np.zeros(len(grid.points), np.float32), np.inf, 0
    least_change = tolerance * float(np.abs(rewards).max())
    while sweep < max_sweeps and change > least_change:
        best = np.full(len(values), -np.inf, np.float32)
        for reward, (points, weights) in zip(rewards, tables, strict=True):
            np.maximum(best, reward + _interpolate(values, points, weights), out=best)
        best[ended] = 0.0
        change = float(np.abs(best - values).max())
        values, sweep = best, sweep + 1
    return ValueFunction(grid, values, step, num_actions, objective, discount, sweep, change)


class ValueIterationAgent:
    """Plans once, on a grid of one agent's states, and acts greedily; Stable-Baselines3's `predict`.

    For discrete actions and up to about four coordinates: the grid has points^D points.
    """

    def __init__(
        self,
        model: Any,
        *,
        task: Task | None = None,
        points: int | Sequence[int] | None = None,
        bounds: tuple[Sequence[float], Sequence[float]] | None = None,
        objective: PlanningObjective | None = None,
        discount: float = 1.0,
        tolerance: float = 1e-3,
        max_sweeps: int | None = None,
    ) -> None:
        """Plan.

        Args:
            model: a simulator bound to one agent, an environment of this package, or a true system whose copies have
                the same covariates. Of a simulator that draws next states their means are planned with.
            task: only needed with a bare system.
            points: of the grid along each coordinate; by default some 90 000 in all.
            bounds: (low (D,), high (D,)) of the grid; by default the task's own or, where it names none, those of the
                observation space, which must then be finite. The range of a log, somewhat widened, will do.
            objective: what to maximize; by default the task's own reward and termination. (The planning objective
                stands in for them where a planner looks only some steps ahead.)
            discount: of later rewards.
            tolerance: stop when no value changes by more than this part of the largest reward of a step, whatever its
                sign.
            max_sweeps: steps to plan ahead at most; by default the task's time limit.

        Raises:
            InvalidArgumentError: continuous actions, unknown bounds, a grid too small or too large, an objective that
                is none, a number out of its range.
            NonFiniteReturnError: the model diverges, or the reward is not a finite number, somewhere on the grid.

        """
        source, found = model_and_task(model, task)
        if not found.discrete:
            raise InvalidArgumentError(f"value iteration plans discrete actions; those of task {found.name} are not")
        if finite_number("discount", discount, 0, above=True) > 1:
            raise InvalidArgumentError(f"discount={discount} must be at most 1")
        self.task: Task = found
        self.value_function = value_iteration(
            simulated_step(source) if isinstance(source, Simulator) else true_step(source),
            num_actions=found.action_size,
            objective=checked_objective(objective) or PlanningObjective(found.reward, found.terminated),
            grid=make_grid(found, points=points, bounds=bounds),
            discount=discount,
            tolerance=finite_number("tolerance", tolerance, 0),
            max_sweeps=found.max_episode_steps if max_sweeps is None else whole_number("max_sweeps", max_sweeps),
        )

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[IntArray, None]:
        """Return the best actions for observations (E, D) or (D,), and None; the other arguments are not used."""
        given, single = batch_of(observation)
        observations = self.task.check_observations(given, "E", dtype=np.float64, finite=True)
        if len(observations) == 0:
            return np.zeros(0, np.int64), None
        actions = self.value_function.action_values(observations).argmax(axis=0)
        return (actions[0] if single else actions), None


def make_grid(
    task: Task,
    *,
    points: int | Sequence[int] | None = None,
    bounds: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Grid:
    """Return a grid over a task's states; arguments as of `ValueIterationAgent`.

    Raises:
        InvalidArgumentError: bounds or numbers of points that make no grid, or unknown bounds.

    """
    size = task.observation_size
    own = task.grid_bounds or (task.observation_space.low, task.observation_space.high)
    try:
        low, high = (np.asarray(bound, np.float64) for bound in (own if bounds is None else bounds))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"bounds={bounds!r} must be (low, high) of {size} numbers each") from error
    if low.shape != (size,) or high.shape != (size,) or not np.all(low < high):
        raise InvalidArgumentError(f"bounds must be (low, high) of {size} numbers each, low below high; got {bounds}")
    bounded = np.isfinite(low) & np.isfinite(high)
    if not bounded.all():
        endless = [name for name, known in zip(task.observation_names, bounded, strict=True) if not known]
        raise InvalidArgumentError(
            f"task {task.name} does not bound {', '.join(endless)}; give bounds=(low, high), such as the range of "
            "the log's observations"
        )
    if points is None:
        points = int(round(_DEFAULT_POINTS ** (1 / size))) | 1  # odd, so that the middle is a point
    if np.shape(points) not in ((), (size,)):
        raise InvalidArgumentError(f"points={points!r} must be one whole number, or {size}, one a coordinate")
    given = [points] * size if np.ndim(points) == 0 else list(cast(Sequence[int], points))
    shape = tuple(whole_number("points", count) for count in given)
    if min(shape) < 2 or np.prod(shape, dtype=float) > MAX_POINTS:
        raise InvalidArgumentError(f"points={points} must be at least 2 a coordinate and at most {MAX_POINTS:,} in all")
    return Grid(low, high, shape)


def simulated_step(simulator: Simulator) -> StepFn:
    """Return the step function of one agent's simulator: the aggregate of the members, of means where they draw."""
    simulator = simulator.deterministic()
    if len(simulator.agents) != 1:
        raise InvalidArgumentError(f"value iteration plans for one agent; the simulator has {len(simulator.agents)}")

    def step(states: FloatArray, action: int) -> FloatArray:
        parts = np.array_split(states, -(-len(states) // _BATCH))
        actions = np.full(len(states), action)
        return np.concatenate([simulator.combine(simulator.step_members(part, actions[: len(part)])) for part in parts])

    return step


def true_step(system: System) -> StepFn:
    """Return the step function of a true system, that of its first copy; the system itself stays as it is."""

    def step(states: FloatArray, action: int) -> FloatArray:
        copies = system.branch(np.zeros(len(states), np.int64))
        copies.set_observations(states)
        return copies.step(np.full(len(states), action))

    return step


def _outcomes(
    states: FloatArray, step: StepFn, num_actions: int, objective: PlanningObjective
) -> tuple[FloatArray, np.ndarray, list[FloatArray]]:
    """Return rewards (A, B) float32, whether or how likely the episode goes on (A, B), and next states, A of (B, D)."""
    next_states: list[FloatArray] = [np.asarray(step(states, action), np.float64) for action in range(num_actions)]
    if not all(np.isfinite(following).all() for following in next_states):
        raise NonFiniteReturnError(
            "the model steps to states that are not finite numbers: it diverges; narrow the bounds of the grid, or "
            "train it again"
        )
    rewards = [objective.reward(states, np.full(len(states), a), s) for a, s in enumerate(next_states)]
    if not all(np.isfinite(np.asarray(reward, np.float64)).all() for reward in rewards):
        raise NonFiniteReturnError(
            "the reward of some states of the grid is not a finite number; check the reward function, or narrow the "
            "bounds of the grid"
        )
    running = [_going_on(objective, following) for following in next_states]
    return np.array(rewards, np.float32), np.array(running), next_states


def _going_on(objective: PlanningObjective, states: FloatArray) -> np.ndarray:
    """Return whether the episode goes on in states (B, D), or the probability of it where its end is a risk."""
    rule = objective.terminated
    if rule is None:
        return np.ones(len(states), bool)
    if isinstance(rule, TerminationRisk):
        return 1 - rule.probability(states)
    return ~np.asarray(rule(states), bool)


def _interpolate(values: FloatArray, points: IntArray, weights: FloatArray) -> FloatArray:
    total = weights[0] * values[points[0]]
    for corner, weight in zip(points[1:], weights[1:], strict=True):
        total += weight * values[corner]
    return total
