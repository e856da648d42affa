"""`fit`: from trajectories to an ensemble."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persim_gym.arguments import below_one, whole_number
from persim_gym.config import RANKS, PerSimConfig, get_config
from persim_gym.data.log_checks import start_states, untried_actions, warn_of_jumps, with_task_covariates
from persim_gym.data.trajectories import Trajectories, check_log
from persim_gym.devices import memory_for, on_device, resolve_device, threads_for
from persim_gym.errors import InvalidArgumentError
from persim_gym.factors.inference import refit_factors
from persim_gym.factors.refit import refit_in_turns
from persim_gym.model.action_scaling import for_raw_actions, scaled
from persim_gym.model.ensemble import MAX_INITIAL_OBSERVATIONS, Ensemble
from persim_gym.model.factorization import predict
from persim_gym.model.normalizer import Normalizer, varies
from persim_gym.model.parameters import Outcome, parameter_shapes
from persim_gym.tasks import Task, get_task, is_built_in
from persim_gym.tasks.rules import check_rules
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.training.epochs import run_epochs
from persim_gym.training.outcomes import OutcomeLearner, check_rewards_known, outcome_errors
from persim_gym.training.selection import best_members
from persim_gym.training.trainer import Columns, Trainer
from persim_gym.types import FloatArray, IntArray

_TO_CHOOSE_OUTCOMES = 0.2
"""Part of the rows that tells whether outcomes have factors of each agent's own, where none are held out anyway."""


def fit(
    trajectories: Trajectories,
    *,
    task: str | Task | None = None,
    config: str | PerSimConfig | None = None,
    rank: int | str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    validation_fraction: float = 0.2,
    refit: bool = True,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Ensemble:
    """Learn one simulator for all agents of a log.

    First a random part of the transitions is held out, to measure the one-step validation error. With ``refit``, the
    ensemble is then trained again on all transitions, as the paper's is, which about doubles the time;
    ``validation_fraction=0`` trains once. Last the posterior of the agents' factors is inferred; if the configuration
    says ``refit_factors``, its means replace the trained factors.

    Args:
        trajectories: the log.
        task: what it is a log of; by default the task named in it.
        config: the settings or their name (`persim_gym.config.CONFIGS`); by default the task's own.
        rank: instead of the configuration's; "auto" selects it by validation error among 3, 5, 10, 15, 20 and 30.
        epochs: instead of the configuration's.
        seed: of the initial weights, the batches and the held-out transitions. Same seed, same device: same bits,
            but other last bits with numba than without (`persim_gym.simulators.networks.kernels.epoch`).
        validation_fraction: part of the transitions held out; 0 for none.
        refit: whether to train again on everything. Without it the result is the ensemble that was validated.
        device: "auto", "cpu", "cuda", … .
        checkpoint: a file name; unfinished training is kept beside it and the same call continues where it stopped.
        progress: whether to show a progress bar.

    Returns:
        The ensemble; its ``provenance`` has its errors, the time it took and versions. ``validation_error`` is that of
        one step on the held-out transitions in units of the changes' deviation, over all coordinates;
        ``validation_rmse`` mixes the coordinates' own units.

    Raises:
        InvalidDataError: the log does not fit the task, or lacks some of its covariates.
        InvalidArgumentError: a setting out of its range, or nothing to select the rank by.
        TrainingDivergedError: the loss is no longer finite.
        OutOfMemoryError: the message names the settings to lower.

    """
    task = task_of(trajectories, task)
    check_log(trajectories, task)
    check_rewards_known(trajectories, task)
    trajectories = with_task_covariates(trajectories, task)
    untried = untried_actions(trajectories, task)
    warn_of_jumps(trajectories, task)
    chosen = get_config(config, task.name)
    if epochs is not None:
        chosen = chosen.with_changes(epochs=epochs)
    seed = whole_number("seed", seed, least=0)
    validation_fraction = below_one("validation_fraction", validation_fraction)
    if rank is not None and rank != "auto":
        chosen = chosen.with_changes(rank=rank)
    candidates = [chosen.with_changes(rank=r) for r in RANKS] if rank == "auto" else [chosen]

    start = time.perf_counter()
    kept, held_out = _split(trajectories.num_transitions, validation_fraction, seed)
    if rank == "auto" and len(held_out) == 0:
        raise InvalidArgumentError(
            f"validation_fraction={validation_fraction} of {trajectories.num_transitions} transitions is none: "
            "rank='auto' selects by validation error, so give a larger fraction, or a rank"
        )
    runs = _Runs(trajectories, task, seed, resolve_device(device), checkpoint, progress)
    provenance: dict[str, Any] = {}
    ensemble = None
    advice = (
        f"lower batch_size={chosen.batch_size}, num_members={chosen.num_members}, "
        f"num_candidates={chosen.num_candidates} or state_hidden={chosen.state_hidden}"
    )
    with memory_for(advice), threads_for(chosen.state_hidden):
        if len(held_out):
            scored = [(runs.validate(candidate, kept, held_out), candidate) for candidate in candidates]
            (validation, ensemble), chosen = min(scored, key=lambda pair: pair[0][0]["validation_loss"])
            provenance.update(validation)
            if rank == "auto":
                provenance["validation_loss_by_rank"] = {str(c.rank): v[0]["validation_loss"] for v, c in scored}
        if refit or ensemble is None:
            ensemble, loss = runs.train(chosen, np.arange(trajectories.num_transitions), "full")
            provenance["training_loss"] = loss
        outcomes, errors = runs.outcomes(chosen, kept, held_out, refit)
        provenance |= errors
    runs.forget_checkpoints()
    provenance |= {
        **trajectories.source,
        **({"untried_actions": untried} if untried else {}),
        "seed": seed,
        "wall_seconds": round(time.perf_counter() - start + runs.earlier_seconds, 1),
        "device": str(runs.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    return replace(ensemble, outcomes=outcomes, provenance=provenance)


def one_step_errors(ensemble: Ensemble, trajectories: Trajectories, rows: IntArray | None = None) -> np.ndarray:
    """Return the squared one-step error (M + 1, D), in squared units of the observation, averaged over some rows.

    The first M rows are the members', the last is that of their mean prediction.
    """
    rows = np.arange(trajectories.num_transitions) if rows is None else rows
    columns = Columns.of(trajectories, ensemble.task, ensemble.normalizer, torch.device("cpu"))
    parameters = on_device(ensemble.parameters, torch.device("cpu"))
    scale = torch.tensor(ensemble.normalizer.change_scale, dtype=torch.float32)
    members = ensemble.num_members
    total = torch.zeros(members + 1, trajectories.observations.shape[1], dtype=torch.float64)
    for states, agents, actions, changes in columns.batches(torch.as_tensor(rows), members):
        errors = predict(parameters, states, agents, actions) - changes
        errors = torch.cat([errors, errors.mean(0, keepdim=True)]) * scale[:, None]
        total += errors.square().sum(2)
    return (total / len(rows)).numpy()


def _relative_error(squared: FloatArray, log: Trajectories) -> float:
    """Return the root mean over coordinates of squared errors (D,) / variance of the change: 1 for its mean.

    A coordinate whose change does not vary is left out; not a number if none does.
    """
    states = np.asarray(log.observations, np.float64)
    changes = np.asarray(log.next_observations, np.float64) - states
    differ = varies(changes, states)
    return float(np.sqrt(np.mean(squared[differ] / changes[:, differ].var(0)))) if differ.any() else float("nan")


def known_of_agents(log: Trajectories) -> dict[str, Any]:
    """Return what every model keeps of a log, by the names of its fields: who its agents are and where they began."""
    return {
        "agent_labels": log.agent_labels,
        "initial_observations": start_states(log, MAX_INITIAL_OBSERVATIONS),
        "covariates": None if log.covariates is None else np.asarray(log.covariates),
    }


def task_of(trajectories: Trajectories, task: str | Task | None) -> Task:
    """Return the task given, else the one that the log names; one of a user's own is tried out first."""
    if not isinstance(trajectories, Trajectories):
        raise InvalidArgumentError(
            f"{type(trajectories).__name__} is no log: give Trajectories (persim_gym.collect, from_dataframe, "
            "Trajectories.from_arrays, Trajectories.load)"
        )
    named = trajectories.task if task is None else task
    if named is None:
        raise InvalidArgumentError("the log names no task: give task='CartPole', or a Task of your own")
    found = get_task(named)
    is_built_in(found)  # raises for another task of a built-in one's name, which no file could hold
    check_rules(found)
    return found


def _split(count: int, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    held = int(count * fraction)
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


class _Runs:
    """The training runs of one `fit`: validation runs, then the final one, each with its own checkpoint."""

    def __init__(
        self,
        log: Trajectories,
        task: Task,
        seed: int,
        device: torch.device,
        checkpoint: str | Path | None,
        progress: bool,
    ) -> None:
        self.device, self._threads = device, torch.get_num_threads()
        self._log, self._task, self._seed, self._progress = log, task, seed, progress
        self._path = checkpoint
        self._checkpoints: list[Checkpoint] = []

    @property
    def earlier_seconds(self) -> float:
        """That earlier calls took for what is in their checkpoints."""
        return sum(checkpoint.earlier_seconds for checkpoint in self._checkpoints)

    def train(self, config: PerSimConfig, rows: IntArray, stage: str) -> tuple[Ensemble, float]:
        """Train all candidates on some rows; return the ensemble of those kept and the last epoch's mean loss."""
        kept = config
        config = kept.with_changes(num_members=kept.num_candidates or kept.num_members, num_candidates=0)
        columns = Columns.of(self._log, self._task, self._normalizer(config), self.device)
        if config.normalize:
            columns = columns.with_actions(scaled(self._task, self._log.actions))
        trainer = Trainer(self._shapes(config), config, self._seed, self.device, self._threads)
        device_rows = torch.as_tensor(rows, device=self.device)
        run_epochs(
            trainer,
            partial(trainer.run_epoch, columns, device_rows),
            self._checkpoint(config, rows, stage),
            epochs=config.epochs,
            title=f"{self._task.name}, rank {config.rank}, {'all data' if stage == 'full' else 'validation'}",
            progress=self._progress,
            advice=f"lower the learning rate (learning_rate={config.learning_rate}) or set normalize=True",
            preparation=trainer.preparation,
        )
        parameters = {name: tensor.cpu().numpy().copy() for name, tensor in trainer.parameters.items()}
        if config.normalize:
            parameters = for_raw_actions(self._task, parameters)
        candidates = refit_factors(
            self._ensemble(config, parameters),
            self._log,
            rows=rows,
            replace_factors=config.refit_factors,
            device=str(self.device),
        )
        if config.num_members > kept.num_members:
            candidates = best_members(candidates, self._log, kept.num_members, rows=rows)
        found = replace(candidates, config=kept)
        if kept.refit_rounds:
            found = refit_in_turns(
                found,
                self._log,
                rounds=kept.refit_rounds,
                rows=rows,
                device=str(self.device),
                progress=self._progress,
            )
        return found, trainer.loss

    def validate(self, config: PerSimConfig, kept: IntArray, held_out: IntArray) -> tuple[dict[str, float], Ensemble]:
        """Train on the kept rows; return the one-step errors on the held-out ones, and the ensemble."""
        ensemble, _ = self.train(config, kept, "validation")
        errors = one_step_errors(ensemble, self._log, held_out)
        standardized = errors[:-1] / ensemble.normalizer.unit**2
        return {
            "validation_loss": float(standardized.mean()),
            "validation_error": _relative_error(errors[-1], self._log),
            "validation_rmse": float(np.sqrt(errors[-1].mean())),  # of little use where coordinates differ in units
        }, ensemble

    def outcomes(
        self, config: PerSimConfig, kept: IntArray, held_out: IntArray, refit: bool
    ) -> tuple[dict[str, Outcome], dict[str, Any]]:
        """Learn what the task leaves to be learned; return it, and its errors on the held-out rows."""
        if not self._task.learned:
            return {}, {}
        learner = OutcomeLearner(
            self._log,
            self._task,
            config,
            self._seed,
            self.device,
            self._threads,
            progress=self._progress,
            checkpoint_of=partial(self._checkpoint, config),
        )
        chosen_on = (kept, held_out) if len(held_out) else _split(len(kept), _TO_CHOOSE_OUTCOMES, self._seed)
        chosen = learner.choose(*chosen_on)
        by_agent = [name for name, (_, own_factors) in chosen.items() if own_factors]
        outcomes, errors = {name: outcome for name, (outcome, _) in chosen.items()}, {}
        if len(held_out):
            errors = outcome_errors(self._log, outcomes, held_out)
        if refit or not len(held_out):
            everything = np.arange(self._log.num_transitions)
            outcomes = {
                name: learner.learn(name, everything, by_agent=name in by_agent, stage="full")
                for name in learner.names(everything)
            }
        return outcomes, {**errors, "outcomes_by_agent": by_agent}

    def _ensemble(self, config: PerSimConfig, parameters: dict[str, np.ndarray]) -> Ensemble:
        """Return the ensemble with these parameters."""
        return Ensemble(
            task=self._task,
            config=config,
            parameters=parameters,
            normalizer=self._normalizer(config),
            **known_of_agents(self._log),
        )

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints of finished training."""
        for checkpoint in self._checkpoints:
            checkpoint.remove()

    def _normalizer(self, config: PerSimConfig) -> Normalizer:
        if config.normalize:
            return Normalizer.of(self._log.observations, self._log.next_observations)
        return Normalizer.identity(self._task.observation_size)

    def _shapes(self, config: PerSimConfig) -> dict[str, tuple[tuple[int, ...], int]]:
        return parameter_shapes(
            config,
            num_agents=self._log.num_agents,
            observation_size=self._task.observation_size,
            action_size=self._task.action_size,
            discrete=self._task.discrete,
        )

    def _checkpoint(self, config: PerSimConfig, rows: IntArray, stage: str) -> Checkpoint:
        checkpoint = Checkpoint.of(
            self._path,
            self._log,
            self._task,
            seed=self._seed,
            device=self.device,
            suffix=f".rank{config.rank}-{stage}",
            config=config.to_json(),
            stage=stage,
            num_rows=len(rows),  # with the seed it says which are held out
        )
        self._checkpoints.append(checkpoint)
        return checkpoint
