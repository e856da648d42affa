"""The training of d3rlpy's offline algorithms, driven by us.

Batches come from the columns of a log, random numbers from a stream of its own, and one thread does it all. Discrete
algorithms with the usual networks take the same steps faster, by `persim_gym.baselines.discrete_q`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.baselines.discrete_q import DiscreteSteps, follows
from persim_gym.baselines.learned_policy import OwnRandomness, restore_weights, weights_of
from persim_gym.baselines.logs import check_rewards, policy_log
from persim_gym.baselines.offline import OfflinePolicy, configured, device_name, networks_of, settings_of
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import resolve_device, with_torch_defaults
from persim_gym.errors import InvalidArgumentError, TrainingDivergedError
from persim_gym.extras import d3rlpy
from persim_gym.settings import Settings, whole
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.tasks import Task
from persim_gym.tasks.action_bounds import scale_actions
from persim_gym.terminal import ProgressBar
from persim_gym.threads import single_thread
from persim_gym.training.checkpoint import Checkpoint, optimizer_state, restore_optimizer
from persim_gym.types import FloatArray, IntArray

PAPER_STEPS = 550_000
"""Those of BCQ; the paper gives none for CQL."""
_BAR_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """How a policy is trained, as the docstring of `fit_bcq` explains it."""

    steps: int = whole()
    seed: int = whole(least=0)
    device: str
    progress: bool
    callback: Callable[[OfflinePolicy, int], None] | None
    callback_every: int = whole()
    select: Callable[[OfflinePolicy], float] | None
    patience: int | None = whole(optional=True)
    checkpoint: str | Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.select is None:
            raise InvalidArgumentError(f"patience={self.patience} needs the scores of select")
        for name, signature in (("callback", "(policy, steps)"), ("select", "(policy)")):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise InvalidArgumentError(f"{name}={given!r} must be a function of {signature}")


@with_torch_defaults
def fit_policy(
    trajectories: Trajectories,
    configs: tuple[Callable[[], Any], Callable[[], Any]],
    settings: dict[str, Any],
    training: Training,
    *,
    agent: int | str | None,
    task: str | Task | None,
) -> OfflinePolicy:
    """Learn a policy from a log, or from one agent's own part of it.

    Every row of the log is a transition of its own, the last of a truncated episode too, which d3rlpy's own data sets
    lose: it has a next observation and is not terminal.

    Args:
        trajectories: the log.
        configs: d3rlpy's configuration for discrete actions, and that for continuous ones.
        settings: to change in it.
        training: everything else.
        agent: index or label of the agent; everyone's trajectories if None.
        task: the task that the log was recorded in; by default the one named in it.

    Raises:
        InvalidArgumentError: a number out of its range, or fewer steps than the checkpoint has.
        TrainingDivergedError: the weights are no longer finite.
        FileFormatError: the checkpoint is of another run.

    """
    log, task = policy_log(trajectories, task, agent)
    check_rewards(log, task)
    config = configured(configs[0]() if task.discrete else configs[1](), settings)
    where = resolve_device(training.device)
    saved = Checkpoint.of(
        training.checkpoint,
        log,
        task,
        seed=training.seed,
        device=where,
        settings=settings_of(config),
        callback_every=training.callback_every,
        select=training.select is not None,
    )
    run = _Run(config, log, task, training.seed, where)
    saved.resume(run)
    if run.done > training.steps:
        raise InvalidArgumentError(
            f"steps={training.steps} is fewer than the {run.done} that the checkpoint {saved.path} has: give at least "
            "as many, or delete it"
        )
    _take_steps(run, training, saved)
    saved.remove()
    run.policy.provenance |= {"gradient_steps": run.done, "wall_seconds": round(saved.seconds, 1)}
    return run.policy


def _take_steps(run: _Run, training: Training, saved: Checkpoint) -> None:
    """Train to the end, then let the policy have the weights that scored best."""
    steps, every, patience = training.steps, training.callback_every, training.patience
    title = type(run.policy.algorithm).__name__
    with ProgressBar(title, steps, training.progress, done=run.done) as bar, single_thread():
        while run.done < steps and not (patience is not None and run.best.since >= patience):
            run.advance(min(steps, run.done + _BAR_STEPS, (run.done // every + 1) * every))
            bar.complete(run.done)
            if run.done % every == 0 or run.done == steps:
                if training.callback is not None:
                    training.callback(run.policy, run.done)
                if training.select is not None:
                    run.best.offer(training.select(run.policy))
            if saved.due:
                saved.write(run)
    run.best.restore()


class _Run:
    """One training run: the policy, its learner, their random numbers, and the weights that scored best so far."""

    def __init__(self, config: Any, log: Trajectories, task: Task, seed: int, device: torch.device) -> None:
        weights, noise, drawn = (
            OwnRandomness(int(one.generate_state(1)[0]), device) for one in np.random.SeedSequence(seed).spawn(3)
        )
        algorithm = self._algorithm = config.create(device=device_name(device))
        with weights.active():
            algorithm.create_impl((task.observation_size,), task.action_size)
        self.policy = OfflinePolicy(algorithm, task, drawn, {**log.source, "seed": seed})
        self.best, self.done = _Best(algorithm), 0
        self._randomness = {"training": noise, "policy": drawn}
        self._learner = DiscreteSteps(algorithm, log) if follows(config) else D3rlpySteps(algorithm, log, task)
        self._rng, self._batch_size = np.random.default_rng(seed), config.batch_size
        self._count = log.num_transitions

    def advance(self, until: int) -> None:
        """Take the steps up to a number of them."""
        try:
            with self._randomness["training"].active():
                for _ in range(until - self.done):
                    self._learner.update(self._rng.integers(self._count, size=self._batch_size))
                self._learner.finish()
        except ValueError:  # from torch's distributions, for one, which take finite numbers only
            self._check_finite(until)
            raise
        self._check_finite(until)
        self.done = until

    def _check_finite(self, steps: int) -> None:
        """Raise `TrainingDivergedError` if a weight is no finite number any more."""
        if not all(tensor.isfinite().all() for tensor in weights_of(networks_of(self._algorithm)).values()):
            raise TrainingDivergedError(
                f"the weights are no longer finite after {steps} gradient steps; lower the learning rate"
            )

    def state(self) -> dict[str, Tensor]:
        """Return, with `progress`, everything that the steps to come depend on."""
        kept = with_prefix("learner", self._learner.state()) | with_prefix("best", self.best.weights)
        return kept | with_prefix("randomness", {name: stream.state for name, stream in self._randomness.items()})

    def progress(self) -> dict[str, Any]:
        """Return what of it JSON can hold."""
        best = {"score": self.best.score if self.best.weights else None, "since": self.best.since}
        return {"done": self.done, "rng": self._rng.bit_generator.state, "best": best}

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state` and `progress` returned."""
        self._learner.resume(without_prefix("learner", tensors))
        self._learner.finish()
        for name, state in without_prefix("randomness", tensors).items():
            self._randomness[name].state = state
        self._rng.bit_generator.state = progress["rng"]
        self.done, self.best.since = progress["done"], progress["best"]["since"]
        self.best.weights = without_prefix("best", tensors)
        if self.best.weights:
            self.best.score = progress["best"]["score"]


class _Best:
    """The weights of a d3rlpy algorithm that scored best so far."""

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = algorithm
        self.score = -np.inf
        self.weights: dict[str, Tensor] = {}
        """Empty before the first offer."""
        self.since = 0
        """Offers since then."""

    def offer(self, given: Any) -> None:
        """Keep the present weights if the score given, a number, is above all before."""
        try:
            score = float(given)
        except (TypeError, ValueError):
            score = np.nan
        if np.isnan(score):
            raise InvalidArgumentError(f"select returned {given!r}, which is not a number; it must return a score")
        self.since += 1
        if not self.weights or score > self.score:
            self.score, self.since = score, 0
            self.weights = {name: tensor.clone() for name, tensor in weights_of(networks_of(self._algorithm)).items()}

    def restore(self) -> None:
        """Give the algorithm the weights kept, if any were."""
        if self.weights:
            restore_weights(networks_of(self._algorithm), self.weights)


class D3rlpySteps:
    """d3rlpy's own gradient steps, on batches as it wants them: all columns (B, …) float32."""

    def __init__(self, algorithm: Any, log: Trajectories, task: Task) -> None:
        self._algorithm = algorithm
        actions = np.asarray(log.actions, np.float32).reshape(log.num_transitions, -1)
        if not task.discrete:
            actions = scale_actions(actions, *task.action_bounds)
        self._columns: dict[str, FloatArray] = {
            "observations": np.asarray(log.observations, np.float32),
            "actions": actions,
            "rewards": np.asarray(log.rewards, np.float32)[:, None],
            "next_observations": np.asarray(log.next_observations, np.float32),
            "terminals": np.asarray(log.terminated, np.float32)[:, None],
        }
        # No algorithm here reads the next action; d3rlpy's batches hold it, zero where an episode ends.
        following = np.zeros_like(actions)
        following[:-1] = actions[1:]
        following[log.episode_ends - 1] = 0.0
        self._columns["next_actions"] = following

    def batch(self, rows: IntArray) -> Any:
        """Return d3rlpy's batch of some rows of the log."""
        columns = {name: column[rows] for name, column in self._columns.items()}
        intervals = np.ones((len(rows), 1), np.float32)
        return d3rlpy().dataset.TransitionMiniBatch(**columns, intervals=intervals, transitions=[])

    def update(self, rows: IntArray) -> None:
        """Take one step on a batch of some rows."""
        self._algorithm.update(self.batch(rows))

    def finish(self) -> None:
        """Do nothing: the networks are those that were trained."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that the steps to come depend on."""
        kept = with_prefix("networks", weights_of(networks_of(self._algorithm)))
        for name, optimizer in self._optimizers().items():
            kept |= with_prefix(f"optimizers.{name}", optimizer_state(optimizer))
        return {**kept, "steps": torch.tensor(self._algorithm.grad_step)}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        restore_weights(networks_of(self._algorithm), without_prefix("networks", tensors))
        for name, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, without_prefix(f"optimizers.{name}", tensors))
        self._algorithm.set_grad_step(int(tensors["steps"]))

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        modules = vars(self._algorithm.impl.modules)
        return {name: module.optim for name, module in modules.items() if hasattr(module, "optim")}
