"""The model: an agent's change of state is Σ_l u_l(agent)·v_l(state, d)·w_l(action) (paper, section 4).

Here it is evaluated as it is, by all members at once, an agent for each column; `persim_gym.simulators.networks` folds
it for a single agent. Activations are kept feature-major, (M, features, B): with a handful of features the matrix
products then have their long side where the CPU's kernels want it, four times faster here than the usual layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from persim_gym.model.parameters import SKIP

Parameters = Mapping[str, Tensor]
"""Of all members, under the names of `persim_gym.model.parameters.parameter_shapes`."""


@dataclass(frozen=True)
class Activations:
    """What a pass through the model computes on the way to its outputs, and these."""

    state_layers: list[Tensor]
    """Activations of v, as `encode` returns them; the last are v(state) (M, D·r, B)."""
    action_layers: list[Tensor]
    """Activations of w for continuous actions; empty for discrete ones."""
    agent_factors: Tensor
    """u(agent) (M, r, B)."""
    action_factors: Tensor
    """w(action) (M, r, B)."""
    state_factors: Tensor
    """v(state, d) (M, D, r, B)."""
    weights: Tensor
    """u·w (M, r, B)."""
    outputs: Tensor
    """Predicted changes (M, D, B)."""


def forward(parameters: Parameters, states: Tensor, agent_rows: Tensor, actions: Tensor) -> Activations:
    """Return what `predict` computes on the way, too; arguments as there."""
    members, _, batch = states.shape
    agent_factors = look_up(parameters, "agent", agent_rows, members)
    action_layers, action_factors = _action_factors(parameters, actions, members)
    state_layers = encode(parameters, "state", states)
    state_factors = state_layers[-1].view(members, -1, agent_factors.shape[1], batch)
    weights = agent_factors * action_factors
    outputs = (state_factors * weights[:, None]).sum(2)
    return Activations(state_layers, action_layers, agent_factors, action_factors, state_factors, weights, outputs)


def predict(parameters: Parameters, states: Tensor, agent_rows: Tensor, actions: Tensor) -> Tensor:
    """Return predicted (standardized) changes (M, D, B).

    Parameters of another number of outputs than D give as many; so do those of a learned reward or termination.

    Args:
        parameters: of all members.
        states: (M, D, B), standardized.
        agent_rows: (M·B,) flat rows of the agent table (`member_rows`).
        actions: (M·B,) flat rows of the action table, or (M, A, B) continuous actions (`member_actions`).

    """
    return forward(parameters, states, agent_rows, actions).outputs


def agent_features(parameters: Parameters, states: Tensor, actions: Tensor) -> Tensor:
    """Return φ = v(state, d)·w(action) (M, D, r, B): the model's changes are Σ_l u_l(agent)·φ_dl.

    Arguments as in `predict`.
    """
    members, _, batch = states.shape
    _, action_factors = _action_factors(parameters, actions, members)
    state_factors = encode(parameters, "state", states)[-1].view(members, -1, action_factors.shape[1], batch)
    return state_factors * action_factors[:, None]


def head_inputs(
    parameters: Parameters, states: Tensor, agent_rows: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return h (M, J, B), what v's last layer sees, g = u(agent)·w(action) (M, r, B), and the changes (M, D, B).

    The changes are Σ_lj g_l·h_j·W_dlj, where W is that layer: h is the last hidden units, 1 for the bias and, where v
    has a linear path, the state. Arguments as in `predict`.
    """
    passed = forward(parameters, states, agent_rows, actions)
    hidden = passed.state_layers[-2]
    inputs = [hidden, torch.ones_like(hidden[:, :1])]
    if SKIP in parameters:
        inputs.append(states)
    return torch.cat(inputs, dim=1), passed.weights, passed.outputs


def member_rows(indices: Tensor, members: int, table_size: int) -> Tensor:
    """Return the flat rows (M, B) of tables (M, n, r) for indices (B,), or for (M, B) of each member's own.

    The rows of member m's table begin at m·n, n = ``table_size``.
    """
    return indices + table_size * torch.arange(members, device=indices.device)[:, None]


def member_actions(actions: Tensor, members: int, table_size: int) -> Tensor:
    """Return actions (B,) or (B, A) as `predict` takes them, the same for every member."""
    if actions.dim() == 1:
        return member_rows(actions, members, table_size).view(-1)
    return actions.T.expand(members, -1, -1)


def num_layers(parameters: Parameters, name: str) -> int:
    """Return the number of linear layers of an encoder."""
    return sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in parameters)


def initialize_layer(weights: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
    """Draw a linear layer's weights or biases, in place, as torch does: within ± 1/√(number of inputs)."""
    bound = fan_in**-0.5
    return weights.uniform_(-bound, bound, generator=generator)


def encode(parameters: Parameters, name: str, inputs: Tensor) -> list[Tensor]:
    """Return the activations of every layer of an encoder: inputs (M, I, B), …, linear outputs (M, O, B).

    A linear path from the inputs, where the encoder has one, is part of the outputs.
    """
    activations = [inputs]
    last = num_layers(parameters, name) - 1
    for index in range(last + 1):
        output = torch.baddbmm(
            parameters[f"{name}.{index}.bias"], parameters[f"{name}.{index}.weight"], activations[-1]
        )
        activations.append(output.relu_() if index < last else output)
    skip = skip_of(parameters, name)
    if skip is not None:
        activations[-1].baddbmm_(skip, inputs)
    return activations


def skip_of(parameters: Parameters, name: str) -> Tensor | None:
    """Return the weights (M, O, I) of an encoder's linear path, None if it has none; only the state's may have one."""
    return parameters.get(SKIP) if name == "state" else None


def look_up(parameters: Parameters, name: str, rows: Tensor, members: int) -> Tensor:
    """Return factors (M, r, B) from a table (M, n, r), by flat row numbers (M·B,), shared bias included."""
    table = parameters[f"{name}.weight"]
    factors = table.reshape(-1, table.shape[2]).index_select(0, rows).view(members, -1, table.shape[2])
    return factors.transpose(1, 2).contiguous().add_(parameters[f"{name}.bias"][:, :, None])


def _action_factors(parameters: Parameters, actions: Tensor, members: int) -> tuple[list[Tensor], Tensor]:
    """Return the activations of w, none for discrete actions, and w(action) (M, r, B)."""
    if actions.dim() == 1:
        return [], look_up(parameters, "action", actions, members)
    activations = encode(parameters, "action", actions)
    return activations, activations[-1]
