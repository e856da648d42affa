"""Loss and gradients of all members at once, written out.

Activations are kept feature-major, (M, features, B): with a handful of features the matrix products then have their
long side where the CPU's kernels want it (four times faster here than the usual layout), and an optimizer step of a
small network costs some thirty calls instead of autograd's hundred. `tests/test_gradients.py` holds this against
autograd.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Parameters = Mapping[str, Tensor]


def num_layers(parameters: Parameters, name: str) -> int:
    """Return the number of linear layers of an encoder."""
    return sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in parameters)


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
    skip = parameters.get(f"{name}.skip")
    if skip is not None:
        activations[-1].baddbmm_(skip, inputs)
    return activations


def backpropagate(
    parameters: Parameters, gradients: Parameters, name: str, activations: list[Tensor], slope: Tensor
) -> None:
    """Fill the gradients of an encoder's layers from the slope (M, O, B) of the loss in its outputs, and `encode`."""
    skip = gradients.get(f"{name}.skip")
    if skip is not None:
        torch.bmm(slope, activations[0].transpose(1, 2), out=skip)
    for index in reversed(range(len(activations) - 1)):
        inputs = activations[index]
        torch.bmm(slope, inputs.transpose(1, 2), out=gradients[f"{name}.{index}.weight"])
        torch.sum(slope, dim=2, keepdim=True, out=gradients[f"{name}.{index}.bias"])
        if index > 0:
            slope = torch.bmm(parameters[f"{name}.{index}.weight"].transpose(1, 2), slope)
            torch.ops.aten.threshold_backward.grad_input(slope, inputs, 0.0, grad_input=slope)  # through the ReLU


def _look_up(parameters: Parameters, name: str, rows: Tensor, members: int) -> Tensor:
    """Return factors (M, r, B) from a table (M, n, r), by flat row numbers (M·B,) with member m at m·n."""
    table = parameters[f"{name}.weight"]
    factors = table.reshape(-1, table.shape[2]).index_select(0, rows).view(members, -1, table.shape[2])
    return factors.transpose(1, 2).contiguous().add_(parameters[f"{name}.bias"][:, :, None])


def _look_up_backward(gradients: Parameters, name: str, rows: Tensor, slope: Tensor) -> None:
    table = gradients[f"{name}.weight"]
    rank = table.shape[2]
    table.zero_().view(-1, rank).index_add_(0, rows, slope.transpose(1, 2).reshape(-1, rank))
    torch.sum(slope, dim=2, out=gradients[f"{name}.bias"])


def predict(parameters: Parameters, states: Tensor, agent_rows: Tensor, actions: Tensor) -> Tensor:
    """Return predicted (standardized) changes (M, D, B): Σ_l u_l(agent)·v_l(state, d)·w_l(action) (paper, section 4).

    Parameters of another number of outputs than D give as many; so do those of a learned reward or termination.

    Args:
        parameters: of all members.
        states: (M, D, B), standardized.
        agent_rows: (M·B,) flat rows of the agent table, member m's at m·N.
        actions: (M·B,) flat rows of the action table, or (M, A, B) continuous actions.

    """
    members, _, batch = states.shape
    agent_factors = _look_up(parameters, "agent", agent_rows, members)
    action_factors = _action_factors(parameters, actions, members)
    state_factors = encode(parameters, "state", states)[-1].view(members, -1, agent_factors.shape[1], batch)
    return (state_factors * (agent_factors * action_factors)[:, None]).sum(2)


def agent_features(parameters: Parameters, states: Tensor, actions: Tensor) -> Tensor:
    """Return φ = v(state, d)·w(action) (M, D, r, B): the model's changes are Σ_l u_l(agent)·φ_dl.

    Arguments as in `predict`.
    """
    members, size, batch = states.shape
    action_factors = _action_factors(parameters, actions, members)
    state_factors = encode(parameters, "state", states)[-1].view(members, size, -1, batch)
    return state_factors * action_factors[:, None]


def head_inputs(
    parameters: Parameters, states: Tensor, agent_rows: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return h (M, K, B), what v's last layer sees, g = u(agent)·w(action) (M, r, B), and the changes (M, D, B).

    The changes are Σ_lk g_l·h_k·W_dlk, where W is that layer: h is the last hidden units, 1 for the bias and, where v
    has a linear path, the state. Arguments as in `predict`.
    """
    members, _, batch = states.shape
    agent_factors = _look_up(parameters, "agent", agent_rows, members)
    action_factors = _action_factors(parameters, actions, members)
    activations = encode(parameters, "state", states)
    weights = agent_factors * action_factors
    state_factors = activations[-1].view(members, -1, agent_factors.shape[1], batch)
    inputs = [activations[-2], torch.ones_like(activations[-2][:, :1])]
    if "state.skip" in parameters:
        inputs.append(states)
    return torch.cat(inputs, dim=1), weights, (state_factors * weights[:, None]).sum(2)


def _action_factors(parameters: Parameters, actions: Tensor, members: int) -> Tensor:
    """Return w(action) (M, r, B)."""
    if actions.dim() == 1:
        return _look_up(parameters, "action", actions, members)
    return encode(parameters, "action", actions)[-1]


def loss_and_gradients(
    parameters: Parameters,
    gradients: Parameters,
    states: Tensor,
    agent_rows: Tensor,
    actions: Tensor,
    changes: Tensor,
    huber_threshold: float | None = None,
    logistic: bool = False,
) -> Tensor:
    """Fill ``gradients`` with those of the summed member losses; return each member's mean squared error (M,).

    Arguments as in `predict`; ``changes`` (M, O, B) are the targets. With a threshold the loss behind the gradients is
    Huber's, whose slope stops growing there: what hits a wall then does not bend the rest. If ``logistic``, outputs are
    logits of targets 0 and 1, and loss and result are the cross entropy.
    """
    members, size, batch = changes.shape
    agent_factors = _look_up(parameters, "agent", agent_rows, members)
    discrete = actions.dim() == 1
    if discrete:
        action_factors = _look_up(parameters, "action", actions, members)
    else:
        action_activations = encode(parameters, "action", actions)
        action_factors = action_activations[-1]
    state_activations = encode(parameters, "state", states)
    state_factors = state_activations[-1].view(members, size, -1, batch)
    weights = agent_factors * action_factors
    outputs = (state_factors * weights[:, None]).sum(2)
    if logistic:
        losses = binary_cross_entropy_with_logits(outputs, changes, reduction="none").mean(dim=(1, 2))
        error, factor = outputs.sigmoid_().sub_(changes), 1.0
    else:
        error, factor = outputs.sub_(changes), 2.0
        losses = error.square().mean(dim=(1, 2))
        if huber_threshold is not None:
            error.clamp_(-huber_threshold, huber_threshold)

    slope = error.mul_(factor / (size * batch))[:, :, None]
    backpropagate(
        parameters, gradients, "state", state_activations, (slope * weights[:, None]).view(members, -1, batch)
    )
    weight_slope = (slope * state_factors).sum(1)
    _look_up_backward(gradients, "agent", agent_rows, weight_slope * action_factors)
    action_slope = weight_slope * agent_factors
    if discrete:
        _look_up_backward(gradients, "action", actions, action_slope)
    else:
        backpropagate(parameters, gradients, "action", action_activations, action_slope)
    return losses
