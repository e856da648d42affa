"""`Trajectories`: an offline data set in columns, one or more episodes of each of many agents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym.arguments import as_list
from persim_gym.data import log_file
from persim_gym.data.columns import ARRAYS
from persim_gym.data.consistency import check_consistent
from persim_gym.data.episode_bounds import cut_ends, first_rows, with_successors
from persim_gym.data.joining import joined_fields
from persim_gym.data.labels import find_agent, find_listed
from persim_gym.data.parts import cut_before, held_out_rows, part_fields, rows_of_agents
from persim_gym.data.provenance import checked_provenance
from persim_gym.data.reprs import synthetic_note
from persim_gym.data.validation import (
    action_column,
    agent_indices,
    check_resolution,
    column_names,
    covariate_rows,
    flags,
    numbers,
    told_apart,
)
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.tasks import Task
from persim_gym.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """A log of T transitions of N agents in E episodes.

    The rows of an episode are consecutive and in time order. Every agent has at least one transition. Made by
    `Trajectories.from_arrays`, `persim_gym.collect` or `Trajectories.load`, which validate; do not fill it by hand.
    """

    agents: IntArray
    """(T,) int32: index of the acting agent, 0 … N − 1."""
    observations: FloatArray
    """(T, D) float32."""
    actions: FloatArray | IntArray
    """(T,) int64 for discrete actions, (T, A) float32 for continuous ones."""
    rewards: FloatArray
    """(T,) float32."""
    next_observations: FloatArray
    """(T, D) float32."""
    terminated: BoolArray
    """(T,): the transition reached a terminal state."""
    truncated: BoolArray
    """(T,): the episode was cut after the transition, by a time limit or by the end of the recording."""
    episode_starts: IntArray
    """(E,) int64: row of each episode's first transition, ascending, the first 0."""
    agent_labels: tuple[str, ...]
    """(N,): a name for each agent."""
    covariates: FloatArray | None = None
    """(N, K) float64: hidden properties of the agents, if known. Never shown to the model."""
    covariate_names: tuple[str, ...] = ()
    task: str | None = None
    """Name of the task the log belongs to, if known."""
    observation_names: tuple[str, ...] = ()
    """(D,), such as the columns of the table it was made from; () if not known."""
    action_names: tuple[str, ...] = ()
    """(A,), or the one name of discrete actions; () if not known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the log comes from: policy, seed, or the synthetic data's simulator."""

    @classmethod
    def from_arrays(
        cls,
        *,
        agents: Sequence[Any] | np.ndarray,
        observations: Any,
        actions: Any,
        next_observations: Any = None,
        rewards: Any = None,
        terminated: Any = None,
        truncated: Any = None,
        episode_starts: Any = None,
        agent_labels: Sequence[Any] | None = None,
        covariates: Any = None,
        covariate_names: Sequence[str] = (),
        task: str | Task | None = None,
        observation_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> Trajectories:
        """Make trajectories from a user's own log, in time order within each episode.

        Args:
            agents: (T,) who acted in each row: labels of any kind, or indices into ``agent_labels`` if that is given.
            observations: (T, D) observation before the action.
            actions: (T,) integers for discrete actions, (T, A) numbers for continuous ones.
            next_observations: (T, D) observation after the action. Without it each row's successor in its episode is
                taken, and the last row of each episode, which has none, is dropped.
            rewards: (T,); zero where not given.
            terminated: (T,) whether the row reached a terminal state; False where not given.
            truncated: (T,) whether the episode was cut after the row; where not given, every episode's last row that
                is not terminated.
            episode_starts: (E,) rows at which episodes begin. Without it an episode begins with the log, where the
                agent changes, and after a row that is terminated or truncated; an agent may then come back after
                rows of others only if its episode was over. Without ``next_observations`` a single row after an
                episode's end, the agent's last, is the state in which it ended; more rows after a
                terminated one are refused.
            agent_labels: (N,) names of the agents; taken from ``agents``, in order of first appearance, if not given.
            covariates: (N, K) known properties of the agents, in the order of their labels.
            covariate_names: (K,) their names, none twice.
            task: what it is a log of; the log keeps its name.
            observation_names: (D,), if they have names; by default those of the columns, if observations are a data
                frame, such as pandas'.
            action_names: (A,), or the one name of discrete actions; by default as for observations.
            provenance: anything JSON can hold that says where the log comes from.

        Raises:
            InvalidDataError: arrays that do not fit together, NaN or infinity, numbers that float32 cannot tell apart,
                an agent without a transition, rows of an episode that do not stand together, data frames whose columns
                are in another order.

        """
        observation_names = column_names("observation_names", observation_names, observations)
        action_names = column_names("action_names", action_names, actions)
        column_names("observation_names", observation_names, next_observations)
        given, observations = observations, numbers("observations", observations, 2)
        count = len(observations)
        if 0 in observations.shape:
            what = "transition" if count == 0 else "observation coordinate"
            raise InvalidDataError(f"the log has no {what}: observations have shape {observations.shape}")
        indices, labels = agent_indices(agents, agent_labels, count)
        covariate_names = tuple(as_list("covariate_names", covariate_names, "names"))
        covariates = covariate_rows(covariates, covariate_names)
        ended = flags("terminated", terminated, count)
        cut = flags("truncated", truncated, count)
        starts = first_rows(episode_starts, indices, ended, cut, with_last=next_observations is None)
        columns: dict[str, Any] = {
            "agents": indices,
            "observations": observations,
            "actions": action_column(actions, count),
            "rewards": np.zeros(count, np.float32) if rewards is None else told_apart("rewards", rewards, 1, count),
            "terminated": ended,
            "truncated": cut,
        }
        following = None if next_observations is None else numbers("next_observations", next_observations, 2, count)
        check_resolution("observations", given, next_observations, starts)
        if following is None:
            columns, starts = with_successors(columns, starts)
        else:
            columns["next_observations"] = following
        if truncated is None:
            columns["truncated"] = cut_ends(columns["terminated"], starts)
        log = cls(
            **columns,
            episode_starts=starts,
            agent_labels=labels,
            covariates=covariates,
            covariate_names=covariate_names,
            task=task.name if isinstance(task, Task) else task,
            observation_names=observation_names,
            action_names=action_names,
            provenance=checked_provenance(provenance),
        )
        check_consistent(log)
        return log

    @property
    def num_transitions(self) -> int:
        """T."""
        return len(self.agents)

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agent_labels)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.episode_starts)

    @property
    def discrete(self) -> bool:
        """Whether actions are indices."""
        return self.actions.ndim == 1

    @cached_property
    def episode_ends(self) -> IntArray:
        """(E,): the row after each episode's last."""
        return np.append(self.episode_starts[1:], self.num_transitions)

    @property
    def episode_lengths(self) -> IntArray:
        """(E,)."""
        return self.episode_ends - self.episode_starts

    @property
    def steps_left(self) -> IntArray:
        """(T,): how many transitions of its episode there are from each on, itself included."""
        return np.repeat(self.episode_ends, self.episode_lengths) - np.arange(self.num_transitions)

    @property
    def episode_agents(self) -> IntArray:
        """(E,): index of each episode's agent."""
        return self.agents[self.episode_starts]

    @property
    def episode_returns(self) -> FloatArray:
        """(E,) float64: sum of each episode's rewards."""
        return np.add.reduceat(np.asarray(self.rewards, dtype=np.float64), self.episode_starts)

    @property
    def initial_observations(self) -> FloatArray:
        """(E, D): the first observation of each episode."""
        return np.asarray(self.observations[self.episode_starts])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all columns: the identity of the data a model was trained on."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    @property
    def given_names(self) -> dict[str, tuple[str, ...]]:
        """The "observation_names" and "action_names", as `Task.named_as` takes them."""
        return {"observation_names": self.observation_names, "action_names": self.action_names}

    @property
    def source(self) -> dict[str, Any]:
        """What the provenance of a model says of the log it was learned from."""
        names = {what: list(given) for what, given in self.given_names.items() if given}
        return {
            "data_digest": self.digest,
            "data": dict(self.provenance),
            "num_transitions": self.num_transitions,
            **({"names": names} if names else {}),
        }

    def agent_index(self, agent: int | str) -> int:
        """Return the index of an agent given by index (int) or label (str)."""
        return find_agent(agent, self.agent_labels)

    def select(self, agents: Sequence[int | str]) -> Trajectories:
        """Return the trajectories of some agents, in the order given.

        Raises:
            UnknownNameError: there is no such agent.
            InvalidArgumentError: no list of agents, an empty one, or one with an agent twice.

        """
        chosen = find_listed(agents, self.agent_labels)
        return replace(self, **part_fields(self, rows_of_agents(self, chosen), chosen))

    def split(self, fraction: float, by: str = "time", seed: int = 0) -> tuple[Trajectories, Trajectories]:
        """Return a log to learn from, and one of what is held out of it to measure on.

        Together they have every transition once. Labels, covariates, task and provenance are those of the whole, so
        that parts of a synthetic log are synthetic. The numbers held out are rounded, but at least one of several.

        Args:
            fraction: to hold out, above 0 and below 1.
            by: "time" holds out the last transitions of each agent, in the order of the log: an episode that is cut in
                two is truncated there, and its rest is another episode. "episode" holds out the last episodes of each
                agent. The log to learn from keeps all agents then; the other one lacks those with a single transition
                or episode, so that an index is not that of the same agent, while a label is. "agent" holds out
                agents, drawn at random, of whom a model learned from the others knows nothing
                (`persim_gym.personalize`).
            seed: of the agents drawn.

        Returns:
            The log that is kept, and the one held out.

        Raises:
            InvalidArgumentError: a fraction or a seed out of its range, or an unknown ``by``.
            InvalidDataError: no agent has several transitions, or episodes, or there are no several agents.

        """
        held = held_out_rows(self, fraction, by, seed)
        whole = replace(self, truncated=self.truncated | cut_before(self, held))

        def part(rows: IntArray) -> Trajectories:
            return replace(whole, **part_fields(whole, rows, np.unique(whole.agents[rows])))

        return part(np.flatnonzero(~held)), part(np.flatnonzero(held))

    @staticmethod
    def concatenate(logs: Sequence[Trajectories]) -> Trajectories:
        """Join logs of the same kind; agents with the same label are the same agent.

        The covariates come in the order of the first log's.

        Raises:
            InvalidDataError: logs of different tasks, shapes, kinds of actions or covariates.

        """
        logs = as_list("logs", logs, "logs")
        if not logs:
            raise InvalidDataError("there is nothing to concatenate")
        for log in logs:
            check_is_log(log)
        joined = replace(logs[0], **joined_fields(logs))
        check_consistent(joined)
        return joined

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, as a whole or not at all.

        Raises:
            FileWriteError: it cannot be written.
            InvalidArgumentError: there is a file that holds no log, or the name is a table's.

        """
        log_file.write(path, self)

    @classmethod
    def load(cls, path: str | Path) -> Trajectories:
        """Open a file written by `save`.

        Columns are memory-mapped, so a log larger than memory can be opened, though not trained on.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: damaged, of a newer format, or not a log.
            InvalidDataError: what it holds is no log.

        """
        log = cls(**log_file.read(path))
        check_consistent(log)
        return log

    def __repr__(self) -> str:
        action = "discrete actions" if self.discrete else f"{self.actions.shape[1]} continuous actions"
        lengths = self.episode_lengths
        earned = f"return {self.episode_returns.mean():.1f}" if np.any(self.rewards) else "no rewards"
        return (
            f"Trajectories({self.task or 'no task'}: {self.num_agents} agents, {self.num_episodes} episodes, "
            f"{self.num_transitions} transitions; {self.observations.shape[1]} observations, {action}; "
            f"episode length {lengths.mean():.1f} ({lengths.min()}–{lengths.max()}), {earned}"
            f"{synthetic_note(self.provenance)})"
        )

    def __len__(self) -> int:
        return self.num_transitions


def check_is_log(log: Any) -> None:
    """Raise `InvalidArgumentError` for anything but `Trajectories`, such as a path."""
    if not isinstance(log, Trajectories):
        raise InvalidArgumentError(
            f"{type(log).__name__} is no log: give Trajectories (persim_gym.collect, from_dataframe, "
            "Trajectories.from_arrays, Trajectories.load)"
        )
