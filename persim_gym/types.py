"""The axis letters of the docstrings' shapes, and the array types that go with them.

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
F       features of a state (CaDM)
G       grid points of value iteration
H       planning or prediction horizon, in steps
I, O    inputs and outputs of a layer, an encoder or a regression
J       features that the last layer of the state encoder sees
K       covariates; in CaDM, transitions that tell the context
L       transitions of one episode
P       particles of CaDM's planner
Q       networks of BCQ and CQL for discrete actions
r       latent factors, the rank of the factorization
S       segments of episodes
T       transitions of a log
W       units of a hidden layer, padded for a kernel
======  ==================================================================

A small letter is a part of the axis: n of N agents or of T transitions, m of M members, b of B states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
    """(B, D): standard deviation of the next observation, from the members' disagreement, the uncertainty of the
    agent's factors and noise. None unless it was asked for."""


class Policy(Protocol):
    """Anything that acts: Stable-Baselines3's `predict` signature."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]:
        """Return actions (B,) or (B, A) for observations (B, D), and the policy's own state.

        The state is None, or can be indexed by rows of the batch, for episodes that are over leave it.
        """
        ...
