"""What action sequences earn: rollouts of planner candidates in a simulator or in the true system."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from persim_gym.devices import threads_for
from persim_gym.errors import InvalidArgumentError
from persim_gym.simulator import AgentNetwork, Simulator
from persim_gym.tasks import PlanningObjective, System
from persim_gym.types import FloatArray, IntArray

ReturnFn = Callable[[IntArray, np.ndarray], FloatArray]
"""(environments (n,), actions (n, C, H) or (n, C, H, A)) -> returns (n, C): what a planner asks of a model."""

PROPAGATIONS = ("per_member", "mean_state")
_SCOUTS = 16
_STACKED_COLUMNS = 512  # up to this many columns, all members in one product beat one product a member


def simulated_returns(
    simulator: Simulator,
    observations: FloatArray,
    *,
    objective: PlanningObjective | None = None,
    propagation: str = "per_member",
    best_only: bool = False,
) -> ReturnFn:
    """Return the function that scores candidate sequences by rollouts in a simulator.

    Args:
        simulator: bound to one agent, or to one agent for each environment.
        observations: (E, D) current observation of each environment.
        objective: by default the task's.
        propagation: "per_member", where every member follows its own trajectory and the returns are averaged (paper,
            section 4), or "mean_state", where all members start each step from the mean of their predictions.
        best_only: whether only the best candidate of each environment matters. One that cannot be the best, given what
            the first member says of it and the largest reward of a step, is then scored minus infinity and costs no
            more rollouts.

    """
    if propagation not in PROPAGATIONS:
        raise InvalidArgumentError(f"propagation={propagation!r} must be one of {', '.join(PROPAGATIONS)}")
    goal = simulator.task.planning_objective if objective is None else objective
    agents = np.broadcast_to(simulator.agents, len(observations))
    starts = torch.tensor(np.asarray(observations, np.float32), device=simulator.device)

    def returns(environments: IntArray, actions: np.ndarray) -> FloatArray:
        scores = np.empty(actions.shape[:2])
        with torch.inference_mode(), threads_for(simulator.hidden_layers):
            for row, environment in enumerate(environments):
                network = simulator.network(int(agents[environment]))
                moves = torch.as_tensor(actions[row], device=simulator.device).movedim(0, -1).contiguous()
                if network.num_actions == 0:
                    moves = moves.float()
                if propagation == "per_member":
                    bounded = best_only and goal.max_reward is not None and goal.progress is None
                    evaluate = _per_member_best if bounded else _per_member
                    score = evaluate(network, goal, starts[environment], moves)
                else:
                    score = _mean_state(network, goal, starts[environment], moves)
                scores[row] = score.cpu().numpy()
        return scores

    return returns


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


def _per_member(network: AgentNetwork, objective: PlanningObjective, start: Tensor, actions: Tensor) -> Tensor:
    """Return the members' mean return (C,) of candidates (H, C) or (H, A, C), each member on its own trajectory."""
    members, candidates = network.num_members, actions.shape[-1]
    stacked = start.is_cuda or members * candidates <= _STACKED_COLUMNS
    groups = [slice(0, members)] if stacked else [slice(member, member + 1) for member in range(members)]
    total = torch.zeros(candidates, device=start.device)
    for group in groups:
        total += _group_returns(network, objective, start, actions, group)
    return total / members


def _per_member_best(network: AgentNetwork, objective: PlanningObjective, start: Tensor, actions: Tensor) -> Tensor:
    """Return the same as `_per_member`, but minus infinity for candidates that another one is sure to beat.

    The first member scores all. The few it likes best are scored by all members; whoever could not reach the best of
    these even with the largest reward at every step of every other member is out.
    """
    members, candidates = network.num_members, actions.shape[-1]
    if members == 1 or members * candidates <= _STACKED_COLUMNS:
        return _per_member(network, objective, start, actions)
    first = _no_nan(_group_returns(network, objective, start, actions, slice(0, 1)))
    limit = (members - 1) * len(actions) * objective.max_reward
    scouts = first.topk(min(_SCOUTS, candidates)).indices
    reached = _no_nan(_per_member(network, objective, start, actions[..., scouts])).max()
    contenders = ((first + limit) / members >= reached).nonzero()[:, 0]
    total = torch.full_like(first, -torch.inf)
    total[contenders] = _per_member(network, objective, start, actions[..., contenders])
    return total


def _no_nan(returns: Tensor) -> Tensor:
    return torch.where(returns.isnan(), -torch.inf, returns)


def _group_returns(
    network: AgentNetwork, objective: PlanningObjective, start: Tensor, actions: Tensor, group: slice
) -> Tensor:
    """Return the summed returns (C,) of some members. A single member drops its rollouts that are over."""
    horizon, candidates = len(actions), actions.shape[-1]
    count = group.stop - group.start
    states = start[:, None].expand(count, -1, candidates).contiguous()
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
        if count > 1:
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


def _mean_state(network: AgentNetwork, objective: PlanningObjective, start: Tensor, actions: Tensor) -> Tensor:
    """Return the members' mean return (C,) of candidates (H, C) or (H, A, C), on the members' mean trajectory."""
    horizon, candidates = len(actions), actions.shape[-1]
    states = start[:, None].expand(-1, candidates)
    returns = torch.zeros(candidates, device=start.device)
    best = None if objective.progress is None else objective.progress(states.T)
    alive = torch.ones(candidates, dtype=torch.bool, device=start.device)
    for step in range(horizon):
        moves = actions[step]
        inputs = moves if network.num_actions else network.action_factors(moves)
        stacked = states.expand(network.num_members, -1, -1)
        next_stacked = network.next_states(stacked, inputs)
        rewards = objective.reward(stacked.transpose(1, 2), moves.movedim(-1, 0), next_stacked.transpose(1, 2)).mean(0)
        states = next_stacked.mean(0)
        if objective.terminated is not None:
            alive = alive & ~objective.terminated(states.T)
        returns += torch.where(alive, rewards, 0.0)
        if best is not None:
            best = torch.maximum(best, objective.progress(states.T))
    returns = torch.where(~states.isfinite().all(dim=0) & alive, torch.nan, returns)
    return returns if best is None else returns + horizon * best
