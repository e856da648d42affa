"""PerSim without its factorization: one network is fed [state, action, agent embedding] (an ablation).

Everything else is PerSim's: as many members, embeddings as long as its factors, hidden layers as wide as its state
encoder's, the same batches, epochs, learning rate, decay of the weights and loss. Settings without a counterpart here
(``action_hidden``, ``linear_skip``, ``num_candidates``, ``refit_factors``, ``refit_rounds``) are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.arguments import checked_seed
from persim_gym.baselines.context import ContextModel
from persim_gym.baselines.context_network import ContextDynamics
from persim_gym.baselines.layers import Features, Scaling, initial_layers, mlp, one_hot
from persim_gym.config import PerSimConfig, get_config
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import matmul_precision, on_device, resolve_device, with_torch_defaults
from persim_gym.model.action_scaling import folded, scaled
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.parameters import layer_shapes
from persim_gym.simulators.networks.interfaces import bounds_on
from persim_gym.tasks import Task
from persim_gym.threads import limited_threads
from persim_gym.training.checkpoint import Checkpoint, network_state, restore_network
from persim_gym.training.epochs import run_epochs
from persim_gym.training.graphs import RecordedStep
from persim_gym.training.preparation import known_of_agents, normalizer_of, prepared, warn_of_outcomes
from persim_gym.types import IntArray


@dataclass(frozen=True, eq=False, repr=False)
class JointModel(ContextModel):
    """M networks and an embedding of every agent in each. Made by `fit_joint` or `JointModel.load`."""

    kind = "joint"
    config_type = PerSimConfig

    config: PerSimConfig = field(default_factory=PerSimConfig)
    normalizer: Normalizer = field(default_factory=lambda: Normalizer.identity(0))

    @property
    def num_members(self) -> int:
        """M."""
        return self.config.num_members

    @property
    def clips_states(self) -> bool:
        return self.config.clip_states

    def dynamics(self, device: torch.device) -> ContextDynamics:
        normalizer, size = self.normalizer, self.task.action_size
        plain = None if self.task.discrete else Scaling(torch.zeros(size, 1).to(device), torch.ones(size, 1).to(device))
        return ContextDynamics(
            parameters=on_device(self.parameters, device),
            features=Features(),
            inputs=_scaling(normalizer.state_mean, normalizer.state_scale, device),
            targets=_scaling(normalizer.change_mean, normalizer.change_scale, device),
            actions=plain,
            action_size=size,
            activation=torch.relu_,
            state_bounds=bounds_on(device, self.state_bounds),
        )

    def agent_contexts(self, agents: IntArray, device: torch.device) -> Tensor:
        return torch.tensor(self.parameters["agent.weight"][:, agents], device=device).transpose(1, 2)

    @classmethod
    def shapes(cls, config: PerSimConfig, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        layers = layer_shapes("forward", config.num_members, _sizes(config, task))
        shapes = {key: shape for key, (shape, _) in layers.items()}
        return {**shapes, "agent.weight": (config.num_members, num_agents, config.rank)}

    @classmethod
    def own_shapes(cls, config: PerSimConfig, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        return {f"normalizer.{field.name}": (task.observation_size,) for field in fields(Normalizer)}

    def own_arrays(self) -> dict[str, np.ndarray]:
        return {f"normalizer.{field.name}": getattr(self.normalizer, field.name) for field in fields(Normalizer)}

    @classmethod
    def own_fields(cls, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        parts = {field.name: np.array(arrays[f"normalizer.{field.name}"]) for field in fields(Normalizer)}
        return {"normalizer": Normalizer(**parts)}


@with_torch_defaults
def fit_joint(
    trajectories: Trajectories,
    *,
    task: str | Task | None = None,
    config: str | PerSimConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> JointModel:
    """Train the joint network on all transitions of a log.

    Args:
        trajectories: the log.
        task: the task that the log was recorded in; by default the one named in it.
        config: PerSim's settings or their name, by default the task's own; the joint network takes what it has.
        seed: of the initial weights and the batches.
        device: "auto", "cpu", "cuda", … .
        checkpoint: a file name; unfinished training is kept beside it and the same call continues where it stopped.
        progress: whether to show a bar.
        **changes: to the configuration, such as ``rank=8``.

    Raises:
        InvalidDataError: the log does not fit the task, or lacks some of its covariates.
        InvalidArgumentError: a setting out of its range.
        UnknownNameError: there is no such task, configuration or setting.
        TrainingDivergedError: the loss is no longer finite.
        FileFormatError: the checkpoint is damaged, or of another run.

    """
    trajectories, task = prepared(trajectories, task)
    warn_of_outcomes(task, "the joint network")
    settings, where = get_config(config, task.name).with_changes(**changes), resolve_device(device)
    seed = checked_seed(seed)
    saved = Checkpoint.of(checkpoint, trajectories, task, seed=seed, device=where, config=settings.to_json())
    normalizer = normalizer_of(trajectories, settings)
    trainer = _Trainer(trajectories, task, settings, normalizer, seed, where)
    with matmul_precision(settings.matmul_precision), limited_threads(settings.state_hidden):
        run_epochs(
            trainer,
            trainer.run_epoch,
            saved,
            epochs=settings.epochs,
            title="joint network",
            progress=progress,
            advice="lower the learning rate",
        )
    provenance: dict[str, Any] = {
        **trajectories.source,
        "seed": seed,
        "training_loss": trainer.loss,
        "wall_seconds": round(saved.seconds, 1),
    }
    parameters = {name: tensor.detach().cpu().numpy().copy() for name, tensor in trainer.parameters.items()}
    if not task.discrete:
        moves = slice(task.observation_size, task.observation_size + task.action_size)
        weight, bias = parameters["forward.0.weight"], parameters["forward.0.bias"]
        weight[:, :, moves], bias[:] = folded(trajectories.actions, weight[:, :, moves], bias)
    model = JointModel(
        task=task,
        parameters=parameters,
        **known_of_agents(trajectories),
        provenance=provenance,
        config=settings,
        normalizer=normalizer,
    )
    saved.remove()
    return model


class _Trainer:
    """The parameters, the optimizer and the random generator of one training run."""

    def __init__(
        self,
        log: Trajectories,
        task: Task,
        config: PerSimConfig,
        normalizer: Normalizer,
        seed: int,
        device: torch.device,
    ) -> None:
        self._config, self._device = config, device
        self._generator = torch.Generator(device).manual_seed(seed)
        self.parameters = _initial_parameters(log, task, config, self._generator, device)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=torch.tensor(config.learning_rate, device=device),  # a tensor, so that recorded steps see it fall
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self._inputs, self._targets = _columns(log, task, normalizer, device)
        self._agents = torch.tensor(np.asarray(log.agents, np.int64), device=device)
        self._members = torch.arange(config.num_members, device=device)[:, None]
        self._total = torch.zeros((), device=device)
        self._step = RecordedStep(self._descend)
        self.epoch, self.loss = 0, float("nan")

    def run_epoch(self) -> float:
        """Visit every transition once with every member; return the members' mean loss."""
        config, count = self._config, len(self._inputs)
        self._optimizer.param_groups[0]["lr"].fill_(config.learning_rate_in(self.epoch))
        self._total.zero_()
        drawn = torch.rand(config.num_members, count, generator=self._generator, device=self._device)
        for rows in torch.argsort(drawn, dim=1).split(config.batch_size_for(count), dim=1):
            self._step(rows)
        self.epoch += 1
        self.loss = float(self._total) / config.num_members
        return self.loss

    def state(self) -> dict[str, Tensor]:
        """Return, with `progress`, everything that the epochs to come depend on."""
        return network_state(self.parameters, self._optimizer, self._generator)

    def progress(self) -> dict[str, Any]:
        """Return how far the run has come."""
        return {"epoch": self.epoch, "loss": self.loss}

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state` and `progress` returned."""
        restore_network(self.parameters, self._optimizer, self._generator, tensors)
        self.epoch, self.loss = int(progress["epoch"]), float(progress["loss"])

    def _descend(self, rows: Tensor) -> None:
        """Take a step with a batch of every member (M, B), and add the loss of its transitions up."""
        embedded = self.parameters["agent.weight"][self._members, self._agents[rows]]
        fed = torch.cat([self._inputs[rows], embedded], dim=2).transpose(1, 2)
        error = mlp(self.parameters, "forward", fed, torch.relu) - self._targets[rows].transpose(1, 2)
        loss = _loss(error, self._config.huber_threshold)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._total.add_(loss.detach(), alpha=rows.shape[1] / len(self._inputs))


def _loss(error: Tensor, huber_threshold: float | None) -> Tensor:
    """Return the members' summed mean squared errors; with a threshold, twice Huber's loss, as PerSim's training."""
    squared = error.square()
    if huber_threshold is not None:
        size = error.abs()
        squared = torch.where(size <= huber_threshold, squared, huber_threshold * (2 * size - huber_threshold))
    return squared.mean(dim=(1, 2)).sum()


def _sizes(config: PerSimConfig, task: Task) -> tuple[int, ...]:
    """Return the numbers of inputs, hidden units and outputs."""
    return (task.observation_size + task.action_size + config.rank, *config.state_hidden, task.observation_size)


def _initial_parameters(
    log: Trajectories, task: Task, config: PerSimConfig, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    parameters = initial_layers("forward", config.num_members, _sizes(config, task), generator, device)
    embedding = torch.empty(config.num_members, log.num_agents, config.rank, device=device)
    parameters["agent.weight"] = embedding.normal_(generator=generator)  # torch's own of an embedding
    return {name: tensor.requires_grad_() for name, tensor in parameters.items()}


def _columns(log: Trajectories, task: Task, normalizer: Normalizer, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return inputs (T, D + A) without the embedding, and targets (T, D)."""
    columns = normalizer.standardized(log.observations, log.next_observations)
    states, targets = (torch.tensor(column, dtype=torch.float32, device=device) for column in columns)
    actions = torch.tensor(scaled(log.actions), device=device)
    moves = one_hot(actions, task.action_size).T if task.discrete else actions
    return torch.cat([states, moves], dim=1), targets


def _scaling(mean: Any, scale: Any, device: torch.device) -> Scaling:
    return Scaling(*(torch.tensor(column, dtype=torch.float32, device=device)[:, None] for column in (mean, scale)))
