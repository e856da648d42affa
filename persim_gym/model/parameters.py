"""What is learned, by name and shape: the dynamics' parameters, and those of a learned reward or termination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from persim_gym.config import PerSimConfig
from persim_gym.tasks import Task
from persim_gym.types import FloatArray

SKIP = "state.skip"
"""Name of the linear path's weights (M, outputs, D) beside the state encoder's layers."""


def parameter_shapes(
    config: PerSimConfig,
    *,
    num_agents: int,
    observation_size: int,
    action_size: int,
    discrete: bool,
    num_outputs: int | None = None,
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of every parameter; layers are (M, outputs, inputs).

    The encoders are u: agent table (M, N, r) plus a shared bias; v: ReLU layers with D·r linear outputs, or as many
    times r as ``num_outputs`` says, to which "state.skip", where there is one, adds a linear function of the state;
    w: action table (M, A, r) plus a bias, or ReLU layers with r linear outputs.
    """
    members, rank = config.num_members, config.rank
    shapes = {
        "agent.weight": ((members, num_agents, rank), num_agents),
        "agent.bias": ((members, rank), num_agents),
    }
    outputs = (observation_size if num_outputs is None else num_outputs) * rank
    shapes.update(_layer_shapes("state", members, (observation_size, *config.state_hidden, outputs)))
    if discrete:
        shapes["action.weight"] = ((members, action_size, rank), action_size)
        shapes["action.bias"] = ((members, rank), action_size)
    else:
        shapes.update(_layer_shapes("action", members, (action_size, *config.action_hidden, rank)))
    if config.linear_skip:
        shapes[SKIP] = ((members, outputs, observation_size), observation_size)
    return shapes


def _layer_shapes(name: str, members: int, sizes: Sequence[int]) -> dict[str, tuple[tuple[int, ...], int]]:
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for index, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"{name}.{index}.weight"] = ((members, outputs, inputs), inputs)
        shapes[f"{name}.{index}.bias"] = ((members, outputs, 1), inputs)
    return shapes


@dataclass(frozen=True)
class Outcome:
    """A reward or a termination learned from the log (`persim_gym.model.outcomes`): M members for N agents."""

    parameters: Mapping[str, np.ndarray]
    """float32, as `outcome_shapes` says."""
    input_mean: FloatArray
    """(I,)."""
    input_scale: FloatArray
    """(I,)."""
    output_mean: FloatArray
    """(1,)."""
    output_scale: FloatArray
    """(1,)."""

    def of_agents(self, agents: Sequence[int | None]) -> Outcome:
        """Return the outcome of some agents, in the order given; None for one that the log never saw.

        An agent that was never seen has the mean of the others' factors.
        """
        table = self.parameters["agent.weight"]
        rows = [table.mean(axis=1) if agent is None else table[:, agent] for agent in agents]
        return replace(self, parameters={**self.parameters, "agent.weight": np.stack(rows, axis=1)})


def outcome_shapes(
    task: Task, config: PerSimConfig, num_agents: int, name: str
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of the parameters of a learned "reward" or "terminated"."""
    reward = name == "reward"
    return parameter_shapes(
        config,
        num_agents=num_agents,
        observation_size=task.observation_size * (2 if reward else 1),
        action_size=task.action_size if reward else 1,
        discrete=task.discrete or not reward,
        num_outputs=1,
    )
