"""Pictures, drawn with matplotlib (extra "plots")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym.errors import MissingExtraError
from persim_gym.model import Ensemble
from persim_gym.policies import as_policy
from persim_gym.types import FloatArray


def plot_trajectories(
    ensemble: Ensemble,
    path: str | Path,
    *,
    agents: Sequence[int | str],
    steps: int = 50,
    policy: Any = "random",
    seed: int = 0,
) -> Path:
    """Draw true against predicted states of some agents, all given the same actions from the same start state.

    Args:
        ensemble: whose predictions are drawn, every member and their mean.
        path: the picture's file; its suffix says the format.
        agents: indices or labels, one column each.
        steps: horizon, in steps.
        policy: acts in the true system of the first agent; its actions are given to all.
        seed: of the start state and random actions.

    """
    pyplot = _pyplot()
    task = ensemble.task
    start, actions = _shared_actions(ensemble, agents[0], steps, policy, seed)
    figure, axes = pyplot.subplots(
        task.observation_size, len(agents), figsize=(4.2 * len(agents), 1.7 * task.observation_size + 0.8),
        sharex=True, sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    time = np.arange(steps + 1)
    for column, agent in enumerate(agents):
        simulator = ensemble.simulator(agent)
        members = simulator.rollout(start[None], actions[None])[:, 0]
        members = np.concatenate([np.broadcast_to(start, (len(members), 1, len(start))), members], axis=1)
        true = _true_trajectory(ensemble, agent, start, actions)
        over = np.flatnonzero(np.asarray(task.terminated(true)))
        for row, name in enumerate(task.observation_names):
            axis = axes[row, column]
            axis.plot(time, members[:, :, row].T, color="tab:orange", alpha=0.35, linewidth=0.8)
            axis.plot(time, true[:, row], color="black", linewidth=1.8, label="true system")
            axis.plot(time, members.mean(0)[:, row], "--", color="tab:orange", linewidth=1.8, label="simulator")
            if len(over):
                axis.axvline(over[0], color="tab:gray", linestyle=":", label="episode over (true)")
            if column == 0:
                axis.set_ylabel(name)
        axes[0, column].set_title(_title(ensemble, agent), fontsize=10)
        axes[-1, column].set_xlabel("step")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"{task.name}: the same actions, different agents")
    return _save(figure, path)


def _shared_actions(
    ensemble: Ensemble, agent: int | str, steps: int, policy: Any, seed: int
) -> tuple[FloatArray, np.ndarray]:
    task = ensemble.task
    actor = as_policy(policy, task, seed)
    system = task.system(ensemble.agent_covariates(agent)[None])
    observations = system.reset(np.random.default_rng(seed))
    start, actions, state = observations[0], [], None
    for step in range(steps):
        action, state = actor.predict(observations.astype(np.float32), state, np.array([step == 0]), True)
        actions.append(np.asarray(action)[0])
        observations = system.step(action)
    return start, np.stack(actions)


def _true_trajectory(ensemble: Ensemble, agent: int | str, start: FloatArray, actions: np.ndarray) -> FloatArray:
    system = ensemble.task.system(ensemble.agent_covariates(agent)[None])
    system.set_observations(start[None])
    return np.stack([start, *(system.step(action[None])[0] for action in actions)])


def _title(ensemble: Ensemble, agent: int | str) -> str:
    values = ensemble.agent_covariates(agent)
    named = ", ".join(f"{name} {value:g}" for name, value in zip(ensemble.task.covariate_names, values, strict=True))
    return f"agent {ensemble.agent_labels[ensemble.agent_index(agent)]} (hidden: {named})"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)
    return path
