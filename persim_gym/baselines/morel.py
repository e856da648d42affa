"""MOReL: a policy learned where the model knows what it is doing (Kidambi et al., NeurIPS 2020).

An ensemble learns the dynamics of whoever is in the log; what its members disagree on is made terribly expensive; PPO
of Stable-Baselines3 learns a policy in what is left (`persim_gym.baselines.pessimistic`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from persim_gym.arguments import at_least_zero, checked_seed, zero_to_one
from persim_gym.baselines.learned_policy import LearnedPolicy, OwnRandomness
from persim_gym.baselines.logs import policy_log
from persim_gym.baselines.morel_ppo import actions_of, check_installed, new_network, new_ppo
from persim_gym.baselines.morel_run import PolicyRun, isolated_training
from persim_gym.baselines.morel_threshold import first_that_seldom_halts, largest_discrepancy
from persim_gym.baselines.pessimistic import PessimisticVectorEnv
from persim_gym.baselines.plain_dynamics import PlainDynamics, fit_plain_dynamics
from persim_gym.config import named_settings
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import resolve_device, with_torch_defaults
from persim_gym.errors import InvalidArgumentError
from persim_gym.settings import Settings, checked, finite, whole, widths
from persim_gym.tasks import Task
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.types import FloatArray


@dataclass(frozen=True)
class MOReLConfig(Settings):
    """Settings of MOReL as in the PerSim paper and, where it gives none, in the MOReL code that it cites."""

    num_members: int = whole(4)
    hidden: tuple[int, ...] = widths((128, 128))
    """Widths of the dynamics' ReLU layers."""
    epochs: int = whole(100)
    """Of the dynamics; the weights with the least validation error are kept. A log of up to ``batch_size`` rows is one
    batch, so that an epoch is a single gradient step."""
    max_gradient_steps: int | None = whole(None, optional=True)
    """Of the dynamics; fewer epochs are run if these would take more."""
    batch_size: int = whole(256)
    learning_rate: float = finite(1e-3, above=0)
    """Of Adam, for the dynamics."""
    threshold_scale: float | None = checked(at_least_zero, None, optional=True)
    """c: pairs whose discrepancy is above c times the largest of the log's are unknown; at 1 no logged pair halts. The
    paper does not give c. By default it is the lowest of 1, 2, 4, …, 32 with which a policy seldom halts: in at most
    ``max_halted`` of its episodes, after ``trial_steps`` and when it has learned."""
    trial_steps: int = whole(200_000)
    """Of ``policy_steps``, those after which the choice of c looks at how episodes end for the first time."""
    max_halted: float = checked(zero_to_one, 0.1)
    penalty: float = finite(50.0)
    """κ, the cost of halting."""
    max_episode_steps: int = whole(500)
    """Of an episode in the pessimistic MDP."""
    policy_steps: int = whole(1_000_000)
    """Steps in the pessimistic MDP that PPO learns from."""
    num_envs: int = whole(64)
    """Episodes side by side; PPO learns after about 1024 steps of all together, and at least four of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_members < 2:
            raise InvalidArgumentError(f"num_members={self.num_members} must be at least 2: one cannot disagree")


CONFIGS = {"default": MOReLConfig(), "HalfCheetah": MOReLConfig(hidden=(1024, 1024), penalty=200.0)}
"""By task, where they differ from the defaults."""


class MOReLPolicy(LearnedPolicy):
    """A policy learned in a pessimistic MDP: its most likely actions, or actions drawn (``deterministic=False``)."""

    kind = "a policy of MOReL"

    def __init__(
        self,
        network: Any,
        task: Task,
        randomness: OwnRandomness,
        provenance: Mapping[str, Any],
        *,
        ppo: Any = None,
        env: PessimisticVectorEnv | None = None,
    ) -> None:
        super().__init__(task, randomness, provenance)
        self.network = network
        """Stable-Baselines3's `ActorCriticPolicy`."""
        self.ppo = ppo
        """Stable-Baselines3's own object; None if the policy was loaded from a file."""
        self.env = env
        """The pessimistic MDP it was learned in; None if the policy was loaded from a file."""

    @property
    def learner(self) -> str:
        return "MOReL's PPO"

    def _act(self, observations: FloatArray, deterministic: bool) -> np.ndarray:
        return actions_of(self.network, self.task, observations, deterministic=deterministic)

    def _networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def _settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _untrained(
        cls, task: Task, settings: Any, provenance: Mapping[str, Any], device: torch.device, randomness: OwnRandomness
    ) -> MOReLPolicy:
        return cls(new_network(task).to(device), task, randomness, provenance)


@with_torch_defaults
def fit_morel(
    trajectories: Trajectories,
    *,
    agent: int | str | None = None,
    task: str | Task | None = None,
    config: str | MOReLConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> MOReLPolicy:
    """Learn dynamics, then a policy where they are known.

    Args:
        trajectories: the log.
        agent: index or label of the agent whose own trajectories are used ("MOReL-A"); everyone's if None ("MOReL-P").
        task: the task that the log was recorded in; by default the one named in it.
        config: the settings or their name, "default" or "HalfCheetah"; by default the task's own.
        seed: of weights, batches and episodes.
        device: "auto", "cpu", "cuda", … , for the dynamics; PPO's small networks learn on the processor.
        checkpoint: a file name; unfinished training is kept in files beside it and the same call continues where it
            stopped.
        progress: whether to show a bar.
        **changes: to the configuration.

    Returns:
        The policy. Its ``provenance`` has the ``threshold_scale`` and, of ``num_envs`` episodes in the pessimistic MDP,
        one draw of the training's own seed, the part that ends by halting (``halted``) and their
        ``mean_episode_steps``: where all halt at once, halting is what the policy has learned.

    Raises:
        InvalidDataError: too little data, no terminal flags, or a log that does not fit the task.
        InvalidArgumentError: a setting out of its range, no such device, or a task whose reward or termination is to
            be learned.
        UnknownNameError: there is no such agent, task, configuration or setting.
        TrainingDivergedError: the dynamics do not learn.
        MissingExtraError: Stable-Baselines3 is not installed.
        FileFormatError: a checkpoint is damaged, or of another run.

    """
    seed = checked_seed(seed)
    log, found = policy_log(trajectories, task, agent)
    if found.learned:
        raise InvalidArgumentError(
            f"task {found.name} leaves {', '.join(found.learned)} to be learned, and MOReL learns none: give the task "
            "these functions"
        )
    settings = named_settings(config, MOReLConfig, CONFIGS, usual=(found.name, "default")).with_changes(**changes)
    check_installed()
    start = time.perf_counter()
    training = _Training(log, found, settings, seed, resolve_device(device), checkpoint, progress)
    dynamics = training.dynamics()
    make_run = partial(training.policy_run, dynamics, largest_discrepancy(dynamics, log))
    with isolated_training():
        if settings.threshold_scale is None:
            threshold_scale, run = first_that_seldom_halts(
                make_run,
                trial_steps=settings.trial_steps,
                policy_steps=settings.policy_steps,
                max_halted=settings.max_halted,
                progress=progress,
            )
        else:
            threshold_scale = settings.threshold_scale
            run = make_run(threshold_scale)
            run.learn(settings.policy_steps, progress=progress)
        halting = run.halting()
    provenance = {
        **log.source,
        "seed": seed,
        "config": settings.to_json(),
        "threshold_scale": threshold_scale,
        "threshold": run.trial_env.threshold,
        **asdict(halting),
        "wall_seconds": round(time.perf_counter() - start + training.earlier_seconds, 1),
    }
    training.forget()
    return MOReLPolicy(run.ppo.policy, found, OwnRandomness(seed), provenance, ppo=run.ppo, env=run.trial_env)


@dataclass(frozen=True)
class _Training:
    """What the stages of one training share, and the checkpoints of those begun."""

    log: Trajectories
    task: Task
    settings: MOReLConfig
    seed: int
    device: torch.device
    path: str | Path | None
    progress: bool
    checkpoints: list[Checkpoint] = field(default_factory=list)
    runs: list[PolicyRun] = field(default_factory=list)

    def dynamics(self) -> PlainDynamics:
        """Learn the dynamics, or read what was learned of them before."""
        settings = self.settings
        return fit_plain_dynamics(
            self.log,
            self.task,
            hidden=settings.hidden,
            num_members=settings.num_members,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_gradient_steps=settings.max_gradient_steps,
            seed=self.seed,
            device=self.device,
            checkpoint=self._begin("dynamics"),
            progress=self.progress,
        )

    def policy_run(self, dynamics: PlainDynamics, largest: float, threshold_scale: float) -> PolicyRun:
        """Return PPO in the pessimistic MDP with so many times the log's largest discrepancy for a threshold."""
        settings = self.settings
        make_env = partial(
            PessimisticVectorEnv,
            dynamics,
            self.log,
            threshold=threshold_scale * largest,
            penalty=settings.penalty,
            num_envs=settings.num_envs,
            max_episode_steps=settings.max_episode_steps,
        )
        mean, scale = dynamics.states.mean[:, 0], dynamics.states.scale[:, 0]
        make_ppo = partial(new_ppo, task=self.task, mean=mean, scale=scale, seed=self.seed)
        checkpoint = self._begin(f"threshold{threshold_scale:g}")
        self.runs.append(PolicyRun(make_env, make_ppo, seed=self.seed, checkpoint=checkpoint))
        return self.runs[-1]

    @property
    def earlier_seconds(self) -> float:
        """That earlier calls took for what the stages were resumed from."""
        dynamics = self.checkpoints[0]
        return dynamics.earlier_seconds + sum(run.earlier_seconds for run in self.runs)

    def forget(self) -> None:
        """Remove the checkpoints."""
        for checkpoint in self.checkpoints:
            checkpoint.remove()

    def _begin(self, stage: str) -> Checkpoint:
        checkpoint = Checkpoint.of(
            self.path,
            self.log,
            self.task,
            seed=self.seed,
            device=self.device,
            suffix=f".{stage}",
            stage=stage,
            config=self.settings.to_json(),
        )
        self.checkpoints.append(checkpoint)
        return checkpoint
