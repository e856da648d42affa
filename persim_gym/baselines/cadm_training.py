"""`fit_cadm`: the training of CaDM on a log (offline, as the PerSim paper's appendix D adapts it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.arguments import checked_seed
from persim_gym.baselines.cadm import CaDM, encode, parameter_shapes
from persim_gym.baselines.cadm_config import CaDMConfig, check_coordinates, get_cadm_config
from persim_gym.baselines.cadm_log import Batch, StandardizedLog
from persim_gym.baselines.context_network import soft_clamp
from persim_gym.baselines.layers import mlp
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import matmul_precision, products_dtype, resolve_device, with_torch_defaults
from persim_gym.errors import TrainingDivergedError
from persim_gym.tasks import Task
from persim_gym.terminal import ProgressBar
from persim_gym.training.checkpoint import Checkpoint, network_state, restore_network
from persim_gym.training.graphs import RecordedStep
from persim_gym.training.preparation import known_of_agents, prepared, warn_of_outcomes
from persim_gym.types import IntArray

_PERSISTENCE = 0.99
_ENCODER_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5)
_MODEL_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)


@with_torch_defaults
def fit_cadm(
    trajectories: Trajectories,
    *,
    task: str | Task | None = None,
    config: str | CaDMConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> CaDM:
    """Train CaDM on all trajectories of a log.

    The log is replayed as the paper's adaptation does: each of 20 iterations adds the trajectories of the next
    twentieth of the agents, in random order, standardizes anew and goes on training. What the paper leaves open: every
    iteration gets the same number of epochs, at most 200 and at least one, and so many that all of them together make
    no more gradient steps than the configuration allows; an iteration ends early when a slow average of its validation
    loss grows. That average starts at 1.5 times the first loss, at two thirds of a negative one, and moves by a
    hundredth of the way in each epoch, so that a single epoch whose loss is above it ends an iteration: the steps
    taken, ``provenance["gradient_steps"]``, may be a quarter of the limit.

    Args:
        trajectories: the log.
        task: the task that the log was recorded in; by default the one named in it.
        config: "Vanilla CaDM", the default, or "PE-TS CaDM", with the task's own features; "Vanilla CaDM+" or "PE-TS
            CaDM+", with changes of state standardized in the history, too; or settings as they are.
        seed: of the initial weights, the order of agents and the batches.
        device: "auto", "cpu", "cuda", … .
        checkpoint: a file name; unfinished training is kept beside it after every iteration, and the same call
            continues where it stopped.
        progress: whether to show a bar.
        **changes: to the configuration.

    Raises:
        InvalidDataError: the log does not fit the task, or lacks some of its covariates.
        InvalidArgumentError: a setting out of its range.
        UnknownNameError: there is no such task, configuration or setting.
        TrainingDivergedError: the loss is no longer finite.
        FileFormatError: the checkpoint is damaged, or of another run.

    """
    trajectories, task = prepared(trajectories, task)
    warn_of_outcomes(task, "CaDM")
    settings = get_cadm_config(config, task.name).with_changes(**changes)
    check_coordinates(settings, task)
    where, seed = resolve_device(device), checked_seed(seed)
    saved = Checkpoint.of(checkpoint, trajectories, task, seed=seed, device=where, config=settings.to_json())
    parts = replayed_parts(trajectories, settings, seed)
    epochs = epochs_per_iteration(parts, settings)
    trainer = CaDMTrainer(trajectories, task, settings, seed, where)
    saved.resume(trainer)
    precision, done = matmul_precision(settings.matmul_precision), trainer.iterations * epochs
    with precision, ProgressBar("CaDM", len(parts) * epochs, progress, done=done) as bar:
        for kept, held_out in parts[trainer.iterations :]:
            trainer.run_iteration(kept, held_out, epochs, bar)
            bar.complete(trainer.iterations * epochs)
            if trainer.iterations < len(parts):
                saved.write(trainer)
    model = trainer.model(
        {
            **trajectories.source,
            "seed": seed,
            "gradient_steps": trainer.steps,
            "wall_seconds": round(saved.seconds, 1),
        }
    )
    saved.remove()
    return model


def replayed_parts(log: Trajectories, config: CaDMConfig, seed: int) -> list[tuple[IntArray, IntArray]]:
    """Return for each iteration the transitions seen so far: those to train on and those held out."""
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(log.num_agents)
    by_agent = np.split(np.argsort(log.agents, kind="stable"), np.cumsum(np.bincount(log.agents))[:-1])
    kept, held_out, parts = np.empty(0, np.int64), np.empty(0, np.int64), []
    for agents in np.array_split(order, min(config.iterations, log.num_agents)):
        rows = rng.permutation(np.concatenate([by_agent[agent] for agent in agents]))
        count = min(int(config.validation_fraction * len(rows)), config.max_validation - len(held_out))
        held_out, kept = np.append(held_out, rows[:count]), np.append(kept, rows[count:])
        parts.append((kept, held_out))
    return parts


def epochs_per_iteration(parts: list[tuple[IntArray, IntArray]], config: CaDMConfig) -> int:
    """Return how many epochs each iteration may take."""
    steps = sum(-(-len(kept) // config.batch_size) for kept, _ in parts)
    return max(1, min(config.max_epochs, config.max_gradient_steps // steps))


def losses(
    parameters: dict[str, Tensor], config: CaDMConfig, batch: Batch, hidden_dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return each member's loss (M,), without the penalty of the weights, for its own batch.

    Every future transition is a one-step sample of its own, paired with the context of the history before it; a
    transition after the end of its episode weighs nothing.
    """
    contexts = encode(parameters, batch.histories, hidden_dtype)
    repeats, activation = batch.targets.shape[2] // contexts.shape[2], torch.nn.functional.silu
    contexts = contexts.repeat_interleave(repeats, dim=2)
    outputs, backward = (
        mlp(parameters, name, torch.cat([inputs, batch.actions, contexts], dim=1), activation, hidden_dtype)
        for name, inputs in (("forward", batch.inputs), ("backward", batch.next_inputs))
    )
    # A small batch may have no transition before the end of its episodes.
    total = batch.weight.sum(dim=(1, 2)).clamp(min=1) * batch.targets.shape[1]
    if config.probabilistic:
        mean, log_variance = outputs.chunk(2, dim=1)
        low, high = parameters["min_log_variance"], parameters["max_log_variance"]
        log_variance = soft_clamp(log_variance, low, high)
        forward = (mean - batch.targets).square() * (-log_variance).exp() + log_variance
        bounds = config.variance_weight * (high - low).sum()
    else:
        forward, bounds = (outputs - batch.targets).square(), 0.0
    error = forward + config.backward_weight * (backward - batch.backward_targets).square()
    # The bounds are shared, so their term counts once, not once a member.
    return (error * batch.weight).sum(dim=(1, 2)) / total + bounds / len(contexts)


def weight_decay(name: str) -> float:
    """Return the coefficient of ½‖W‖² of a layer's weight; zero for what is not penalized."""
    network, _, rest = name.partition(".")
    if not rest.endswith("weight"):
        return 0.0
    decays = _ENCODER_DECAY if network == "encoder" else _MODEL_DECAY
    return decays[min(int(rest.partition(".")[0]), len(decays) - 1)]


class CaDMTrainer:
    """The parameters, the optimizer and the random generators of one training run."""

    def __init__(self, log: Trajectories, task: Task, config: CaDMConfig, seed: int, device: torch.device) -> None:
        self._log, self._task, self._config, self._device = log, task, config, device
        self._hidden_dtype = products_dtype(config.matmul_precision, device)
        self._generator = torch.Generator(device).manual_seed(seed)
        self.parameters = self._initial_parameters()
        groups: dict[float, list[Tensor]] = {}
        for name, tensor in self.parameters.items():
            groups.setdefault(weight_decay(name), []).append(tensor.requires_grad_())
        # Adam's weight decay adds decay·W to the gradient, which is the gradient of decay·½‖W‖².
        self.optimizer = torch.optim.Adam(
            [{"params": tensors, "weight_decay": decay} for decay, tensors in groups.items()],
            lr=config.learning_rate,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.steps = self.iterations = 0
        self._total = torch.zeros((), device=device)
        self._data: StandardizedLog | None = None
        """Of the present iteration."""

    def run_iteration(self, kept: IntArray, held_out: IntArray, epochs: int, bar: ProgressBar) -> None:
        """Standardize over the transitions seen so far, then train until the validation loss grows."""
        config = self._config
        seen = torch.as_tensor(np.append(kept, held_out), device=self._device)
        self._data = StandardizedLog.of(self._log, self._task, config, seen, self._device)
        rows = torch.as_tensor(kept, device=self._device).expand(config.num_members, -1)
        if config.probabilistic:
            drawn = torch.randint(len(kept), rows.shape, generator=self._generator, device=self._device)
            rows = rows.gather(1, drawn)
        average: float | None = None
        step = RecordedStep(self._descend)
        for _ in range(epochs):
            loss = self.run_epoch(rows, step)
            if not np.isfinite(loss):
                raise TrainingDivergedError(
                    f"the loss is {loss} after {self.steps} gradient steps; lower the learning rate "
                    f"(learning_rate={config.learning_rate})"
                )
            bar.advance(f"loss {loss:.3e}")
            if len(held_out) == 0:
                continue
            validation = self.validation_loss(torch.as_tensor(held_out, device=self._device))
            before = average
            if average is None:
                average = validation * 1.5 if validation > 0 else validation / 1.5
            average = _PERSISTENCE * average + (1 - _PERSISTENCE) * validation
            if before is not None and average > before:
                break
        self.iterations += 1

    def run_epoch(self, rows: Tensor, step: RecordedStep) -> float:
        """Visit every transition of rows (M, n) once; return the mean loss of a member."""
        config = self._config
        shuffled = torch.argsort(torch.rand(rows.shape, generator=self._generator, device=self._device), dim=1)
        self._total.zero_()
        for part in rows.gather(1, shuffled).split(config.batch_size, dim=1):
            offsets = torch.randperm(config.future_steps, generator=self._generator, device=self._device)
            step(part, offsets[: config.futures_per_context])
            self.steps += 1
        return float(self._total) / rows.shape[1] / config.num_members

    @torch.no_grad()
    def validation_loss(self, rows: Tensor) -> float:
        """Return the members' mean loss on some transitions (n,)."""
        config = self._config
        offsets = torch.arange(0, config.future_steps, device=self._device)
        offsets = offsets[:: max(1, config.future_steps // config.futures_per_context)]
        total = 0.0
        for part in rows.split(config.batch_size):
            batch = self._data.batch(part.expand(config.num_members, -1), offsets)
            total += float(losses(self.parameters, config, batch, self._hidden_dtype).mean()) * len(part) / len(rows)
        return total

    def state(self) -> dict[str, Tensor]:
        """Return, with `progress`, everything that the iterations to come depend on."""
        return network_state(self.parameters, self.optimizer, self._generator)

    def progress(self) -> dict[str, Any]:
        """Return how far the run has come."""
        return {"steps": self.steps, "iterations": self.iterations}

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state` and `progress` returned."""
        restore_network(self.parameters, self.optimizer, self._generator, tensors)
        self.steps, self.iterations = int(progress["steps"]), int(progress["iterations"])

    def model(self, provenance: dict[str, Any]) -> CaDM:
        """Return what was learned."""
        data, log, config = self._data, self._log, self._config
        arrays = {name: tensor.detach() for name, tensor in self.parameters.items()}
        arrays |= {"input_mean": data.inputs.mean, "input_scale": data.inputs.scale}
        arrays |= {"target_mean": data.targets.mean, "target_scale": data.targets.scale}
        if data.history_scale is not None:
            arrays["history_scale"] = data.history_scale
        if data.actions is not None:
            arrays |= {"action_mean": data.actions.mean, "action_scale": data.actions.scale}
        last = log.episode_ends[[np.flatnonzero(log.episode_agents == agent)[-1] for agent in range(log.num_agents)]]
        histories = data.histories(torch.as_tensor(last - 1, device=self._device)[None], after=1)[0].T
        return CaDM(
            task=self._task,
            parameters={name: tensor.cpu().numpy().copy() for name, tensor in arrays.items()},
            **known_of_agents(log),
            provenance=provenance,
            config=config,
            histories=histories.cpu().numpy().copy(),
        )

    def _initial_parameters(self) -> dict[str, Tensor]:
        """Return truncated normal weights of deviation 1/(2·√fan-in), zero biases, log variances from −10 to 0.5."""
        parameters = {}
        for name, shape in parameter_shapes(self._config, self._task).items():
            tensor = torch.zeros(shape, device=self._device)
            if name.endswith("weight"):
                deviation = 0.5 * shape[2] ** -0.5
                torch.nn.init.trunc_normal_(
                    tensor, std=deviation, a=-2 * deviation, b=2 * deviation, generator=self._generator
                )
            elif name.endswith("log_variance"):
                tensor.fill_(0.5 if name.startswith("max") else -10.0)
            parameters[name] = tensor
        return parameters

    def _descend(self, part: Tensor, offsets: Tensor) -> None:
        """Take a step with a batch (M, B), and add the loss of its transitions up."""
        loss = losses(self.parameters, self._config, self._data.batch(part, offsets), self._hidden_dtype).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._total += loss.detach() * part.shape[1]
