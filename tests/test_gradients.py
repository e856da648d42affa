"""The written-out loss and gradients against autograd, and predictions against the paper's sum."""

import numpy as np
import pytest
import torch
from support import DEEP, DEEP_SKIPPING, SKIPPING, SMALL, random_actions, random_ensemble, reference_changes
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, mse_loss, relu

from persim_gym.model.factorization import predict
from persim_gym.training.gradients import loss_and_gradients

CASES = [(task, config) for task in ("CartPole", "HalfCheetah") for config in (SMALL, DEEP, SKIPPING, DEEP_SKIPPING)]


def make_batch(task, config, count=9):
    """Return float64 parameters, states (M, D, B), agents (M, B), actions (M, B) or (M, A, B), and targets."""
    ensemble = random_ensemble(task, config)
    generator, members = torch.Generator().manual_seed(0), config.num_members
    parameters = {name: torch.tensor(array, dtype=torch.float64) for name, array in ensemble.parameters.items()}
    size = ensemble.task.observation_size
    states = torch.randn(members, size, count, generator=generator, dtype=torch.float64)
    agents = torch.randint(ensemble.num_agents, (members, count), generator=generator)
    actions = torch.tensor(random_actions(ensemble.task, np.random.default_rng(0), members, count))
    if not ensemble.task.discrete:
        actions = actions.transpose(1, 2).contiguous()
    changes = torch.randn(members, size, count, generator=generator, dtype=torch.float64)
    return ensemble, parameters, states, agents, actions, changes


def flat_rows(rows, table_size):
    """Member m's rows of a table begin at m·table_size."""
    return (rows + table_size * torch.arange(len(rows))[:, None]).reshape(-1)


def paper_loss(parameters, member, states, agents, actions, changes, threshold=None):
    """One member's mean squared error, or twice Huber's loss, by autograd's own operators."""

    def encode(name, inputs):
        depth = sum(key.startswith(f"{name}.") and key.endswith("weight") for key in parameters)
        skipped = parameters[f"{name}.skip"][member] @ inputs if f"{name}.skip" in parameters else 0.0
        for layer in range(depth):
            inputs = parameters[f"{name}.{layer}.weight"][member] @ inputs + parameters[f"{name}.{layer}.bias"][member]
            inputs = relu(inputs) if layer < depth - 1 else inputs
        return inputs + skipped

    u = (parameters["agent.weight"][member][agents] + parameters["agent.bias"][member]).T
    if actions.dim() == 1:
        w = (parameters["action.weight"][member][actions] + parameters["action.bias"][member]).T
    else:
        w = encode("action", actions)
    v = encode("state", states).reshape(len(states), -1, states.shape[1])
    predicted = torch.einsum("lb,dlb,lb->db", u, v, w)
    return mse_loss(predicted, changes) if threshold is None else 2 * huber_loss(predicted, changes, delta=threshold)


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize(("task", "config"), CASES)
def test_loss_and_gradients_equal_autograds(task, config, threshold):
    """Agents and actions that occur several times in a batch included; of Huber's loss only the gradients."""
    ensemble, parameters, *batch = make_batch(task, config)
    states, agents, actions, changes = batch
    gradients = {name: torch.full_like(tensor, 7.0) for name, tensor in parameters.items()}
    moves = flat_rows(actions, ensemble.task.action_size) if ensemble.task.discrete else actions
    rows = flat_rows(agents, ensemble.num_agents)
    losses = loss_and_gradients(parameters, gradients, states, rows, moves, changes, huber_threshold=threshold)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    columns = [[column[member] for column in batch] for member in range(config.num_members)]
    squared = [paper_loss(leaves, member, *column) for member, column in enumerate(columns)]
    torch.testing.assert_close(losses, torch.stack(squared).detach())
    sum(paper_loss(leaves, member, *column, threshold) for member, column in enumerate(columns)).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(gradients[name], leaf.grad, msg=name)
        assert leaf.grad.abs().max() > 0, name


@pytest.mark.parametrize(("task", "config"), CASES)
def test_predict_is_the_papers_sum(task, config):
    """Each member with its own row of agents and actions."""
    ensemble, parameters, states, agents, actions, _ = make_batch(task, config, count=4)
    moves = flat_rows(actions, ensemble.task.action_size) if ensemble.task.discrete else actions
    predicted = predict(parameters, states, flat_rows(agents, ensemble.num_agents), moves)
    normalizer = ensemble.normalizer
    for member in range(config.num_members):
        for column in range(4):
            state = states[member, :, column].numpy() * normalizer.state_scale + normalizer.state_mean
            action = actions[member][..., column].numpy()
            change = reference_changes(ensemble, int(agents[member, column]), [state], [action])[member, 0]
            standardized = (change - normalizer.change_mean) / normalizer.change_scale
            torch.testing.assert_close(predicted[member, :, column], torch.tensor(standardized))


@pytest.mark.parametrize(("task", "config"), CASES)
def test_the_gradients_of_the_cross_entropy_are_autograds(task, config):
    ensemble, parameters, states, agents, actions, changes = make_batch(task, config)
    gradients = {name: torch.full_like(tensor, 7.0) for name, tensor in parameters.items()}
    moves = flat_rows(actions, ensemble.task.action_size) if ensemble.task.discrete else actions
    batch = states, flat_rows(agents, ensemble.num_agents), moves
    wanted = (changes > changes.mean()).float()
    losses = loss_and_gradients(parameters, gradients, *batch, wanted, logistic=True)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    expected = binary_cross_entropy_with_logits(predict(leaves, *batch), wanted, reduction="none").mean(dim=(1, 2))
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach())
    for name, leaf in leaves.items():
        torch.testing.assert_close(gradients[name], leaf.grad, rtol=1e-4, atol=1e-6, msg=name)
