"""Loss and gradients of all members at once, written out.

An optimizer step of a small network so costs some thirty calls instead of autograd's hundred. `tests/test_gradients.py`
holds this against autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from persim_gym.model.factorization import Parameters, forward, skip_of


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

    Arguments as in `persim_gym.model.factorization.predict`; ``changes`` (M, O, B) are the targets. With a threshold
    the loss behind the gradients is Huber's, whose slope stops growing there: what hits a wall then does not bend the
    rest. If ``logistic``, outputs are logits of targets 0 and 1, and loss and result are the cross entropy.
    """
    members, _, batch = changes.shape
    passed = forward(parameters, states, agent_rows, actions)
    losses, slope = _losses_and_slope(passed.outputs, changes, huber_threshold, logistic)
    slope = slope[:, :, None]
    state_slope = (slope * passed.weights[:, None]).view(members, -1, batch)
    backpropagate(parameters, gradients, "state", passed.state_layers, state_slope)
    weight_slope = (slope * passed.state_factors).sum(1)
    _look_up_backward(gradients, "agent", agent_rows, weight_slope * passed.action_factors)
    action_slope = weight_slope * passed.agent_factors
    if passed.action_layers:
        backpropagate(parameters, gradients, "action", passed.action_layers, action_slope)
    else:
        _look_up_backward(gradients, "action", actions, action_slope)
    return losses


def _losses_and_slope(
    outputs: Tensor, targets: Tensor, huber_threshold: float | None, logistic: bool
) -> tuple[Tensor, Tensor]:
    """Return the members' losses (M,) and the slope (M, O, B) of their sum in the outputs, in the outputs' memory."""
    if logistic:
        losses = binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=(1, 2))
        error, factor = outputs.sigmoid_().sub_(targets), 1.0
    else:
        error, factor = outputs.sub_(targets), 2.0
        losses = error.square().mean(dim=(1, 2))
        if huber_threshold is not None:
            error.clamp_(-huber_threshold, huber_threshold)
    return losses, error.mul_(factor / targets[0].numel())


def backpropagate(
    parameters: Parameters, gradients: Parameters, name: str, activations: list[Tensor], slope: Tensor
) -> None:
    """Fill the gradients of an encoder's layers from the slope (M, O, B) of the loss in its outputs, and `encode`."""
    skip = skip_of(gradients, name)
    if skip is not None:
        torch.bmm(slope, activations[0].transpose(1, 2), out=skip)
    for index in reversed(range(len(activations) - 1)):
        inputs = activations[index]
        torch.bmm(slope, inputs.transpose(1, 2), out=gradients[f"{name}.{index}.weight"])
        torch.sum(slope, dim=2, keepdim=True, out=gradients[f"{name}.{index}.bias"])
        if index > 0:
            slope = torch.bmm(parameters[f"{name}.{index}.weight"].transpose(1, 2), slope)
            torch.ops.aten.threshold_backward.grad_input(slope, inputs, 0.0, grad_input=slope)  # through the ReLU


def _look_up_backward(gradients: Parameters, name: str, rows: Tensor, slope: Tensor) -> None:
    """Fill the gradients of a table and its bias from the slope (M, r, B) of the loss in what `look_up` returned."""
    table = gradients[f"{name}.weight"]
    rank = table.shape[2]
    table.zero_().view(-1, rank).index_add_(0, rows, slope.transpose(1, 2).reshape(-1, rank))
    torch.sum(slope, dim=2, out=gradients[f"{name}.bias"])
