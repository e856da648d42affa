"""The axis letters used in every docstring, and the array types that go with them.

======  ==================================================================
letter  axis
======  ==================================================================
B       batch of states, environments or transitions
M       ensemble members
N       agents
D       observation coordinates
A       action coordinates (continuous) or number of actions (discrete)
C       candidate action sequences of a planner
E       episodes of a log, or environments planned for at once
H       planning or prediction horizon, in steps
K       covariates; in CaDM, transitions that tell the context
P       particles of CaDM's planner
r       latent factors, the rank of the factorization
T       transitions of a log
======  ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from persim_gym.simulator import Simulator
    from persim_gym.tasks import Task

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]

ReturnFn = Callable[[IntArray, np.ndarray], FloatArray]
"""(environments (n,), actions (n, C, H) or (n, C, H, A)) -> returns (n, C): what a planner asks of a model."""


@dataclass(frozen=True)
class Prediction:
    """One simulated step of B states."""

    next_observations: FloatArray
    """(B, D): the aggregate of the members."""
    disagreement: FloatArray
    """(B, D): standard deviation over the members, in the units of the observation."""
    standard_deviation: FloatArray | None = None
    """(B, D): of the next observation, by disagreement, the uncertainty of the agent's factor and noise together;
    where it was asked for."""


class NumberedLabels(Sequence[str]):
    """The labels "0", "1", … of N agents without names, as a sequence that costs nothing however many there are."""

    def __init__(self, count: int) -> None:
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        chosen = self._numbers[index]
        return str(chosen) if isinstance(chosen, int) else tuple(map(str, chosen))

    def __contains__(self, label: object) -> bool:
        return isinstance(label, str) and label.isdecimal() and str(int(label)) == label and int(label) in self._numbers

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        if value not in self:
            raise ValueError(f"{value!r} is not in the labels")
        return int(value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NumberedLabels):
            return self._numbers == other._numbers
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"NumberedLabels({len(self)})"


class Policy(Protocol):
    """Anything that acts: Stable-Baselines3's `predict` signature."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]:
        """Return actions (B,) or (B, A) for observations (B, D), and the policy's own state.

        The state is None, or can be indexed by rows of the batch, for episodes that are over leave it.
        """
        ...


class LearnedDynamics(Protocol):
    """What environments, planners and evaluation ask of a model of N agents: PerSim's ensemble, or a baseline's."""

    @property
    def task(self) -> Task: ...

    @property
    def agent_labels(self) -> Sequence[str]: ...

    @property
    def initial_observations(self) -> FloatArray:
        """(E, D): first observations of the log's episodes."""
        ...

    @property
    def covariates(self) -> FloatArray | None:
        """(N, K), if known."""
        ...

    @property
    def num_agents(self) -> int:
        """N."""
        ...

    @property
    def num_members(self) -> int:
        """M: trajectories that a simulator follows side by side."""
        ...

    def agent_index(self, agent: int | str) -> int:
        """Return the index of an agent given by index (int) or label (str)."""
        ...

    def agent_covariates(self, agent: int | str) -> FloatArray:
        """Return (K,) hidden covariates of an agent, or raise `InvalidArgumentError` where they are not known."""
        ...

    def simulator(
        self,
        agent: int | str | None = None,
        *,
        agents: Sequence[int | str] | None = None,
        aggregate: str = "mean",
        device: str = "cpu",
    ) -> Simulator:
        """Bind to one agent, or to one agent for each row of a batch."""
        ...
