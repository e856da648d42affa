"""`PerSimConfig`: the settings of the model and of its training, and the paper's settings by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.settings import Settings, choice, finite, truth, whole, widths

RANKS = (3, 5, 10, 15, 20, 30)
"""The ranks among which the paper selects by validation error."""
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
"""Of Adam (Kingma and Ba, ICLR 2015), as its authors and torch have them."""
S = TypeVar("S", bound=Settings)
PRECISIONS = ("highest", "high", "medium")
"""As in `torch.set_float32_matmul_precision`."""


@dataclass(frozen=True)
class PerSimConfig(Settings):
    """PerSim (Agarwal et al., NeurIPS 2021): change of coordinate d = Σ_l u_l(agent)·v_l(state, d)·w_l(action)."""

    rank: int = whole(5)
    """r, the number of latent factors."""
    state_hidden: tuple[int, ...] = widths((256,), empty=False)
    """Widths of the state encoder's ReLU layers."""
    action_hidden: tuple[int, ...] = widths((256, 256))
    """Widths of the action encoder's ReLU layers; not used for discrete actions, which have a table."""
    linear_skip: bool = truth(False)
    """Whether the state encoder has a linear path beside its ReLU layers."""
    normalize: bool = truth(True)
    """Whether states and their changes are standardized over the log."""
    num_members: int = whole(5)
    """M: same data, different initial weights and batches."""
    num_candidates: int = whole(0, least=0)
    """Members trained, of which the ``num_members`` with the lowest free-running error are kept
    (`persim_gym.training.selection`); 0 trains as many as are kept, as the paper does."""
    epochs: int = whole(300)
    """Passes over the log."""
    batch_size: int = whole(256)
    """Transitions of a step of the optimizer, for each member."""
    max_steps_per_epoch: int = whole(0, least=0)
    """Largest number of optimizer steps per epoch; for longer logs the batches grow instead. 0 for no limit."""
    learning_rate: float = finite(1e-3, above=0)
    """Of Adam."""
    halve_learning_rate_every: int = whole(150, least=0)
    """The learning rate is halved every this many epochs; 0 for never."""
    huber_threshold: float | None = finite(None, above=0, optional=True)
    """Threshold of Huber's loss in units of the targets, beyond which it grows linearly; None for the squared error."""
    clip_states: bool = truth(False)
    """Whether simulated states are kept within the observation space; the paper's are not."""
    weight_decay: float = finite(0.0)
    """Decoupled from the gradient, as in AdamW (Loshchilov and Hutter, ICLR 2019)."""
    matmul_precision: str = choice("highest", choices=PRECISIONS)
    """Of the matrix products that train large networks, as `torch.set_float32_matmul_precision` has it: "high" and
    "medium" are faster where the device multiplies TensorFloat32 or bfloat16 numbers, and change nothing elsewhere."""
    refit_factors: bool = truth(False)
    """Whether their posterior means (`persim_gym.factors.inference`) replace the agents' factors after training."""
    refit_rounds: int = whole(0, least=0)
    """Rounds in which, after that, the state encoder's last layer and the factors are refitted in turns
    (`persim_gym.factors.refit`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_candidates and self.num_candidates < self.num_members:
            raise InvalidArgumentError(
                f"num_candidates={self.num_candidates} must be 0 or at least num_members={self.num_members}"
            )
        if self.refit_rounds and not self.refit_factors:
            raise InvalidArgumentError(f"refit_rounds={self.refit_rounds} needs refit_factors=True")

    def learning_rate_in(self, epoch: int) -> float:
        """Return the learning rate of an epoch, the first being 0."""
        every = self.halve_learning_rate_every
        return self.learning_rate * 0.5 ** (epoch // every if every else 0)

    def batch_size_for(self, num_transitions: int) -> int:
        """Return the size of the batches when so many transitions are learned from."""
        if self.max_steps_per_epoch == 0:
            return self.batch_size
        return max(self.batch_size, -(-num_transitions // self.max_steps_per_epoch))


_MOUNTAIN_CAR = PerSimConfig(rank=3, normalize=False, batch_size=512)
_CART_POLE = PerSimConfig(rank=5, normalize=False, batch_size=64)
_HALF_CHEETAH = PerSimConfig(rank=15, state_hidden=(512,) * 4, action_hidden=(512, 512), batch_size=1024)

CONFIGS: dict[str, PerSimConfig] = {
    # The paper's: the settings of the authors' released code, which is later than the text; "-text" is the text's.
    "MountainCar": _MOUNTAIN_CAR,
    "CartPole": _CART_POLE,
    "HalfCheetah": _HALF_CHEETAH,
    "HalfCheetah-text": _HALF_CHEETAH.with_changes(state_hidden=(256,) * 4, action_hidden=(256, 256), batch_size=512),
    # Ours ("PerSim+"): a higher learning rate that decays. MountainCar's rare hits of the wall are outliers in the
    # velocity's change, which a squared error lets bend everything else. CartPole near its balance is nearly linear,
    # and so, where the log is silent, is a model with a linear path. Rank 5 is enough for its equations, but every
    # third member then gets stuck at an error twenty times the others'; of rank 6 one in fifteen does, so the best five
    # of eight are kept; of rank 8 the short poles come out worse. The decay of the weights keeps them from the minimum,
    # to which refitting in closed form then takes them: a quarter to a half off the short poles' error on random data,
    # nine tenths on pure. Good policies leave logs eight times as long; larger batches learn them in as many steps.
    # HalfCheetah's members, too, stay closer to the log with a linear path, and with twice the learning rate; bfloat16
    # products learn what float32 ones do. That was found with layers of 256 and 40 epochs.
    "MountainCar+": _MOUNTAIN_CAR.with_changes(
        normalize=True,
        huber_threshold=0.1,
        clip_states=True,
        learning_rate=3e-3,
        halve_learning_rate_every=16,
        epochs=120,
        refit_factors=True,
    ),  # fmt: skip
    "CartPole+": _CART_POLE.with_changes(
        rank=6,
        clip_states=True,
        linear_skip=True,
        weight_decay=0.1,
        epochs=600,
        batch_size=128,
        max_steps_per_epoch=100,
        learning_rate=3e-3,
        halve_learning_rate_every=80,
        num_candidates=8,
        refit_factors=True,
        refit_rounds=30,
    ),
    "HalfCheetah+": _HALF_CHEETAH.with_changes(
        linear_skip=True,
        learning_rate=2e-3,
        halve_learning_rate_every=75,
        refit_factors=True,
        matmul_precision="medium",
    ),
    # A table of one's own: squared error, whose minimizer is the mean even where changes are rare jumps, and factors
    # that are the posterior's, so that an agent of two rows is not taken for more than these say.
    "default": PerSimConfig(clip_states=True, halve_learning_rate_every=50, num_candidates=10, refit_factors=True),
}


def get_config(config: str | PerSimConfig | None, task_name: str) -> PerSimConfig:
    """Return a configuration by name; None means ours for the task, else the paper's, else "default".

    Raises:
        UnknownNameError: there is no configuration of that name.
        InvalidArgumentError: neither a name nor a configuration.

    """
    return named_settings(config, PerSimConfig, CONFIGS, usual=(f"{task_name}+", task_name, "default"))


def named_settings(config: str | S | None, kind: type[S], named: Mapping[str, S], *, usual: Sequence[str]) -> S:
    """Return settings that are given themselves or by name; None means the first of the ``usual`` names that exists.

    Raises:
        UnknownNameError: there are no settings of that name.
        InvalidArgumentError: neither a name nor settings of that kind.

    """
    if isinstance(config, kind):
        return config
    if config is not None and not isinstance(config, str):
        raise InvalidArgumentError(
            f"config={config!r} must be a name or a {kind.__name__}; give single settings by their own names, such as "
            "learning_rate=1e-3"
        )
    for name in usual if config is None else (config,):
        if name in named:
            return named[name]
    raise UnknownNameError(f"unknown config {config!r}; named ones are {', '.join(named)}")
