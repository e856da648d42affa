"""d3rlpy: logs as its replay buffers, and back.

d3rlpy's own `Episode` holds no observation after the last action: an episode that is not terminated loses its last
transition, and the state that ends a terminated one is lost. `Episode` here holds the next observation of every
transition; d3rlpy's algorithms take it like their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from persim_gym import extras
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.interop.episodes import Description, LoggedEpisode, join, known_task, number_of_actions, split
from persim_gym.tasks import Task
from persim_gym.types import FloatArray


@dataclass(frozen=True)
class Episode:
    """An episode of L transitions as d3rlpy's `EpisodeBase` protocol wants it, with every next observation."""

    observations: FloatArray
    """(L, D) float32."""
    actions: np.ndarray
    """(L, 1) int64 or (L, A) float32."""
    rewards: FloatArray
    """(L, 1) float32."""
    next_observations: FloatArray
    """(L, D) float32."""
    terminated: bool
    truncated: bool
    description: Description

    @property
    def observation_signature(self) -> Any:
        return _signature(self.observations)

    @property
    def action_signature(self) -> Any:
        return _signature(self.actions)

    @property
    def reward_signature(self) -> Any:
        return _signature(self.rewards)

    @property
    def transition_count(self) -> int:
        """L: none is lost."""
        return len(self.actions)

    def __len__(self) -> int:
        return len(self.actions)

    def size(self) -> int:
        """Return L."""
        return len(self.actions)

    def compute_return(self) -> float:
        """Return the sum of the rewards."""
        return float(self.rewards.sum())

    def serialize(self) -> dict[str, Any]:
        """Return what `ReplayBuffer.dump` writes."""
        columns = {name: getattr(self, name) for name in (*_COLUMNS, "terminated", "truncated")}
        return {**columns, "description": json.dumps(asdict(self.description))}

    @classmethod
    def deserialize(cls, document: Mapping[str, Any]) -> Episode:
        """Return the episode that `serialize` wrote.

        ``ReplayBuffer.load(file, InfiniteBuffer(), episode_cls=Episode, transition_picker=TransitionPicker())`` reads a
        whole buffer; d3rlpy's own picker would look for observations that are not there. As d3rlpy's files do not hold
        the number of actions, it is then one more than the largest that was taken.
        """
        return cls(
            **{name: np.asarray(document[name]) for name in _COLUMNS},
            terminated=bool(document["terminated"]),
            truncated=bool(document["truncated"]),
            description=Description(**json.loads(document["description"])),
        )


_COLUMNS = ("observations", "actions", "rewards", "next_observations")


class TransitionPicker:
    """d3rlpy's `TransitionPickerProtocol`: the recorded next observation, also after the last action of an `Episode`.

    Of episodes that d3rlpy itself adds when it goes on learning in an environment it picks what d3rlpy's own does.
    """

    def __call__(self, episode: Any, index: int) -> Any:
        from d3rlpy.dataset import BasicTransitionPicker, Transition

        if not isinstance(episode, Episode):
            return BasicTransitionPicker()(episode, index)
        last = index == len(episode) - 1
        return Transition(
            observation=episode.observations[index],
            action=episode.actions[index],
            reward=episode.rewards[index],
            next_observation=episode.next_observations[index],
            # What followed the last action is not known; d3rlpy writes zeros there too.
            next_action=np.zeros_like(episode.actions[index]) if last else episode.actions[index + 1],
            terminal=float(last and episode.terminated),
            interval=1,
            rewards_to_go=episode.rewards[index:],
        )


def to_d3rlpy(log: Trajectories, *, task: str | Task | None = None, action_size: int | None = None) -> Any:
    """Return a log as a d3rlpy `ReplayBuffer`, with all T transitions: ``CQLConfig().create().fit(buffer, …)``.

    Actions stay in the task's units, and actors of d3rlpy reach −1 to 1 only: where bounds are others, give its
    configuration ``action_scaler=d3rlpy.preprocessing.MinMaxActionScaler(minimum=…, maximum=…)`` with them.

    `Episode.deserialize` says how to read it back after ``buffer.dump``. ``fit_online(env, buffer)`` may go on with it;
    d3rlpy cannot dump it then: save what `from_d3rlpy` makes of it.

    Args:
        log: the trajectories.
        task: what it is a log of, if it does not say so itself; the number of actions is the task's.
        action_size: number of discrete actions, where there is no task.

    Raises:
        MissingExtraError: d3rlpy is not installed.
        InvalidDataError: an action outside the task's space, or observations of another size.
        InvalidArgumentError: the number of actions is unknown or too small.

    """
    d3rlpy = extras.d3rlpy()
    size = number_of_actions(log, known_task(log, task), action_size)
    episodes = [_episode(episode) for episode in split(log)]
    first, kinds = episodes[0], d3rlpy.constants.ActionSpace
    return d3rlpy.dataset.ReplayBuffer(
        d3rlpy.dataset.InfiniteBuffer(),
        episodes=episodes,
        transition_picker=TransitionPicker(),
        observation_signature=first.observation_signature,
        action_signature=first.action_signature,
        reward_signature=first.reward_signature,
        action_space=kinds.DISCRETE if log.discrete else kinds.CONTINUOUS,
        action_size=size,
    )


def from_d3rlpy(
    buffer: Any, *, agents: str | Sequence[str] | None = None, task: str | Task | None = None
) -> Trajectories:
    """Return the log in a d3rlpy `ReplayBuffer` or `MDPDataset`.

    A buffer that `to_d3rlpy` made comes back bit for bit, also after d3rlpy's `dump` and `load`. d3rlpy's own episodes,
    such as those that it collects into such a buffer, hold no observation after the last action: the last row of each
    is dropped, and the row before it ends the episode, as truncated. Covariates are kept if those of all agents are
    known.

    Args:
        buffer: the data set.
        agents: (E,) a label for each episode, or one label if all are of one agent; needed for d3rlpy's own episodes.
        task: what it is a log of.

    Raises:
        InvalidDataError: no agents, episodes of different tasks or covariates, observations that are not vectors, an
            own episode of d3rlpy with a single row, values outside the task.

    """
    extras.d3rlpy()
    info = getattr(buffer, "dataset_info", None)
    if info is None or not hasattr(buffer, "episodes"):
        raise InvalidDataError(f"{buffer!r} is not a replay buffer of d3rlpy")
    discrete = info.action_space.name == "DISCRETE"
    return join([_logged(episode, discrete) for episode in buffer.episodes], agents=agents, task=task)


def _signature(column: np.ndarray) -> Any:
    from d3rlpy.dataset import Signature

    return Signature(dtype=[column.dtype], shape=[column.shape[1:]])


def _episode(episode: LoggedEpisode) -> Episode:
    actions = episode.actions[:, None] if episode.actions.ndim == 1 else episode.actions
    assert episode.next_observations is not None and episode.description is not None
    return Episode(
        episode.observations,
        actions,
        episode.rewards[:, None],
        episode.next_observations,
        episode.terminated,
        episode.truncated,
        episode.description,
    )


def _logged(episode: Any, discrete: bool) -> LoggedEpisode:
    observations, actions = np.asarray(episode.observations), np.asarray(episode.actions)
    successors, truncated, description = None, not episode.terminated, None
    if isinstance(episode, Episode):
        successors, truncated, description = episode.next_observations, episode.truncated, episode.description
        discrete = actions.dtype.kind == "i"  # d3rlpy's `load` takes whole numbers of any type for discrete actions
    if discrete:
        actions = actions.reshape(len(actions)).astype(np.int64)
    rewards = np.asarray(episode.rewards).reshape(-1)
    return LoggedEpisode(
        observations, actions, rewards, successors, bool(episode.terminated), bool(truncated), description
    )
