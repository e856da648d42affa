"""Candidates of a simulator, in batches and threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from persim_gym.arguments import one_of
from persim_gym.rollouts.loops import column_returns, group_returns, mean_state_returns, tensor_returns
from persim_gym.rollouts.pruning import MembersFn, best_of_members, worth_pruning
from persim_gym.simulators.aggregation import aggregated
from persim_gym.simulators.simulator import Simulator
from persim_gym.tasks import PlanningObjective
from persim_gym.threads import run_in_threads, useful_threads
from persim_gym.types import FloatArray, IntArray, ReturnFn

PROPAGATIONS = ("per_member", "mean_state")
_COLUMNS_AT_ONCE = 256  # on the members' mean trajectory: what stays in the cache
_TRAJECTORIES_AT_ONCE = 1 << 20  # on a GPU: a few gigabytes of hidden units


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
            section 4), or "mean_state", where all members start each step from the mean of their predictions. If the
            simulator's aggregate is the median, it takes the place of the mean in both.
        best_only: whether only the best candidate of each environment matters. One that cannot be the best, given what
            the first members say of it and the largest reward of a step, is then scored minus infinity and costs no
            more rollouts.
        together: whether the environments are rolled out side by side, in as few batches as memory allows, and none
            of their rollouts is left out; by default on a GPU, which is slow at many small products.

    """
    one_of("propagation", propagation, PROPAGATIONS)
    goal = simulator.task.objective if objective is None else objective
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
        actions = simulator.task.executed(actions, len(environments), "C", "H")
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
        threads = useful_threads(simulator.hidden_layers) if on_cpu and not simulator.stochastic else 1
        run_in_threads(fill, pieces(alike[environments], actions.shape[1], threads, most=most), threads)
        return scores

    return returns


# These three return the aggregated returns (C,) of candidates (C, H) or (C, H, A) of agents (C,) from states (C, D).


def _score_on_mean_trajectory(
    simulator: Simulator, objective: PlanningObjective, agents: IntArray, origins: FloatArray, actions: np.ndarray
) -> FloatArray:
    """Score candidates of one agent, all members starting each step from the aggregate of their predictions."""
    network, moves = simulator.network(int(agents[0])), _moves(actions, simulator)
    start = torch.tensor(origins.T, device=simulator.device)
    return mean_state_returns(network, objective, start, moves, simulator.aggregate).cpu().numpy()


def _score_together(
    simulator: Simulator, objective: PlanningObjective, agents: IntArray, origins: FloatArray, actions: np.ndarray
) -> FloatArray:
    """Score candidates of several environments in one batch, and of several agents if the simulator mixes them."""
    network, moves = simulator.network_of(agents), _moves(actions, simulator)
    start, members = torch.tensor(origins.T, device=simulator.device), simulator.num_members
    returns = group_returns(network, objective, start, moves, slice(0, members), drop=False)
    return aggregated(_as_array(returns), simulator.aggregate)


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
    # What some members say bounds their mean, not their median.
    most = objective.largest_return(horizon) if best_only and simulator.aggregate == "mean" else None
    if most is not None and worth_pruning(members, candidates, at_once):
        return best_of_members(evaluate, members, candidates, most, at_once)
    return aggregated(evaluate(np.arange(candidates), slice(0, members)), simulator.aggregate)


def pieces(together: IntArray, candidates: int, threads: int, most: int | None = None) -> list[slice]:
    """Return what is scored at once: columns of neighbouring environments that are alike in ``together`` (n,).

    The pieces are as few as give every thread the same to do and have at most ``most`` columns.
    """
    ends = np.append(np.flatnonzero(np.diff(together)) + 1, len(together)) * candidates
    starts = np.append(0, ends[:-1])
    least = threads // math.gcd(len(ends), threads)
    found = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        parts = least * max(1, math.ceil((end - start) / (most or end) / least))
        stops = [start + (end - start) * part // parts for part in range(parts + 1)]
        found += [slice(*pair) for pair in itertools.pairwise(stops) if pair[0] < pair[1]]
    return found


def _members_fn(
    simulator: Simulator, agent: int, objective: PlanningObjective, start: FloatArray, actions: np.ndarray
) -> tuple[MembersFn, int]:
    """Return what scores some of an agent's candidates by some of its members, and how many are best asked at once."""
    columns = simulator.cpu_network(agent)
    if columns is not None:
        by_step = np.ascontiguousarray(actions.T)
        return lambda chosen, group: column_returns(
            columns, objective, start, by_step[:, chosen], group
        ), columns.at_once
    network, moves = simulator.network(agent), _moves(actions, simulator)
    origin = torch.tensor(start, device=simulator.device)[:, None]

    def evaluate(chosen: IntArray, group: slice) -> FloatArray:
        part = moves if len(chosen) == moves.shape[-1] else moves[..., torch.as_tensor(chosen, device=moves.device)]
        return _as_array(tensor_returns(network, objective, origin, part, group))

    return evaluate, 1


def _as_array(returns: Tensor) -> FloatArray:
    return returns.cpu().numpy().astype(np.float64)


def _moves(actions: np.ndarray, simulator: Simulator) -> Tensor:
    """Return candidates (C, H) or (C, H, A) as a tensor (H, C) or (H, A, C)."""
    moves = torch.as_tensor(actions, device=simulator.device).movedim(0, -1).contiguous()
    return moves if simulator.task.discrete else moves.float()
