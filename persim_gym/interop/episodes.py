"""What the bridges to data sets of episodes share: a log taken apart into its episodes, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.data.joining import joint_names
from persim_gym.data.log_and_task import check_log
from persim_gym.data.provenance import joint_provenance
from persim_gym.data.trajectories import Trajectories, check_is_log
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.tasks import Task, get_task, task_names
from persim_gym.types import FloatArray
from persim_gym.user_warnings import warn_user


@dataclass(frozen=True)
class Description:
    """What a foreign episode does not hold by itself; JSON both ways."""

    agent: str
    """Label."""
    agent_index: int
    """Place of the agent in its log."""
    covariates: Mapping[str, float] | None = None
    """By name, in the log's order, if known."""
    task: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The log's ``given_names``, of observations and actions."""


@dataclass(frozen=True)
class LoggedEpisode:
    """The L transitions of one episode."""

    observations: FloatArray
    """(L, D)."""
    actions: np.ndarray
    """(L,) or (L, A)."""
    rewards: FloatArray
    """(L,)."""
    next_observations: FloatArray | None
    """(L, D); None where a foreign data set does not hold the observation after the last action."""
    terminated: bool
    truncated: bool
    description: Description | None = None
    """None for an episode of foreign origin."""


def split(log: Trajectories) -> Iterator[LoggedEpisode]:
    """Yield the episodes of a log, each with all that is known of its agent."""
    for start, end in zip(log.episode_starts, log.episode_ends, strict=True):
        agent = int(log.agents[start])
        covariates = None if log.covariates is None else log.covariates[agent].tolist()
        yield LoggedEpisode(
            np.asarray(log.observations[start:end]),
            np.asarray(log.actions[start:end]),
            np.asarray(log.rewards[start:end]),
            np.asarray(log.next_observations[start:end]),
            bool(log.terminated[end - 1]),
            bool(log.truncated[end - 1]),
            Description(
                log.agent_labels[agent],
                agent,
                None if covariates is None else dict(zip(log.covariate_names, covariates, strict=True)),
                log.task,
                dict(log.provenance),
                log.given_names,
            ),
        )


def join(
    episodes: Sequence[LoggedEpisode],
    *,
    agents: str | Sequence[str] | None = None,
    task: str | Task | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Trajectories:
    """Return the log of some episodes.

    An episode without next observations loses its last row, and the row before it ends it, as truncated.

    Args:
        episodes: in the order of the log.
        agents: (E,) a label for each episode, or one label for all; what the episodes say if not given.
        task: instead of the one the episodes name.
        provenance: instead of what the episodes say.

    Raises:
        InvalidDataError: nobody says whose the episodes are, episodes of different tasks, shapes, names or covariates,
            an agent with two values of one, a single row without its next observation, values outside the task.

    """
    if not episodes:
        raise InvalidDataError("the data set has no episode")
    _check_shapes(episodes)
    known = [episode.description for episode in episodes if episode.description is not None]
    of_episodes, labels = _agents_of(episodes, known, agents)
    names, covariates = _covariates_of(labels, of_episodes, episodes, named=agents is not None)
    position = {label: index for index, label in enumerate(labels)}
    tasks = list(dict.fromkeys(one.task for one in known)) if task is None else [task]
    if len(tasks) > 1:
        raise InvalidDataError(f"the episodes are of different tasks, {tasks[0]} and {tasks[1]}: give task=")
    named = tasks[0] if tasks else None
    episodes = [_with_successors(index, episode) for index, episode in enumerate(episodes)]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(episode, name) for episode in episodes])
        for name in ("observations", "actions", "rewards", "next_observations")
    }
    lengths = [len(episode.observations) for episode in episodes]
    last = np.cumsum(lengths) - 1
    for name in ("terminated", "truncated"):
        columns[name] = np.zeros(len(columns["observations"]), bool)
        columns[name][last] = [getattr(episode, name) for episode in episodes]
    origins = [{} if episode.description is None else episode.description.provenance for episode in episodes]
    log = Trajectories.from_arrays(
        **columns,
        agents=np.repeat([position[label] for label in of_episodes], lengths),
        agent_labels=labels,
        episode_starts=np.append(0, last[:-1] + 1),
        covariates=covariates,
        covariate_names=names,
        task=named.name if isinstance(named, Task) else named,
        **joint_names([one.names for one in known]),
        provenance=joint_provenance(origins) if provenance is None else provenance,
    )
    if task is not None:
        check_log(log, get_task(task))
    return log


def known_task(log: Trajectories, task: str | Task | None) -> Task | None:
    """Return the task of a log if it is known, after a check that the log fits it."""
    check_is_log(log)
    named = log.task if task is None else task
    if named is None or (task is None and named not in task_names()):
        return None
    found = get_task(named)
    check_log(log, found)
    return found


def number_of_actions(log: Trajectories, task: Task | None, action_size: int | None) -> int:
    """Return A: the task's, or what the user says; an action that no row of a log takes cannot be seen in the log."""
    if not log.discrete:
        return log.actions.shape[1]
    if action_size is None and task is None:
        raise InvalidArgumentError(
            f"the log names {'no task' if log.task is None else f'task {log.task!r}, which is not known here'}, so its "
            "number of actions is unknown: give task= or action_size="
        )
    size = task.action_size if action_size is None else whole_number("action_size", action_size)
    if task is not None and size != task.action_size:
        raise InvalidArgumentError(
            f"action_size={size}, but task {task.name} has {task.action_size} actions: leave it out"
        )
    if log.actions.max() >= size:
        raise InvalidArgumentError(f"action_size={size}, but the log has action {log.actions.max()}")
    return size


def _check_shapes(episodes: Sequence[LoggedEpisode]) -> None:
    first = episodes[0]
    for index, episode in enumerate(episodes):
        for name, wanted, axes in (
            ("observations", first.observations, 2),
            ("actions", first.actions, first.actions.ndim),
        ):
            found = getattr(episode, name)
            if name == "observations" and found.ndim != 2:
                raise InvalidDataError(
                    f"the observations of episode {index} have shape {found.shape}; a log takes vectors, "
                    "(steps, size): flatten them"
                )
            if found.ndim != axes or found.shape[1:] != wanted.shape[1:]:
                raise InvalidDataError(
                    f"the {name} of episode {index} have shape {found.shape}, those of episode 0 {wanted.shape}: "
                    "those of a log have one length; leave out what differs"
                )
        if len(episode.observations) == 0:
            raise InvalidDataError(f"episode {index} has no transition; leave it out")


def _with_successors(index: int, episode: LoggedEpisode) -> LoggedEpisode:
    """Return an episode whose every row has its next observation."""
    if episode.next_observations is not None:
        return episode
    if len(episode.observations) == 1:
        raise InvalidDataError(f"episode {index} has a single row and no next observation; leave it out")
    return replace(
        episode,
        observations=episode.observations[:-1],
        actions=episode.actions[:-1],
        rewards=episode.rewards[:-1],
        next_observations=episode.observations[1:],
        terminated=False,
        truncated=True,
    )


def _agents_of(
    episodes: Sequence[LoggedEpisode], known: Sequence[Description], agents: str | Sequence[str] | None
) -> tuple[list[str], tuple[str, ...]]:
    """Return the label of each episode's agent (E,), and the agents' labels (N,)."""
    if agents is None:
        if len(known) < len(episodes):
            raise InvalidDataError(
                "the data set does not say whose its episodes are: give agents=, a label for each of its "
                f"{len(episodes)} episodes, or a single label if they are all of one agent"
            )
        in_order = sorted(known, key=lambda one: one.agent_index)
        return [one.agent for one in known], tuple(dict.fromkeys(one.agent for one in in_order))
    named = [agents] * len(episodes) if isinstance(agents, str) else [str(agent) for agent in agents]
    if len(named) != len(episodes):
        raise InvalidDataError(f"agents= names {len(named)} agents for {len(episodes)} episodes; give one for each")
    return named, tuple(dict.fromkeys(named))


def _covariates_of(
    labels: Sequence[str], of_episodes: Sequence[str], episodes: Sequence[LoggedEpisode], *, named: bool
) -> tuple[tuple[str, ...], FloatArray | None]:
    """Return the covariates' names (K,), in the order of the first episode's, and values (N, K) where all are known.

    Warns where only some are. An agent whose episodes differ is refused, or not known if the user ``named`` the agents.
    """
    known: dict[str, Mapping[str, float]] = {}
    joined: set[str] = set()
    for index, (label, episode) in enumerate(zip(of_episodes, episodes, strict=True)):
        if episode.description is None or episode.description.covariates is None:
            continue
        covariates = episode.description.covariates
        first = next(iter(known.values()), covariates)
        if set(covariates) != set(first):
            raise InvalidDataError(
                f"episode {index} has the covariates {', '.join(covariates)}, those before it have {', '.join(first)}: "
                "a log has one set of them; read episodes with others from a buffer of their own"
            )
        before = known.setdefault(label, covariates)
        if before != covariates and not named:
            raise InvalidDataError(
                f"agent {label!r} has covariates {dict(before)} in one episode and {dict(covariates)} in episode "
                f"{index}; give different agents different labels, agents="
            )
        if before != covariates:
            joined.add(label)
    unknown = [label for label in labels if label not in known or label in joined]
    if unknown:
        if known:
            warn_user(
                f"the covariates of agent {unknown[0]!r} are not known, or differ between its episodes, so that those "
                "of all agents are left out: a log has them of every agent or of none",
            )
        return (), None
    names = tuple(next(iter(known.values())))
    return names, np.array([[known[label][name] for name in names] for label in labels], np.float64)
