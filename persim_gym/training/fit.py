"""`fit`: from trajectories to an ensemble."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persim_gym.arguments import below_one, checked_seed
from persim_gym.config import RANKS, PerSimConfig, get_config
from persim_gym.data.log_warnings import (
    untried_actions,
    warn_of_jumps,
    warn_of_long_episodes,
    warn_of_rewards,
    warn_of_terminal_flags,
)
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import resolve_device, with_torch_defaults
from persim_gym.errors import InvalidArgumentError
from persim_gym.factors.inference import refit_factors
from persim_gym.factors.refit import refit_in_turns
from persim_gym.factors.rewards import with_reward_posterior
from persim_gym.memory import explain_out_of_memory
from persim_gym.model.action_scaling import for_raw_actions, scaled
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.parameters import parameter_shapes
from persim_gym.tasks import Task, warn_of_another_task
from persim_gym.threads import limited_threads
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.training.errors import familiar_disagreement, one_step_errors, relative_error
from persim_gym.training.outcomes import OutcomeLearner, check_rewards_known, learn_outcomes, warn_of_few_ends
from persim_gym.training.preparation import known_of_agents, normalizer_of, prepared, split, warn_of_rounding
from persim_gym.training.runner import Runner
from persim_gym.training.selection import best_members
from persim_gym.training.trainer import DeviceLog
from persim_gym.types import IntArray
from persim_gym.user_warnings import warn_user


@with_torch_defaults
def fit(
    trajectories: Trajectories,
    *,
    task: str | Task | None = None,
    config: str | PerSimConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    validation_fraction: float = 0.2,
    refit: bool = True,
    rank: int | str | None = None,
    epochs: int | None = None,
    **changes: Any,
) -> Ensemble:
    """Learn one simulator for all agents of a log.

    First a random part of the transitions is held out, to measure the one-step validation error. With ``refit``, the
    ensemble is then trained again on all transitions, as the paper's is, which about doubles the time;
    ``validation_fraction=0`` trains once. Last the posterior of the agents' factors is inferred; if the configuration
    says ``refit_factors``, its means replace the trained factors.

    Args:
        trajectories: the log.
        task: the task that the log was recorded in; by default the one named in it.
        config: the settings or their name (`persim_gym.config.CONFIGS`); by default the task's own.
        seed: of the initial weights, the batches and the held-out transitions. Same seed, same device: same bits,
            but other last bits with numba than without (`persim_gym.simulators.networks.kernels.epoch`).
        device: "auto", "cpu", "cuda", … .
        checkpoint: a file name; unfinished training is kept beside it and the same call continues where it stopped.
        progress: whether to show a progress bar.
        validation_fraction: part of the transitions held out; 0 for none.
        refit: whether to train again on everything. Without it the result is the ensemble that was validated.
        rank: instead of the configuration's; "auto" selects it by validation error among 3, 5, 10, 15, 20 and 30.
        epochs: instead of the configuration's.
        **changes: to any other settings of the configuration, by their names in `persim_gym.PerSimConfig`.

    Returns:
        The ensemble. Its ``provenance`` holds errors, training time and versions: ``validation_error`` is the one-step
        error on the held-out transitions, relative to the standard deviation of the changes and averaged over
        coordinates, so that 1 is no better than always predicting the mean change; ``validation_rmse`` is the same
        error in raw units. ``familiar_disagreement`` (D,) is what at most 1 % of the log's rows have more of, in any
        coordinate: steps beyond it leave what the log knows. Of a learned reward it has ``reward_rmse``, on the same
        transitions, and of a learned termination ``terminations_held_out``, the ends among them;
        ``terminations_expected``, the number that the learned risk expects there; ``termination_skill``, the part by
        which its cross entropy is below that of the mere frequency of ends, at most 1; and ``terminations_missed`` and
        ``terminations_false``, the parts of ends and of other transitions that are misjudged where a risk above one
        half is taken for an end, as which ends by chance cannot be recognized.

    Raises:
        InvalidDataError: the log does not fit the task, or lacks some of its covariates or the rewards to be learned,
            or the task's reward function returns NaN or infinity of its rows.
        InvalidArgumentError: a setting out of its range, or nothing to select the rank by.
        UnknownNameError: there is no such task, configuration or setting.
        TrainingDivergedError: the loss is no longer finite.
        OutOfMemoryError: the message names the settings to lower.
        FileFormatError: the checkpoint is damaged, or of another run.
        FileWriteError: no checkpoint can be written there.

    """
    log, task = prepared(trajectories, task)
    untried = _checked(log, task, rank)
    candidates = _candidates(get_config(config, task.name).with_changes(**changes), rank, epochs)
    seed = checked_seed(seed)
    kept, held_out = split(log.num_transitions, below_one("validation_fraction", validation_fraction), seed)
    if rank == "auto" and len(held_out) == 0:
        raise InvalidArgumentError(
            f"validation_fraction={validation_fraction} of {log.num_transitions} transitions is none: rank='auto' "
            "selects by validation error, so give a larger fraction, or a rank"
        )
    start = time.perf_counter()
    runner = Runner(seed, resolve_device(device), torch.get_num_threads(), progress)
    runs = _Runs(log, task, runner, checkpoint)
    chosen, ensemble, found = candidates[0], None, {}
    with explain_out_of_memory(_memory_advice(chosen)), limited_threads(chosen.state_hidden):
        if len(held_out):
            chosen, ensemble, found = _select(runs, candidates, kept, held_out)
        if refit or ensemble is None:
            ensemble, found["training_loss"] = runs.train(chosen, np.arange(log.num_transitions), "full")
        outcomes, errors = learn_outcomes(runs.outcome_learner(chosen), kept, held_out, refit=refit)
        found["familiar_disagreement"] = familiar_disagreement(ensemble, log)
    learned = replace(ensemble, outcomes=outcomes, provenance={**found, **errors, **_provenance(runs, untried, start)})
    rows = kept if len(held_out) and not refit else None
    learned = with_reward_posterior(learned, log, rows=rows, device=device)
    runs.forget_checkpoints()  # last, for a warning may be an error
    return learned


def _checked(log: Trajectories, task: Task, rank: int | str | None) -> list[int]:
    """Warn of all that a log may lack or hold that training makes no simulators of; return the actions never tried."""
    check_rewards_known(log, task)
    untried = untried_actions(log, task)
    warn_of_jumps(log, task)
    warn_of_terminal_flags(log, task)
    warn_of_long_episodes(log, task)
    warn_of_rounding(log, task)
    warn_of_rewards(log, task)
    warn_of_few_ends(log, task)
    warn_of_another_task(task)
    if isinstance(rank, int) and rank > log.num_agents:
        warn_user(
            f"rank={rank} is more than the {log.num_agents} agents of the log, which cannot differ in so many ways; a "
            "rank of at most their number learns as much, in less time",
        )
    return untried


@dataclass
class _Runs:
    """The training runs of one `fit`: validation runs, then the final one, each with its own checkpoint."""

    log: Trajectories
    task: Task
    runner: Runner
    path: str | Path | None
    """Of the checkpoints."""
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def train(self, config: PerSimConfig, rows: IntArray, stage: str) -> tuple[Ensemble, float]:
        """Train all candidates on some rows; return the ensemble of those kept and the last epoch's mean loss."""
        trained = config.with_changes(num_members=config.num_candidates or config.num_members, num_candidates=0)
        normalizer = normalizer_of(self.log, trained)
        parameters, loss = self._trained_parameters(trained, normalizer, rows, stage)
        ensemble = Ensemble(
            task=self.task,
            config=trained,
            parameters=parameters,
            normalizer=normalizer,
            **known_of_agents(self.log),
        )
        where: dict[str, Any] = {"rows": rows, "device": str(self.runner.device)}
        ensemble = refit_factors(ensemble, self.log, replace_factors=config.refit_factors, **where)
        if trained.num_members > config.num_members:
            ensemble = best_members(ensemble, self.log, config.num_members, rows=rows)
        ensemble = replace(ensemble, config=config)
        if config.refit_rounds:
            where["progress"] = self.runner.progress
            ensemble = refit_in_turns(ensemble, self.log, rounds=config.refit_rounds, **where)
        return ensemble, loss

    def validate(self, config: PerSimConfig, kept: IntArray, held_out: IntArray) -> tuple[Ensemble, dict[str, Any]]:
        """Train on the kept rows; return the ensemble, and its one-step errors on the held-out ones."""
        ensemble, _ = self.train(config, kept, "validation")
        errors = one_step_errors(ensemble, self.log, held_out)
        standardized = errors[:-1] / ensemble.normalizer.change_divisor**2
        return ensemble, {
            "validation_loss": float(standardized.mean()),
            "validation_error": relative_error(errors[-1], self.log),
            "validation_rmse": float(np.sqrt(errors[-1].mean())),  # of little use where coordinates differ in units
        }

    def outcome_learner(self, config: PerSimConfig) -> OutcomeLearner:
        """Return what learns reward and termination with the same settings."""
        return OutcomeLearner(self.log, self.task, config, self.runner, partial(self._checkpoint, config))

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints of finished training."""
        for checkpoint in self.checkpoints:
            checkpoint.remove()

    def _trained_parameters(
        self, config: PerSimConfig, normalizer: Normalizer, rows: IntArray, stage: str
    ) -> tuple[dict[str, np.ndarray], float]:
        """Run the epochs; return the parameters, for actions as they are, and the last epoch's mean loss."""
        columns = DeviceLog.of(self.log, self.task, normalizer, self.runner.device)
        if config.normalize:
            columns = columns.with_actions(scaled(self.log.actions))
        shapes = parameter_shapes(
            config,
            num_agents=self.log.num_agents,
            observation_size=self.task.observation_size,
            action_size=self.task.action_size,
            discrete=self.task.discrete,
        )
        parameters, loss = self.runner.train(
            shapes,
            config,
            columns,
            rows,
            self._checkpoint(config, rows, stage),
            title=f"{self.task.name}, rank {config.rank}, {'all data' if stage == 'full' else 'validation'}",
            advice=f"lower the learning rate (learning_rate={config.learning_rate}) or set normalize=True",
        )
        return (for_raw_actions(self.log.actions, parameters) if config.normalize else parameters), loss

    def _checkpoint(self, config: PerSimConfig, rows: IntArray, stage: str) -> Checkpoint:
        checkpoint = Checkpoint.of(
            self.path,
            self.log,
            self.task,
            seed=self.runner.seed,
            device=self.runner.device,
            suffix=f".rank{config.rank}-{stage}",
            config=config.to_json(),
            stage=stage,
            num_rows=len(rows),  # with the seed it says which are held out
        )
        self.checkpoints.append(checkpoint)
        return checkpoint


def _candidates(config: PerSimConfig, rank: int | str | None, epochs: int | None) -> list[PerSimConfig]:
    """Return the configurations to choose from: one, or one of each rank."""
    if epochs is not None:
        config = config.with_changes(epochs=epochs)
    if rank is None:
        return [config]
    return [config.with_changes(rank=one) for one in (RANKS if rank == "auto" else (rank,))]


def _select(
    runs: _Runs, candidates: list[PerSimConfig], kept: IntArray, held_out: IntArray
) -> tuple[PerSimConfig, Ensemble, dict[str, Any]]:
    """Train with each configuration on the kept rows; return the best on those held out, its ensemble and errors."""
    scored = [(config, *runs.validate(config, kept, held_out)) for config in candidates]
    chosen, ensemble, errors = min(scored, key=lambda one: one[2]["validation_loss"])
    if len(candidates) > 1:
        by_rank = {str(config.rank): tried["validation_loss"] for config, _, tried in scored}
        errors = {**errors, "validation_loss_by_rank": by_rank}
    return chosen, ensemble, errors


def _provenance(runs: _Runs, untried: list[int], start: float) -> dict[str, Any]:
    """Return what an ensemble was learned from and with, and how long it took since ``start`` and in earlier calls."""
    earlier = sum(checkpoint.earlier_seconds for checkpoint in runs.checkpoints)
    return {
        **runs.log.source,
        **({"untried_actions": untried} if untried else {}),
        "seed": runs.runner.seed,
        "wall_seconds": round(time.perf_counter() - start + earlier, 1),
        "device": str(runs.runner.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _memory_advice(config: PerSimConfig) -> str:
    return (
        f"lower batch_size={config.batch_size}, num_members={config.num_members}, "
        f"num_candidates={config.num_candidates} or state_hidden={config.state_hidden}"
    )
