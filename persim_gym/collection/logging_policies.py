"""The paper's four ways to log a trajectory (section 5 and appendix E.2), and the test policy of its prediction errors.

============  ====================================================================================================
name          each agent acts with
============  ====================================================================================================
pure          the shipped logging policy that was trained on the agent most like it
pure-eps-20   the same, but at every step a uniform action with probability 0.2
pure-eps-40   the same with probability 0.4
random        uniform actions
============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym.arguments import generator_of
from persim_gym.collection.policies import MLPPolicy, RandomPolicy
from persim_gym.errors import FileFormatError, InvalidArgumentError, PerSimError, UnknownNameError
from persim_gym.tasks import Task, get_task
from persim_gym.types import FloatArray, IntArray, Policy

SHIPPED_POLICIES = Path(__file__).parents[1] / "assets" / "policies"
EXPLORATION: dict[str, float] = {"pure": 0.0, "pure-eps-20": 0.2, "pure-eps-40": 0.4, "random": 1.0}
"""Probability of a uniform action at each step, by name."""
LOGGING_POLICIES = tuple(EXPLORATION)


class LoggingPolicy:
    """Each of N agents follows a policy of its own choice, but explores with some probability.

    What an agent follows travels in ``state`` (B,), a row for each observation, as a recurrent policy's memory does:
    who leaves out the rows of agents that have finished leaves them out of ``state`` too.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        followed: IntArray,
        exploration: Policy,
        *,
        epsilon: float,
        rng: np.random.Generator,
    ) -> None:
        """Make the policy.

        Args:
            policies: those that agents follow.
            followed: (N,) index of each agent's policy.
            exploration: gives the exploratory actions.
            epsilon: probability of an exploratory action.
            rng: decides when to explore.

        """
        self._policies = tuple(policies)
        self._followed = np.asarray(followed)
        self._exploration = exploration
        self._epsilon = epsilon
        self._rng = rng

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, IntArray]:
        """Return actions (B,) or (B, A) for observations (B, D), and the state (B,).

        Args:
            observation: (B, D); in an episode's first call a row for each of the N agents, in their order.
            state: what the previous call returned, or None in the first call.
            episode_start: not used.
            deterministic: not used; exploration is drawn from the policy's own generator.

        """
        followed = self._followed if state is None else np.asarray(state)
        if len(followed) != len(observation):
            raise InvalidArgumentError(
                f"{len(observation)} observations came for {len(followed)} agents: the first call takes one of each "
                "agent, later calls one for each row of the state"
            )
        actions = self._exploration.predict(observation)[0]
        explores = self._rng.random(len(followed)) < self._epsilon
        for index, policy in enumerate(self._policies):
            rows = np.flatnonzero((followed == index) & ~explores)
            if len(rows):
                actions[rows] = policy.predict(observation[rows])[0]
        return actions, followed


def logging_policy(name: str, task: str | Task, covariates: FloatArray, *, seed: int = 0) -> Policy:
    """Return the logging policy of that name for N agents.

    Args:
        name: "pure", "pure-eps-20", "pure-eps-40" or "random".
        task: the task or its name.
        covariates: (N, K) of the agents, which decide whose policy each follows.
        seed: of the exploration.

    Raises:
        UnknownNameError: no such logging policy.
        PerSimError: the task's trained policies are not there, or not its own.

    """
    task = get_task(task)
    if name not in EXPLORATION:
        raise UnknownNameError(f"no logging policy {name!r}; there are {', '.join(LOGGING_POLICIES)}")
    if name == "random":
        return RandomPolicy(task.action_space, seed)
    choice, exploration, *own = generator_of(seed).spawn(2 + len(task.policy_training_agents))
    followed = nearest_training_agent(task, covariates)
    policies = [_load(task, f"logging{index}", rng) for index, rng in enumerate(own)]
    uniform = RandomPolicy(task.action_space, exploration)
    return LoggingPolicy(policies, followed, uniform, epsilon=EXPLORATION[name], rng=choice)


def nearest_training_agent(task: Task, covariates: FloatArray) -> IntArray:
    """Return for agents (N, K) the index (N,) of the policy-training agent nearest in covariates.

    The paper says "closest" and no more; here it is the Euclidean distance in units of each covariate's range.
    """
    if not task.policy_training_agents:
        raise PerSimError(
            f"task {task.name} names no policy_training_agents, so nobody's policy can be followed; "
            "collect with policy='random' or with a policy of your own"
        )
    ranges = np.array([covariate.high - covariate.low for covariate in task.covariates])
    trained = np.array(task.policy_training_agents) / ranges
    agents = np.atleast_2d(np.asarray(covariates, np.float64)) / ranges
    return np.linalg.norm(agents[:, None] - trained, axis=2).argmin(axis=1)


def test_policy(task: str | Task, *, seed: int = 0) -> MLPPolicy:
    """Return the shipped policy, trained on the default agent, along whose trajectories predictions are scored.

    Args:
        task: the task or its name.
        seed: of its rare exploratory actions.

    """
    return _load(get_task(task), "test", generator_of(seed))


test_policy.__test__ = False  # its name is the paper's; pytest shall not take it for a test


def _load(task: Task, name: str, rng: np.random.Generator) -> MLPPolicy:
    path = SHIPPED_POLICIES / f"{task.name}-{name}.safetensors"
    if not path.exists():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED_POLICIES.glob("*.safetensors"))) or "none"
        raise PerSimError(
            f"the policy {path.stem} is not among the shipped ones ({shipped}); "
            "use policy='random' or give a policy of your own"
        )
    policy = MLPPolicy.load(path, seed=rng)
    if policy.task.name != task.name:
        raise FileFormatError(f"{path} is a policy of task {policy.task.name}, not of {task.name}")
    return policy
