"""Rollouts step by step, of all candidates side by side: in the true system and in the members of a simulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from persim_gym.rollouts.tally import Tally
from persim_gym.simulators.aggregation import aggregated
from persim_gym.simulators.networks.interfaces import CpuNetwork, MemberNetwork
from persim_gym.tasks import PlanningObjective, System, Task
from persim_gym.types import FloatArray, IntArray, ReturnFn

STACKED_COLUMNS = 512
"""Up to this many columns, all members in one product beat one product a member."""
_WORTH_DROPPING = 0.9  # rollouts that are over are dropped once they are a tenth of all


def true_returns(system: System, task: Task, objective: PlanningObjective) -> ReturnFn:
    """Return the function that scores candidate sequences in exact duplicates of the true system's copies."""

    def returns(environments: IntArray, actions: np.ndarray) -> FloatArray:
        actions = task.executed(actions, len(environments), "C", "H")
        count, candidates, horizon = actions.shape[:3]
        branch = system.branch(np.repeat(environments, candidates))
        moves = actions.reshape(count * candidates, horizon, *actions.shape[3:])
        states = branch.observe()
        tally = Tally(objective, states, np.zeros(len(moves)))
        for step in range(horizon):
            next_states = branch.step(moves[:, step])
            tally.add(objective.reward(states, moves[:, step], next_states), next_states)
            states = next_states
        return tally.returns(horizon, states).reshape(count, candidates)

    return returns


def column_returns(
    network: CpuNetwork, objective: PlanningObjective, start: FloatArray, actions: IntArray, group: slice
) -> FloatArray:
    """Return the returns (m, C) of some members for candidates (H, C). Rollouts that are over are dropped."""
    horizon, candidates = actions.shape
    count = group.stop - group.start
    states = network.start(start[None], count * candidates)
    tally = Tally(objective, states[:-1].T, np.zeros(count * candidates))
    moving = np.tile(np.arange(candidates), count)
    stops = [candidates * (member + 1) for member in range(count)]
    for step in range(horizon):
        moves = actions[step].take(moving)
        following = network.next_states(states, moves, stops, group.start)
        tally.add(objective.reward(states[:-1].T, moves, following[:-1].T), following[:-1].T)
        states = following
        if tally.may_drop and np.count_nonzero(tally.alive) < _WORTH_DROPPING * len(moving):
            kept = np.flatnonzero(tally.alive)
            if len(kept) == 0:
                break
            tally.keep(kept)
            moving, states = moving[kept], states[:, kept]
            stops = np.searchsorted(tally.followed, candidates * np.arange(1, count + 1)).tolist()
    return tally.returns(horizon, states[:-1].T).reshape(count, candidates)


def tensor_returns(
    network: MemberNetwork, objective: PlanningObjective, start: Tensor, actions: Tensor, group: slice
) -> Tensor:
    """Return the returns (m, C) of some members for candidates (H, C) or (H, A, C) from a state (D, 1)."""
    count = group.stop - group.start
    if count * actions.shape[-1] <= STACKED_COLUMNS:
        return group_returns(network, objective, start, actions, group)
    members = (slice(member, member + 1) for member in range(group.start, group.stop))
    return torch.cat([group_returns(network, objective, start, actions, member) for member in members])


def group_returns(
    network: MemberNetwork,
    objective: PlanningObjective,
    start: Tensor,
    actions: Tensor,
    group: slice,
    drop: bool = True,
) -> Tensor:
    """Return the returns (m, C) of some members from one state (D, 1) or as many as candidates, (D, C).

    A single member drops its rollouts that are over, unless told not to.
    """
    horizon, candidates = len(actions), actions.shape[-1]
    count = group.stop - group.start
    states = start.expand(count, -1, candidates).contiguous()
    tally = Tally(objective, states.transpose(1, 2), states.new_zeros(count, candidates))
    dropping = drop and count == 1 and tally.may_drop
    for step in range(horizon):
        moves = actions[step] if tally.followed is None else actions[step].index_select(-1, tally.followed)
        inputs = moves if network.num_actions else network.action_factors(moves, group)
        next_states = network.next_states(states, inputs, group)
        reached = next_states.transpose(1, 2)
        tally.add(objective.reward(states.transpose(1, 2), moves.movedim(-1, 0), reached), reached)
        states = next_states
        if dropping and not tally.alive.all():
            kept = tally.alive[0].nonzero()[:, 0]
            if len(kept) == 0:
                break
            tally.keep(kept)
            states = states.index_select(2, kept)
    return tally.returns(horizon, states.transpose(1, 2))


def mean_state_returns(
    network: MemberNetwork, objective: PlanningObjective, states: Tensor, actions: Tensor, aggregate: str
) -> Tensor:
    """Return the return (C,) of candidates (H, C) or (H, A, C) on the members' aggregated trajectory from (D, C).

    A step pays the aggregate of what it would pay if each member's prediction came true.
    """
    horizon, candidates = len(actions), actions.shape[-1]
    tally = Tally(objective, states.T, states.new_zeros(candidates))
    inputs = actions if network.num_actions else _factors_of_steps(network, actions)
    for step in range(horizon):
        moves = actions[step]
        # The candidates of one environment start from the same state.
        apart = states if step or bool((states != states[:, :1]).any()) else states[:, :1]
        next_stacked = network.next_states(apart.expand(network.num_members, -1, -1), inputs[step])
        stacked = states.expand(network.num_members, -1, -1)
        rewards = objective.reward(stacked.transpose(1, 2), moves.movedim(-1, 0), next_stacked.transpose(1, 2))
        states = aggregated(next_stacked, aggregate)
        tally.add(aggregated(rewards, aggregate), states.T)
    return tally.returns(horizon, states.T)


def _factors_of_steps(network: MemberNetwork, actions: Tensor) -> Sequence[Tensor]:
    """Return the factors (m, r, C) of each step's actions (H, A, C), all encoded at once."""
    horizon, size, candidates = actions.shape
    factors = network.action_factors(actions.transpose(0, 1).reshape(size, -1))
    return factors.unflatten(2, (horizon, candidates)).unbind(2)
