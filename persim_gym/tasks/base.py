"""`Task`: everything that is known about a problem without learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from persim_gym.arguments import whole_number
from persim_gym.errors import (
    InvalidArgumentError,
    InvalidStateError,
    PerSimError,
    UnknownNameError,
)
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.declared import check_declared
from persim_gym.tasks.inputs import ChecksInputs
from persim_gym.tasks.names import telling, usual_names
from persim_gym.tasks.objective import TO_LEARN, PlanningObjective, RewardFn, TerminationFn, ToLearn
from persim_gym.tasks.spaces import as_float32, check_spaces, space_from_json, space_to_json
from persim_gym.tasks.system import Renderer, System
from persim_gym.types import FloatArray


@dataclass(frozen=True, eq=False)
class Task(ChecksInputs):
    """A problem that many heterogeneous agents share: spaces, reward, termination, time limit, initial states.

    For your own problem, give the spaces, a time limit and, if you know them, the reward and termination functions;
    `persim_gym.fit` learns whichever is left out. The built-in tasks also have the true system.
    """

    name: str
    """Ids are made of it, ``PerSim-<name>-agent0-v0``, if it has only letters, digits, "_", "-" and "."."""
    observation_space: spaces.Box
    """With one axis (D,); made float32."""
    action_space: spaces.Discrete | spaces.Box
    """Discrete from 0 on, or a Box with one axis (A,), made float32."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    reward: RewardFn = TO_LEARN
    """(observations (…, D), actions (…) or (…, A), next_observations (…, D)) -> (…), of NumPy arrays and of tensors.
    Wherever the package asks for it, the actions are those that were carried out (`executed`)."""
    terminated: TerminationFn = TO_LEARN
    """next_observations (…, D) -> (…) booleans, of NumPy arrays and of tensors."""
    observation_names: tuple[str, ...] = ()
    """(D,); those of the log that it is learned from or, if that has none, "observation 0", … if not given."""
    action_names: tuple[str, ...] = ()
    """(A,), or the one name of discrete actions; as the log has them or "action 0", …, or "action", if not given."""
    planning_objective: PlanningObjective | None = None
    """What planners maximize instead of the return. Read `objective`, which is the return if this is None."""
    initial_observations: Callable[[np.random.Generator, int], FloatArray] | None = None
    """(rng, B) -> (B, D). Without it a simulator starts in the first states of its log."""
    grid_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """(low (D,), high (D,)) of the states that value iteration covers; those of the observation space if not given."""
    covariates: tuple[Covariate, ...] = ()
    """What agents differ in, in the order of every array of covariates."""
    test_agents: tuple[tuple[float, ...], ...] = ()
    """Covariates of the agents every collected log begins with, agents 0, 1, …"""
    policy_training_agents: tuple[tuple[float, ...], ...] = ()
    """Covariates of the agents that the shipped logging policies were trained on."""
    make_system: Callable[[FloatArray], System] | None = None
    """Covariates (B, K) -> the true system of B copies."""
    make_renderer: Callable[[FloatArray, str], Renderer] | None = None
    """(covariates (K,), render mode) -> renderer."""
    render_fps: int = 50
    """Pictures a second."""
    reference: str | None = None
    """Where a process that does not know the task imports it from: "module:attribute". Kept in the files of ensembles,
    so that they can be loaded there although functions are in no file."""

    def __post_init__(self) -> None:
        check_spaces(self.observation_space, self.action_space)
        for name in ("observation_space", "action_space"):
            object.__setattr__(self, name, as_float32(getattr(self, name)))
        for what, usual in usual_names(self.observation_size, None if self.discrete else self.action_size).items():
            object.__setattr__(self, what, telling(what, getattr(self, what)) or usual)
        check_declared(self)
        self.limit_of(self.max_episode_steps)

    def __repr__(self) -> str:
        sizes = (
            f"{self.observation_size} observations, {self.action_size} {'' if self.discrete else 'continuous '}actions"
        )
        learned = f", {' and '.join(self.learned)} to be learned" if self.learned else ""
        return f"Task({self.name}: {sizes}, {self.max_episode_steps} steps{learned})"

    @property
    def given_names(self) -> dict[str, tuple[str, ...]]:
        """The "observation_names" and "action_names", () where they say no more than a number."""
        return {what: telling(what, getattr(self, what)) for what in ("observation_names", "action_names")}

    def named_as(self, names: Mapping[str, Sequence[str]]) -> Task:
        """Return the task with the ``given_names`` of something else where it has none; itself if that has none.

        Names of more or fewer coordinates than it has are not taken.
        """
        told = {what: telling(what, names.get(what, ())) for what, own in self.given_names.items() if not own}
        new = {what: found for what, found in told.items() if len(found) == len(getattr(self, what))}
        return replace(self, **new) if new else self

    @property
    def objective(self) -> PlanningObjective:
        """What planners maximize: the planning objective, or the return, the rewards up to the terminal state."""
        return self.planning_objective or PlanningObjective(self.reward, self.terminated)

    @property
    def has_own_functions(self) -> bool:
        """Whether the task has Python functions, which cannot be stored in a file."""
        return bool(self.functions)

    @property
    def functions(self) -> tuple[str, ...]:
        """Which of its fields no file holds: functions of its own, and what is made of them."""
        given = ("planning_objective", "initial_observations", "make_system", "make_renderer")
        own = [name for name in ("reward", "terminated") if name not in self.learned]
        return (*own, *(name for name in given if getattr(self, name) is not None))

    @property
    def learned(self) -> tuple[str, ...]:
        """Which of "reward" and "terminated" are to be learned from the log."""
        return tuple(name for name in ("reward", "terminated") if isinstance(getattr(self, name), ToLearn))

    def limit_of(self, max_episode_steps: int | None) -> int:
        """Return the time limit of an episode: the task's if None.

        Raises:
            InvalidArgumentError: it is not a whole number of at least 1.

        """
        limit = self.max_episode_steps if max_episode_steps is None else max_episode_steps
        return whole_number("max_episode_steps", limit)

    @cached_property
    def covariate_names(self) -> tuple[str, ...]:
        """Names of the K covariates, in the order of every covariate array."""
        return tuple(covariate.name for covariate in self.covariates)

    @property
    def default_covariates(self) -> FloatArray:
        """(K,): the covariates of the textbook system."""
        return np.array([covariate.default for covariate in self.covariates], dtype=np.float64)

    def sample_covariates(self, rng: np.random.Generator, num_agents: int) -> FloatArray:
        """Draw (N, K) covariates: the test agents first, the others uniform and independent."""
        low = np.array([covariate.low for covariate in self.covariates])
        high = np.array([covariate.high for covariate in self.covariates])
        drawn = rng.uniform(low, high, size=(num_agents, len(self.covariates)))
        fixed = np.array(self.test_agents, dtype=np.float64).reshape(len(self.test_agents), len(self.covariates))
        fixed = fixed[:num_agents]
        drawn[: len(fixed)] = fixed
        return drawn

    def covariate_vector(self, values: Mapping[str, float]) -> FloatArray:
        """Return (K,) covariates from named values; what is not named keeps its default."""
        unknown = sorted(set(values) - set(self.covariate_names))
        if unknown:
            raise UnknownNameError(
                f"task {self.name} has no covariate {unknown[0]!r}; it has {', '.join(self.covariate_names) or 'none'}"
            )
        vector = self.default_covariates
        for index, covariate in enumerate(self.covariates):
            vector[index] = covariate.checked(values.get(covariate.name, covariate.default), self.name)
        return vector

    def check_covariates(self, covariates: Any) -> FloatArray:
        """Return covariates given by a user as float64 (N, K), or raise `InvalidArgumentError`."""
        try:
            rows = [list(np.atleast_1d(row)) for row in np.atleast_2d(covariates)]
        except ValueError:  # rows of different lengths
            rows = [[]]
        if any(len(row) != len(self.covariates) for row in rows):
            raise InvalidArgumentError(
                f"covariates of task {self.name} must have shape (agents, {len(self.covariates)}): "
                f"{', '.join(self.covariate_names)}"
            )
        checked = [
            [covariate.checked(value, self.name) for covariate, value in zip(self.covariates, row, strict=True)]
            for row in rows
        ]
        return np.array(checked, dtype=np.float64).reshape(len(rows), len(self.covariates))

    def system(self, covariates: FloatArray) -> System:
        """Return the true system of B copies with covariates (B, K)."""
        if self.make_system is None:
            raise PerSimError(
                f"task {self.name} comes without a true system, so nothing can be collected or measured in it; "
                "give Task(make_system=...) if you have one"
            )
        return self.make_system(np.atleast_2d(np.asarray(covariates, dtype=np.float64)))

    def draw_initial_observations(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Draw states to begin in, float64 (B, D), from the task's own distribution.

        Raises:
            InvalidArgumentError: the task has none.
            InvalidStateError: its `initial_observations` returns no such states.

        """
        if self.initial_observations is None:
            raise InvalidArgumentError(f"task {self.name} has no initial states of its own; use starts='log'")
        drawn = self.initial_observations(rng, count)
        try:
            return self.check_states(drawn, count)
        except InvalidStateError as error:
            raise InvalidStateError(
                f"initial_observations of task {self.name} must return start states, {count} at this call: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold of the task: all but its functions, of which it has the names."""
        return {
            "name": self.name,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "max_episode_steps": int(self.max_episode_steps),
            "observation_names": list(self.observation_names),
            "action_names": list(self.action_names),
            "grid_bounds": self.grid_bounds,
            "covariates": [asdict(covariate) for covariate in self.covariates],
            "test_agents": self.test_agents,
            "policy_training_agents": self.policy_training_agents,
            "render_fps": self.render_fps,
            "learned": list(self.learned),
            "functions": list(self.functions),
            "reference": self.reference,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Task:
        """Return the task that `to_json` wrote, with a reward and a termination that are learned."""
        return cls(
            name=document["name"],
            observation_space=cast(spaces.Box, space_from_json(document["observation_space"])),
            action_space=space_from_json(document["action_space"]),
            max_episode_steps=document["max_episode_steps"],
            observation_names=tuple(document["observation_names"]),
            action_names=tuple(document.get("action_names", ())),
            covariates=tuple(Covariate(**covariate) for covariate in document["covariates"]),
            reference=document["reference"],
            grid_bounds=None if document["grid_bounds"] is None else _rows(document["grid_bounds"]),
            test_agents=_rows(document["test_agents"]),
            policy_training_agents=_rows(document["policy_training_agents"]),
            render_fps=document["render_fps"],
        )


def _rows(lists: Sequence[Sequence[float]]) -> Any:
    return tuple(tuple(row) for row in lists)
