"""Settings of CaDM, vanilla and PE-TS, and of its training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from persim_gym.arguments import below_one, first_repeated, whole_number
from persim_gym.baselines.layers import Features
from persim_gym.config import PRECISIONS, named_settings
from persim_gym.errors import InvalidArgumentError
from persim_gym.settings import Settings, checked, choice, finite, truth, whole, widths
from persim_gym.tasks import Task


def _coordinates(name: str, value: Any) -> tuple[int, ...]:
    """Return indices of coordinates, or raise `InvalidArgumentError`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidArgumentError(f"{name}={value!r} must be a tuple of coordinates, such as (0, 2)")
    found = tuple(whole_number(name, one, least=0) for one in value)
    if first_repeated(found) is not None:
        raise InvalidArgumentError(f"{name}={value!r} must have each coordinate once")
    return found


@dataclass(frozen=True)
class CaDMConfig(Settings):
    """Settings of CaDM and of its training; the defaults are Vanilla CaDM's, as in its authors' code."""

    probabilistic: bool = truth(False)
    """Whether the forward model predicts a variance, members learn from bootstrap samples and rollouts are sampled."""
    num_members: int = whole(1)
    """M: each with an encoder, a forward and a backward model of its own."""
    num_particles: int = whole(1)
    """P: trajectories of a rollout, as many for each member."""
    history_length: int = whole(10)
    """K: transitions that the context is computed from."""
    future_steps: int = whole(10)
    """How many transitions a context is trained to explain: the one after it and those that follow."""
    futures_per_context: int = whole(10)
    """Of these transitions, as many, drawn anew, enter a gradient step; fewer cost less and mean the same."""
    standardized_history: bool = truth(False)
    """Whether changes of state enter the history divided by their deviation over the log. In raw units, as in the
    authors' code, small ones, such as MountainCar's, hardly reach the encoder, beside actions of 0 and 1."""
    context_size: int = whole(10)
    encoder_hidden: tuple[int, ...] = widths((256, 128, 64))
    """Widths of the encoder's ReLU layers."""
    hidden: tuple[int, ...] = widths((200, 200, 200, 200), empty=False)
    """Widths of the swish layers of the forward and the backward model."""
    backward_weight: float = finite(0.5)
    """β: weight of the backward model's loss."""
    variance_weight: float = finite(0.01)
    """Weight of the distance between the learned bounds of the log variance."""
    batch_size: int = whole(256)
    """Contexts in a gradient step."""
    learning_rate: float = finite(1e-3, above=0)
    """Of Adam."""
    matmul_precision: str = choice("highest", choices=PRECISIONS)
    """Of training's matrix products, as `persim_gym.PerSimConfig` has it; with "medium" hidden units are bfloat16, too,
    on a CPU that multiplies them."""
    iterations: int = whole(20)
    """The log is replayed in so many parts; each iteration adds the next agents' trajectories."""
    max_epochs: int = whole(200)
    """Of each iteration."""
    max_gradient_steps: int = whole(150_000)
    """Of all iterations, each of which gets the same number of epochs."""
    validation_fraction: float = checked(below_one, 0.1)
    max_validation: int = whole(5000, least=0)
    """Contexts held out for early stopping, at random rows as in the authors' code: what follows such a row is also
    trained on, as the future of the rows before it, so that their loss says little of overfitting."""
    absolute: tuple[int, ...] = checked(_coordinates, ())
    """Coordinates of the observation whose next value is predicted itself and that are no input."""
    angles: tuple[int, ...] = checked(_coordinates, ())
    """Coordinates that enter by sine and cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = set(self.absolute) & set(self.angles)
        if both:
            raise InvalidArgumentError(f"coordinate {min(both)} is in absolute and in angles; it can be in one of them")
        if self.num_particles % self.num_members:
            raise InvalidArgumentError(
                f"num_particles={self.num_particles} must be a multiple of num_members={self.num_members}: change both"
            )
        if self.futures_per_context > self.future_steps:
            raise InvalidArgumentError(
                f"futures_per_context={self.futures_per_context} must be at most future_steps={self.future_steps}"
            )

    @property
    def features(self) -> Features:
        """What the networks see of a state."""
        return Features(self.absolute, self.angles)


VANILLA_CADM = CaDMConfig()
PE_TS_CADM = CaDMConfig(probabilistic=True, num_members=5, num_particles=20)
_PUBLISHED = {"Vanilla CaDM": VANILLA_CADM, "PE-TS CaDM": PE_TS_CADM}
CONFIGS = {
    **_PUBLISHED,
    # Ours.
    **{f"{name}+": config.with_changes(standardized_history=True) for name, config in _PUBLISHED.items()},
}
_TASK_FEATURES: dict[str, dict[str, Any]] = {"HalfCheetah": {"absolute": (0,), "angles": (2,)}}
"""As in the authors' code: the forward speed is predicted itself, the pitch seen by sine and cosine."""


def get_cadm_config(config: str | CaDMConfig | None, task_name: str) -> CaDMConfig:
    """Return a configuration by name, with the task's own features; None means "Vanilla CaDM".

    Raises:
        UnknownNameError: there is no configuration of that name.
        InvalidArgumentError: neither a name nor a configuration.

    """
    found = named_settings(config, CaDMConfig, CONFIGS, usual=("Vanilla CaDM",))
    return found if found is config else found.with_changes(**_TASK_FEATURES.get(task_name, {}))


def check_coordinates(config: CaDMConfig, task: Task) -> None:
    """Raise `InvalidArgumentError` if a configuration speaks of coordinates that a task does not have."""
    for name in ("absolute", "angles"):
        beyond = [one for one in getattr(config, name) if one >= task.observation_size]
        if beyond:
            raise InvalidArgumentError(
                f"{name} has coordinate {beyond[0]}; those of task {task.name} are 0 … {task.observation_size - 1}"
            )
