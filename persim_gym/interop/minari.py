"""Minari: logs as its data sets, and back. Agent labels and covariates are metadata of the episodes."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from persim_gym.data.trajectories import Trajectories
from persim_gym.data.within_spaces import check_actions
from persim_gym.errors import InvalidArgumentError, InvalidDataError, MissingFileError
from persim_gym.extras import optional
from persim_gym.interop.episodes import Description, LoggedEpisode, join, known_task, number_of_actions, split
from persim_gym.tasks import Task

_METADATA = "persim_gym"
_SUCCESSORS = "next_observations"
"""Info that holds next observations, in an episode where one is not the observation of the next row."""


def to_minari(
    log: Trajectories,
    dataset_id: str,
    *,
    task: str | Task | None = None,
    action_size: int | None = None,
    **details: Any,
) -> Any:
    """Write a log as a new Minari data set into Minari's own folder and return it.

    ``minari.load_dataset(dataset_id)`` reads it, with one episode for each of the log's.
    ``dataset.storage.get_episode_metadata(…)`` has the ``agent`` and the ``covariates`` of each; the data set's
    metadata says where the log comes from, and whether it is synthetic.

    Args:
        log: the trajectories.
        dataset_id: "name-v0" or "namespace/name-v0", of letters, digits, "_" and "-".
        task: what it is a log of, if it does not say so itself; the spaces are the task's.
        action_size: number of discrete actions, where there is no task.
        **details: others of `minari.create_dataset_from_buffers`: author, author_email, code_permalink, …

    Raises:
        MissingExtraError: Minari is not installed.
        InvalidArgumentError: an id against Minari's rules, or of a data set that exists.
        InvalidDataError: an action outside the task's space, or observations of another size.

    """
    minari = _import_minari()
    path = _new_path(dataset_id)
    observation_space, action_space = _spaces(log, known_task(log, task), action_size)
    synthetic = "synthetic " if log.provenance.get("synthetic") else ""
    details.setdefault("description", f"{synthetic}log of {log.num_agents} agents: {log}")
    details.setdefault("algorithm_name", str(log.provenance.get("policy", "unknown")))
    shared = {
        "task": log.task,
        "covariate_names": list(log.covariate_names),
        "provenance": dict(log.provenance),
        "names": {what: list(names) for what, names in log.given_names.items()},
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about every detail that is not given
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [_buffer(episode) for episode in split(log)],
                observation_space=observation_space,
                action_space=action_space,
                **details,
            )
        dataset.storage.update_episode_metadata([_metadata(episode) for episode in split(log)])
        dataset.storage.update_metadata({_METADATA: shared})
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return dataset


def from_minari(
    dataset: Any, *, agents: str | Sequence[str] | None = None, task: str | Task | None = None
) -> Trajectories:
    """Return the log in a Minari data set; one that `to_minari` wrote comes back bit for bit.

    Args:
        dataset: a Minari data set, or the id of one on this machine.
        agents: (E,) a label for each episode, or one label if all are of one agent; needed where the data set was not
            written by `to_minari`.
        task: what it is a log of.

    Raises:
        MissingExtraError: Minari is not installed.
        InvalidArgumentError: neither a data set nor an id.
        MissingFileError: there is no data set of that id.
        InvalidDataError: no agents, spaces other than vectors and indices, values outside the spaces or the task, or a
            data set that `minari.combine_datasets` made of one that `to_minari` wrote: Minari keeps neither its agents
            nor that it is synthetic.

    """
    minari = _import_minari()
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset)
        except FileNotFoundError as error:
            raise MissingFileError(f"there is no Minari data set {dataset!r} here: {error}") from error
    if not isinstance(dataset, minari.MinariDataset):
        raise InvalidArgumentError(f"dataset={dataset!r} must be a Minari data set or the id of one, 'name-v0'")
    _check_spaces(dataset.observation_space, dataset.action_space)
    shared = dataset.storage.metadata.get(_METADATA)
    _check_parts(minari, dataset)
    described = dataset.storage.get_episode_metadata(dataset.episode_indices)
    episodes = list(_episodes(dataset.iterate_episodes(), described, shared))
    log = join(episodes, agents=agents, task=task, provenance=None if shared else {"minari": dataset.id})
    check_actions(log.actions, dataset.action_space)
    return log


def _check_parts(minari: Any, dataset: Any) -> None:
    """Raise `InvalidDataError` if a data set was combined of one that we wrote, as far as its parts are still here."""
    parts = list(dataset.storage.metadata.get("combined_datasets", ()))
    for name in parts:
        try:
            ours = _METADATA in minari.load_dataset(name).storage.metadata
        except FileNotFoundError:
            continue
        if ours:
            raise InvalidDataError(
                f"Minari kept neither the agents of {name!r} when it combined {', '.join(map(repr, parts))}, nor "
                "whether it is synthetic: join the parts by Trajectories.concatenate([from_minari(name), ...])"
            )


def _import_minari() -> Any:
    optional("minari.data_collector", "minari")
    return optional("minari", "minari")


def _new_path(dataset_id: str) -> Any:
    """Return where Minari will write a new data set."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"dataset_id={dataset_id!r} must look like 'name-v0' or 'namespace/name-v0', "
            "of letters, digits, '_' and '-'"
        ) from error
    path = get_dataset_path(dataset_id)
    if path.exists():
        raise InvalidArgumentError(
            f"a Minari data set {dataset_id!r} exists already, in {path}: give another version, "
            f"or delete it with minari.delete_dataset({dataset_id!r})"
        )
    return path


def _spaces(log: Trajectories, task: Task | None, action_size: int | None) -> tuple[spaces.Box, spaces.Space]:
    count = number_of_actions(log, task, action_size)
    if task is not None:
        return task.observation_space, task.action_space
    unbounded = spaces.Box(-np.inf, np.inf, (log.observations.shape[1],), np.float32)
    if log.discrete:
        return unbounded, spaces.Discrete(count)
    return unbounded, spaces.Box(-np.inf, np.inf, (count,), np.float32)


def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    supported = "a log takes observations of a Box with one axis, and actions of such a Box or of a Discrete from 0 on"
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise InvalidDataError(f"the data set's observation space is {observation_space}; {supported}")
    vector = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
    if not vector and not (isinstance(action_space, spaces.Discrete) and action_space.start == 0):
        raise InvalidDataError(f"the data set's action space is {action_space}; {supported}")


def _buffer(episode: LoggedEpisode) -> Any:
    from minari.data_collector import EpisodeBuffer

    successors = episode.next_observations
    assert successors is not None
    # Minari's infos have a row more than its actions: that of the reset.
    padded = np.concatenate([episode.observations[:1], successors])
    chained = np.array_equal(_bits(successors[:-1]), _bits(episode.observations[1:]))
    length = len(episode.actions)
    ended, cut = np.zeros(length, bool), np.zeros(length, bool)
    ended[-1], cut[-1] = episode.terminated, episode.truncated
    return EpisodeBuffer(
        observations=np.concatenate([episode.observations, successors[-1:]]),  # pyright: ignore[reportArgumentType]
        actions=episode.actions,  # pyright: ignore[reportArgumentType]
        rewards=episode.rewards,  # pyright: ignore[reportArgumentType]
        terminations=ended,  # pyright: ignore[reportArgumentType]
        truncations=cut,  # pyright: ignore[reportArgumentType]
        infos=None if chained else {_SUCCESSORS: padded},
    )


def _bits(column: np.ndarray) -> np.ndarray:
    """Return a view in which 0 and −0 differ."""
    return np.ascontiguousarray(column).view(np.uint8)


def _metadata(episode: LoggedEpisode) -> dict[str, Any]:
    assert episode.description is not None
    known = {"agent": episode.description.agent, "agent_index": episode.description.agent_index}
    if episode.description.covariates is not None:
        known["covariates"] = np.array(list(episode.description.covariates.values()))
    return known


def _episodes(
    episodes: Iterable[Any], metadata: Iterable[dict[str, Any]], shared: dict[str, Any] | None
) -> Iterator[LoggedEpisode]:
    for episode, known in zip(episodes, list(metadata), strict=True):  # list: both read the same file
        observations, length = np.asarray(episode.observations), len(episode.rewards)
        if length == 0 or len(observations) != length + 1:
            raise InvalidDataError(
                f"episode {episode.id} has {len(observations)} observations for {length} steps; a Minari episode has "
                "at least one step, and one observation more than steps"
            )
        infos = episode.infos or {}
        successors = np.asarray(infos[_SUCCESSORS])[1:] if shared and _SUCCESSORS in infos else observations[1:]
        yield LoggedEpisode(
            observations[:-1],
            np.asarray(episode.actions),
            np.asarray(episode.rewards),
            successors,
            bool(episode.terminations[-1]),
            bool(episode.truncations[-1]),
            _description(known, shared),
        )


def _description(metadata: dict[str, Any], shared: dict[str, Any] | None) -> Description | None:
    if shared is None or "agent" not in metadata:
        return None
    values = metadata.get("covariates")
    return Description(
        str(metadata["agent"]),
        int(metadata["agent_index"]),
        None if values is None else dict(zip(shared["covariate_names"], map(float, values), strict=True)),
        shared["task"],
        shared["provenance"],
        shared.get("names", {}),
    )
