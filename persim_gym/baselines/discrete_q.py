"""The gradient steps of d3rlpy's discrete BCQ and CQL, all networks at once.

d3rlpy passes a batch through each network in turn, for every term of the loss anew, and a row as often as it was drawn.
Here a step of CQL takes four passes instead of eight, over the distinct rows alone, weighted by how often they were
drawn: the small logs of single agents fit into a batch several times over. The networks are d3rlpy's own, which get
the weights back; `tests/test_discrete_q.py` holds losses and gradients against d3rlpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss, one_hot

from persim_gym.data.trajectories import Trajectories
from persim_gym.model.factorization import encode
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.training.checkpoint import optimizer_state, restore_optimizer
from persim_gym.training.gradients import backpropagate
from persim_gym.types import IntArray

_NAME = "state"
_FOLLOWED = {
    "DiscreteCQLConfig": {"alpha", "n_critics"},
    "DiscreteBCQConfig": {"action_flexibility", "beta"},
}
"""Settings of each algorithm that these steps follow, besides `_COMMON`."""
_COMMON = {"batch_size", "gamma", "learning_rate", "target_update_interval"}
_NORMALIZER_FLOOR = 1e-5


def follows(config: Any) -> bool:
    """Whether these steps do what d3rlpy's would: everything but the settings they follow is as d3rlpy has it."""
    name = type(config).__name__
    if name not in _FOLLOWED:
        return False
    usual = type(config)()
    if name == "DiscreteBCQConfig":
        usual.share_encoder = False
    followed = _COMMON | _FOLLOWED[name]
    return all(
        getattr(config, field.name) == getattr(usual, field.name)
        for field in fields(config)
        if field.name not in followed
    )


class DiscreteSteps:
    """Gradient steps of one algorithm on one log. Afterwards d3rlpy's object can predict, but not go on training."""

    def __init__(self, algorithm: Any, log: Trajectories) -> None:
        """Stack the weights.

        Args:
            algorithm: d3rlpy's, with its networks built; of a configuration that these steps follow.
            log: to learn from.

        """
        self._config = algorithm.config
        modules = algorithm.impl.modules
        imitators = [modules.imitator] if hasattr(modules, "imitator") else []
        self._networks = [*modules.q_funcs, *imitators]
        self.num_critics = len(modules.q_funcs)
        self.parameters = _stacked(self._networks)
        self.gradients = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        self._targets = {name: tensor[: self.num_critics].clone() for name, tensor in self.parameters.items()}
        for name, tensor in self.parameters.items():
            tensor.grad = self.gradients[name]
        self._optimizer = torch.optim.Adam(self.parameters.values(), self._config.learning_rate, fused=True)
        self._steps = 0
        self._loss: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = (
            self._bcq_loss if imitators else self._cql_loss
        )
        self._columns = _Columns.of(log, self.parameters[f"{_NAME}.0.weight"].device)
        # What the target networks say of each row's next state, asked once between two replacements.
        self._target_values = torch.empty(
            self.num_critics, self.parameters[f"{_NAME}.2.bias"].shape[1], log.num_transitions,
            device=self._columns.actions.device,
        )  # fmt: skip
        self._asked = np.zeros(log.num_transitions, bool)

    @torch.inference_mode()
    def update(self, rows: IntArray) -> float:
        """Take one step on a batch of the log's rows (B,), some of which may be the same; return the loss."""
        distinct, counts = np.unique(rows, return_counts=True)
        batch = self._columns.select(distinct)
        weight = torch.as_tensor(counts / len(rows), dtype=torch.float32, device=batch.observations.device)
        future = self._values_after(distinct, batch.next_observations)
        target = batch.rewards + self._config.gamma * future * (1 - batch.terminals)
        networks = len(self._networks)
        activations = encode(self.parameters, _NAME, batch.observations.expand(networks, -1, -1))
        loss, slope = self._loss(activations[-1], batch.actions, target, weight)
        backpropagate(self.parameters, self.gradients, _NAME, activations, slope)
        self._optimizer.step()
        if self._steps % self._config.target_update_interval == 0:
            for name, tensor in self._targets.items():
                tensor.copy_(self.parameters[name][: self.num_critics])
            self._asked[:] = False
        self._steps += 1
        return float(loss)

    @torch.inference_mode()
    def finish(self) -> None:
        """Give d3rlpy's networks the weights."""
        for index, network in enumerate(self._networks):
            for layer, linear in enumerate(_linears(network)):
                linear.weight.copy_(self.parameters[f"{_NAME}.{layer}.weight"][index])
                linear.bias.copy_(self.parameters[f"{_NAME}.{layer}.bias"][index, :, 0])

    def state(self) -> dict[str, Tensor]:
        """Return everything that the steps to come depend on."""
        kept = with_prefix("networks", self.parameters) | with_prefix("targets", self._targets)
        kept |= with_prefix("adam", optimizer_state(self._optimizer))
        values, asked = self._target_values, torch.as_tensor(self._asked)
        return {**kept, "target_values": values, "asked": asked, "steps": torch.tensor(self._steps)}

    @torch.inference_mode()
    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for kept, name in ((self.parameters, "networks"), (self._targets, "targets")):
            for key, tensor in without_prefix(name, tensors).items():
                kept[key].copy_(tensor)
        restore_optimizer(self._optimizer, without_prefix("adam", tensors))
        self._target_values.copy_(tensors["target_values"])
        self._asked[:] = tensors["asked"].numpy()
        self._steps = int(tensors["steps"])

    def _values_after(self, rows: IntArray, next_observations: Tensor) -> Tensor:
        """Return (B,) what the target networks think of the action that the networks choose after rows (B,)."""
        new = ~self._asked[rows]
        if new.any():
            states = next_observations[:, torch.as_tensor(new, device=next_observations.device)]
            index = torch.as_tensor(rows[new], device=states.device)
            values = encode(self._targets, _NAME, states.expand(self.num_critics, -1, -1))[-1]
            self._target_values.index_copy_(2, index, values)
            self._asked[rows] = True
        chosen = self._greedy(encode(self.parameters, _NAME, next_observations.expand(len(self._networks), -1, -1))[-1])
        values = self._target_values.index_select(2, torch.as_tensor(rows, device=chosen.device))
        return values.gather(1, chosen.expand(self.num_critics, 1, -1))[:, 0].amin(0)

    def _greedy(self, outputs: Tensor) -> Tensor:
        """Return the chosen actions (B,) for the outputs (Q, A, B) of all networks."""
        values = outputs[: self.num_critics].mean(0)
        if self.num_critics == len(self._networks):
            return values.argmax(0)
        log_likelihood = outputs[-1].log_softmax(0)
        allowed = log_likelihood - log_likelihood.amax(0) > float(np.log(self._config.action_flexibility))
        # As d3rlpy: an action that is not allowed is worth nothing, the worst of all others a little.
        return ((values - values.amin(0) + _NORMALIZER_FLOOR) * allowed).argmax(0)

    def _cql_loss(self, outputs: Tensor, actions: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its slope: that of double Q-learning, and logsumexp Q − Q(action taken) of the mean Q."""
        taken = one_hot(actions, outputs.shape[1]).T.to(outputs.dtype)
        loss, slope = _temporal_difference(outputs, taken, target, weight)
        mean = outputs.mean(0)
        conservative = ((mean.logsumexp(0) - (mean * taken).sum(0)) * weight).sum()
        alpha = self._config.alpha
        slope += alpha / self.num_critics * (mean.softmax(0) - taken) * weight
        return loss + alpha * conservative, slope

    def _bcq_loss(self, outputs: Tensor, actions: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its slope: that of double Q-learning, and the imitator's log likelihood and penalty."""
        taken = one_hot(actions, outputs.shape[1]).T.to(outputs.dtype)
        loss, slope = _temporal_difference(outputs[:-1], taken, target, weight)
        log_likelihood, beta = outputs[-1].log_softmax(0), self._config.beta
        imitation = beta * log_likelihood.square().mean(0) - (log_likelihood * taken).sum(0)
        pull = (2 * beta / len(taken) * log_likelihood - taken) * weight
        pull -= log_likelihood.exp() * pull.sum(0)
        return loss + (imitation * weight).sum(), torch.cat([slope, pull[None]])


def _temporal_difference(values: Tensor, taken: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return Huber's loss, summed over the critics, and its slope in their values (Q, A, B).

    Args:
        values: (Q, A, B).
        taken: (A, B), 1 at the action taken, else 0.
        target: (B,).
        weight: (B,), which sum to 1.

    """
    error = (values * taken).sum(1) - target
    loss = (huber_loss(error, torch.zeros_like(error), reduction="none") * weight).sum()
    return loss, (error.clamp(-1, 1) * weight)[:, None] * taken


@dataclass(frozen=True)
class _Columns:
    """Rows of a log on the device."""

    observations: Tensor
    """(D, T)."""
    next_observations: Tensor
    """(D, T)."""
    actions: Tensor
    """(T,) int64."""
    rewards: Tensor
    """(T,)."""
    terminals: Tensor
    """(T,): 1 or 0."""

    @classmethod
    def of(cls, log: Trajectories, device: torch.device) -> _Columns:
        states = (np.asarray(states, np.float32).T.copy() for states in (log.observations, log.next_observations))
        numbers = (np.array(column, np.float32) for column in (log.rewards, log.terminated))
        arrays = (*states, np.array(log.actions, np.int64), *numbers)
        return cls(*(torch.as_tensor(array, device=device) for array in arrays))

    def select(self, rows: IntArray) -> _Columns:
        index = torch.as_tensor(rows, device=self.actions.device)
        return _Columns(*(getattr(self, field.name).index_select(-1, index) for field in fields(self)))


def _linears(network: Any) -> list[torch.nn.Linear]:
    """Return the encoder's layers and the head."""
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)]


def _stacked(networks: list[Any]) -> dict[str, Tensor]:
    """Return the weights of networks of one shape under `persim_gym.model.factorization`'s names, (Q, …)."""
    layers = [_linears(network) for network in networks]
    parameters = {}
    for index, same in enumerate(zip(*layers, strict=True)):
        parameters[f"{_NAME}.{index}.weight"] = torch.stack([linear.weight.detach() for linear in same])
        parameters[f"{_NAME}.{index}.bias"] = torch.stack([linear.bias.detach()[:, None] for linear in same])
    return parameters
