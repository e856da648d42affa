"""What action sequences earn: rollouts of planner candidates in a simulator or in the true system."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from persim_gym.blocks import ColumnNetwork
from persim_gym.devices import in_threads, threads_worth
from persim_gym.errors import InvalidArgumentError
from persim_gym.simulator import MemberNetwork, Simulator
from persim_gym.tasks import PlanningObjective, System
from persim_gym.types import FloatArray, IntArray

ReturnFn = Callable[[IntArray, np.ndarray], FloatArray]
"""(environments (n,), actions (n, C, H) or (n, C, H, A)) -> returns (n, C): what a planner asks of a model."""

MembersFn = Callable[[IntArray, slice], FloatArray]
"""(candidates (n,), members) -> sum of these members' returns (n,)."""

PROPAGATIONS = ("per_member", "mean_state")
_SCOUTS = 16
_WORTH_DROPPING = 0.9  # rollouts that are over are dropped once they are a tenth of all
_COLUMNS_AT_ONCE = 256  # on the members' mean trajectory: what stays in the cache
_TRAJECTORIES_AT_ONCE = 1 << 20  # on a GPU: a few gigabytes of hidden units
_STACKED_COLUMNS = 512  # up to this many columns, all members in one product beat one product a member


def simulated_returns(
    simulator: Simulator,
    observations: FloatArray,
    *,
    objective: PlanningObjective | None = None,
    propagation: str = "per_member",
    best_only: bool = False,
    together: bool | None = None,
) -> ReturnFn:
    """Return the function that scores candidate sequences by rollouts in a simulator.

    Args:
        simulator: bound to one agent, or to one agent for each environment.
        observations: (E, D) current observation of each environment.
        objective: by default the task's.
        propagation: "per_member", where every member follows its own trajectory and the returns are averaged (paper,
            section 4), or "mean_state", where all members start each step from the mean of their predictions.
        best_only: whether only the best candidate of each environment matters. One that cannot be the best, given what
            the first members say of it and the largest reward of a step, is then scored minus infinity and costs no
            more rollouts.
        together: whether the environments are rolled out side by side, in as few batches as memory allows, and none
            of their rollouts is left out; by default on a GPU, which is slow at many small products.

    """
    if propagation not in PROPAGATIONS:
        raise InvalidArgumentError(f"propagation={propagation!r} must be one of {', '.join(PROPAGATIONS)}")
    goal = simulator.task.planning_objective if objective is None else objective
    agents = np.broadcast_to(simulator.agents, len(observations))
    starts = np.asarray(observations, np.float32)
    on_cpu = simulator.device.type == "cpu"
    side_by_side = not on_cpu if together is None else together
    score: Callable[..., FloatArray]
    if propagation == "mean_state":
        score, alike, most = _score_on_mean_trajectory, agents, _COLUMNS_AT_ONCE
    elif side_by_side:
        mixes = simulator.mixes_agents and goal.of_agent is None
        score, alike, most = _score_together, np.zeros_like(agents) if mixes else agents, None
    else:
        score, alike, most = partial(_score_one_environment, best_only=best_only), np.arange(len(agents)), None
    if side_by_side:
        most = max(1, _TRAJECTORIES_AT_ONCE // simulator.num_members)

    def returns(environments: IntArray, actions: np.ndarray) -> FloatArray:
        """Score in threads, environments that are ``alike`` together."""
        scores = np.empty(actions.shape[:2])
        moves, columns = actions.reshape(-1, *actions.shape[2:]), scores.reshape(-1)
        rows = np.repeat(environments, actions.shape[1])

        def fill(part: slice) -> None:
            bound = agents[rows[part]]
            own = goal if goal.of_agent is None else goal.of_agent(int(bound[0]))
            quiet = np.errstate(invalid="ignore", over="ignore")  # a model that diverges
            with quiet, torch.inference_mode():
                columns[part] = score(simulator, own, bound, starts[rows[part]], moves[part])

        # Next states are drawn from one stream of random numbers, in order.
        threads = threads_worth(simulator.hidden_layers) if on_cpu and not simulator.stochastic else 1
        in_threads(fill, _pieces(alike[environments], actions.shape[1], threads, most=most), threads)
        return scores

    return returns


# These three return the mean returns (C,) of candidates (C, H) or (C, H, A) of agents (C,) from states (C, D).


def _score_on_mean_trajectory(
    simulator: Simulator, objective: PlanningObjective, agents: IntArray, origins: FloatArray, actions: np.ndarray
) -> FloatArray:
    """Score candidates of one agent, all members starting each step from the mean of their predictions."""
    network, moves = simulator.network(int(agents[0])), _moves(actions, simulator)
    start = torch.tensor(origins.T, device=simulator.device)
    return _mean_state(network, objective, start, moves).cpu().numpy()


def _score_together(
    simulator: Simulator, objective: PlanningObjective, agents: IntArray, origins: FloatArray, actions: np.ndarray
) -> FloatArray:
    """Score candidates of several environments in one batch, and of several agents if the simulator mixes them."""
    network, moves = simulator.network_of(agents), _moves(actions, simulator)
    start, members = torch.tensor(origins.T, device=simulator.device), simulator.num_members
    total = _group_returns(network, objective, start, moves, slice(0, members), drop=False)
    return total.cpu().numpy().astype(np.float64) / members


def _score_one_environment(
    simulator: Simulator,
    objective: PlanningObjective,
    agents: IntArray,
    origins: FloatArray,
    actions: np.ndarray,
    *,
    best_only: bool,
) -> FloatArray:
    """Score candidates of one environment."""
    evaluate, at_once = _members_fn(simulator, int(agents[0]), objective, origins[0], actions)
    members, candidates, horizon = simulator.num_members, *actions.shape[:2]
    bounded = best_only and objective.max_reward is not None and objective.progress is None
    if bounded and members > at_once and members * candidates > at_once * _STACKED_COLUMNS:
        return _best_only(evaluate, members, candidates, horizon * objective.max_reward, at_once)
    return evaluate(np.arange(candidates), slice(0, members)) / members


def _pieces(together: IntArray, candidates: int, threads: int, most: int | None = None) -> list[slice]:
    """Return what is scored at once: columns of neighbouring environments that are alike in ``together`` (n,).

    The pieces are as few as give every thread the same to do and have at most ``most`` columns.
    """
    ends = np.append(np.flatnonzero(np.diff(together)) + 1, len(together)) * candidates
    starts = np.append(0, ends[:-1])
    least = threads // math.gcd(len(ends), threads)
    pieces = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        parts = least * max(1, math.ceil((end - start) / (most or end) / least))
        stops = [start + (end - start) * part // parts for part in range(parts + 1)]
        pieces += [slice(*pair) for pair in itertools.pairwise(stops) if pair[0] < pair[1]]
    return pieces


def _members_fn(
    simulator: Simulator, agent: int, objective: PlanningObjective, start: FloatArray, actions: np.ndarray
) -> tuple[MembersFn, int]:
    """Return what scores some of an agent's candidates by some of its members, and how many are best asked at once."""
    columns = simulator.column_network(agent)
    if columns is not None:
        by_step = np.ascontiguousarray(actions.T)
        return lambda chosen, group: _column_returns(
            columns, objective, start, by_step[:, chosen], group
        ), columns.at_once
    network, moves = simulator.network(agent), _moves(actions, simulator)
    origin = torch.tensor(start, device=simulator.device)[:, None]

    def evaluate(chosen: IntArray, group: slice) -> FloatArray:
        part = moves if len(chosen) == moves.shape[-1] else moves[..., torch.as_tensor(chosen, device=moves.device)]
        return _tensor_returns(network, objective, origin, part, group).cpu().numpy().astype(np.float64)

    return evaluate, 1


def _moves(actions: np.ndarray, simulator: Simulator) -> Tensor:
    """Return candidates (C, H) or (C, H, A) as a tensor (H, C) or (H, A, C)."""
    moves = torch.as_tensor(actions, device=simulator.device).movedim(0, -1).contiguous()
    return moves if simulator.task.discrete else moves.float()


def true_returns(system: System, objective: PlanningObjective) -> ReturnFn:
    """Return the function that scores candidate sequences in exact duplicates of the true system's copies."""

    def returns(environments: IntArray, actions: np.ndarray) -> FloatArray:
        count, candidates, horizon = actions.shape[:3]
        branch = system.branch(np.repeat(environments, candidates))
        moves = actions.reshape(count * candidates, horizon, *actions.shape[3:])
        total, alive, best = np.zeros(len(moves)), np.ones(len(moves)), np.full(len(moves), -np.inf)
        states = branch.observe()
        if objective.progress is not None:
            best = objective.progress(states)
        for step in range(horizon):
            next_states = branch.step(moves[:, step])
            if objective.terminated is not None:
                alive = alive * ~objective.terminated(next_states)
            total += alive * objective.reward(states, moves[:, step], next_states)
            if objective.progress is not None:
                best = np.maximum(best, objective.progress(next_states))
            states = next_states
        if objective.progress is not None:
            total += horizon * best
        return total.reshape(count, candidates)

    return returns


def _best_only(evaluate: MembersFn, members: int, candidates: int, limit: float, at_once: int = 1) -> FloatArray:
    """Return the members' mean return (C,), but minus infinity for candidates that another one is sure to beat.

    The first ``at_once`` members score all. The few they like best are scored by the others too. Whoever could not
    reach the best of these even with the return ``limit`` from every member left is out; the rest are scored by some
    more members, and so on.
    """
    first = _no_nan(evaluate(np.arange(candidates), slice(0, at_once)))
    scouts = np.argsort(-first, kind="stable")[:_SCOUTS]
    total = np.full(candidates, -np.inf)
    total[scouts] = _no_nan(first[scouts] + evaluate(scouts, slice(at_once, members)))
    best, asked = total[scouts].max(), at_once
    rest = np.setdiff1d(np.arange(candidates), scouts)
    known = first[rest]
    while asked < members:
        contending = known + (members - asked) * limit >= best
        rest, known = rest[contending], known[contending]
        if len(rest) == 0:
            break
        more = at_once * max(1, _STACKED_COLUMNS // len(rest))
        group = slice(asked, min(members, asked + more))
        known = _no_nan(known + evaluate(rest, group))
        asked = group.stop
    total[rest] = known
    return total / members


def _no_nan(returns: FloatArray) -> FloatArray:
    return np.where(np.isnan(returns), -np.inf, returns)


def _column_returns(
    network: ColumnNetwork, objective: PlanningObjective, start: FloatArray, actions: IntArray, group: slice
) -> FloatArray:
    """Return the summed returns (C,) of some members for candidates (H, C). Rollouts that are over are dropped."""
    horizon, candidates = actions.shape
    count = group.stop - group.start
    states = network.start(start[None], count * candidates)
    columns = np.arange(count * candidates)
    moving = np.tile(np.arange(candidates), count)
    stops = [candidates * (member + 1) for member in range(count)]
    returns = np.zeros(count * candidates)
    alive = np.ones(count * candidates, bool)
    best = None if objective.progress is None else objective.progress(states[:-1].T)
    for step in range(horizon):
        moves = actions[step].take(moving)
        following = network.next_states(states, moves, stops, group.start)
        rewards = objective.reward(states[:-1].T, moves, following[:-1].T)
        states = following
        if best is not None:
            best = np.maximum(best, objective.progress(states[:-1].T))
        if objective.terminated is None:
            returns += rewards
            continue
        alive &= ~objective.terminated(states[:-1].T)
        returns[columns] += np.where(alive, rewards, 0.0)
        # The climb counts to the end of the horizon, so with it no rollout may be dropped.
        if best is None and np.count_nonzero(alive) < _WORTH_DROPPING * len(alive):
            columns, moving, states = columns[alive], moving[alive], states[:, alive]
            alive = np.ones(len(columns), bool)
            stops = [int(stop) for stop in np.searchsorted(columns, candidates * np.arange(1, count + 1))]
            if len(columns) == 0:
                break
    if best is not None:
        returns += horizon * best
    broken = ~np.isfinite(states).all(axis=0) & alive  # comparisons with NaN are false: it looks alive and well
    returns[columns[broken]] = np.nan
    return returns.reshape(count, candidates).sum(axis=0)


def _tensor_returns(
    network: MemberNetwork, objective: PlanningObjective, start: Tensor, actions: Tensor, group: slice
) -> Tensor:
    """Return the summed returns (C,) of some members for candidates (H, C) or (H, A, C) from a state (D, 1)."""
    count = group.stop - group.start
    if count * actions.shape[-1] <= _STACKED_COLUMNS:
        return _group_returns(network, objective, start, actions, group)
    total = torch.zeros(actions.shape[-1], device=start.device)
    for member in range(group.start, group.stop):
        total += _group_returns(network, objective, start, actions, slice(member, member + 1))
    return total


def _group_returns(
    network: MemberNetwork,
    objective: PlanningObjective,
    start: Tensor,
    actions: Tensor,
    group: slice,
    drop: bool = True,
) -> Tensor:
    """Return the summed returns (C,) of some members from one state (D, 1) or as many as candidates, (D, C).

    A single member drops its rollouts that are over, unless told not to.
    """
    horizon, candidates = len(actions), actions.shape[-1]
    count = group.stop - group.start
    states = start.expand(count, -1, candidates).contiguous()
    returns = torch.zeros(count, candidates, device=start.device)
    best = None if objective.progress is None else objective.progress(states.transpose(1, 2))
    alive = torch.ones(count, candidates, dtype=torch.bool, device=start.device)
    running = torch.arange(candidates, device=start.device)
    for step in range(horizon):
        moves = actions[step].index_select(-1, running) if len(running) < candidates else actions[step]
        inputs = moves if network.num_actions else network.action_factors(moves, group)
        next_states = network.next_states(states, inputs, group)
        views = states.transpose(1, 2), moves.movedim(-1, 0), next_states.transpose(1, 2)
        rewards = objective.reward(*views)
        if best is not None:
            best = torch.maximum(best, objective.progress(views[2]))
        states = next_states
        if objective.terminated is None:
            returns += rewards
            continue
        alive = alive & ~objective.terminated(views[2])
        if count > 1 or not drop:
            returns += torch.where(alive, rewards, 0.0)
            continue
        if best is not None:  # the climb counts to the end of the horizon, so no rollout may be dropped
            returns += torch.where(alive, rewards, 0.0)
            continue
        kept = alive[0].nonzero()[:, 0]
        if len(kept) < len(running):
            running, states, rewards = running[kept], states.index_select(2, kept), rewards[:, kept]
            alive = alive[:, kept]
            if len(running) == 0:
                break
        returns[0].index_add_(0, running, rewards[0])
    if best is not None:
        returns += horizon * best
    broken = ~states.isfinite().all(dim=1) & alive  # comparisons with NaN are false: it looks alive and well
    returns[:, running] = torch.where(broken, torch.nan, returns[:, running])
    return returns.sum(0)


def _mean_state(network: MemberNetwork, objective: PlanningObjective, states: Tensor, actions: Tensor) -> Tensor:
    """Return the members' mean return (C,) of candidates (H, C) or (H, A, C), on their mean trajectory from (D, C)."""
    horizon, candidates = len(actions), actions.shape[-1]
    returns = torch.zeros(candidates, device=states.device)
    best = None if objective.progress is None else objective.progress(states.T)
    alive = torch.ones(candidates, dtype=torch.bool, device=states.device)
    inputs = actions if network.num_actions else _factors_of_steps(network, actions)
    for step in range(horizon):
        moves = actions[step]
        # The candidates of one environment start from the same state.
        apart = states if step or bool((states != states[:, :1]).any()) else states[:, :1]
        next_stacked = network.next_states(apart.expand(network.num_members, -1, -1), inputs[step])
        stacked = states.expand(network.num_members, -1, -1)
        rewards = objective.reward(stacked.transpose(1, 2), moves.movedim(-1, 0), next_stacked.transpose(1, 2)).mean(0)
        states = next_stacked.mean(0)
        if objective.terminated is not None:
            alive = alive & ~objective.terminated(states.T)
        returns += torch.where(alive, rewards, 0.0)
        if best is not None:
            best = torch.maximum(best, objective.progress(states.T))
    returns = torch.where(~states.isfinite().all(dim=0) & alive, torch.nan, returns)
    return returns if best is None else returns + horizon * best


def _factors_of_steps(network: MemberNetwork, actions: Tensor) -> Sequence[Tensor]:
    """Return the factors (m, r, C) of each step's actions (H, A, C), all encoded at once."""
    horizon, size, candidates = actions.shape
    factors = network.action_factors(actions.transpose(0, 1).reshape(size, -1))
    return factors.unflatten(2, (horizon, candidates)).unbind(2)
