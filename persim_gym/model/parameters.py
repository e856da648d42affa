"""The parameters of a factorized model, by name and shape."""

from __future__ import annotations

from collections.abc import Sequence

from persim_gym.config import PerSimConfig

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
    shapes.update(layer_shapes("state", members, (observation_size, *config.state_hidden, outputs)))
    if discrete:
        shapes["action.weight"] = ((members, action_size, rank), action_size)
        shapes["action.bias"] = ((members, rank), action_size)
    else:
        shapes.update(layer_shapes("action", members, (action_size, *config.action_hidden, rank)))
    if config.linear_skip:
        shapes[SKIP] = ((members, outputs, observation_size), observation_size)
    return shapes


def layer_shapes(name: str, members: int, sizes: Sequence[int]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of a network's weights (M, outputs, inputs) and biases (M, outputs, 1)."""
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for index, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"{name}.{index}.weight"] = ((members, outputs, inputs), inputs)
        shapes[f"{name}.{index}.bias"] = ((members, outputs, 1), inputs)
    return shapes
