"""A warning names the line of the user's that it is about, however deep within the package it arises."""

import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from support import SMALL, perfect_walk_ensemble, walk_task

import persim_gym
from persim_gym import Trajectories, interop
from persim_gym.baselines import fit_cql
from persim_gym.envs import PersonalizedEnv

WALK = {
    "agents": np.repeat(["ann", "ben"], 4),
    "observations": np.tile([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], (2, 1)),
    "actions": np.arange(8) % 3,
    "rewards": -np.arange(1.0, 5.0)[np.arange(8) % 4],
    "terminated": np.arange(8) % 4 == 3,
}


def aged():
    """The walks of two agents, with a covariate that their task has not."""
    last = {"covariates": [[7.0], [8.0]], "covariate_names": ["age"]}
    return Trajectories.from_arrays(next_observations=WALK["observations"] + [1.0, 0.0], **WALK, **last)


def fit():
    return persim_gym.fit(aged(), task=walk_task(goal=4.0), config=SMALL, epochs=1, progress=False)


def cql():
    return fit_cql(aged(), task=walk_task(goal=5.0), steps=1, progress=False)


def arrays():
    return Trajectories.from_arrays(**WALK)


def table():
    frame = pytest.importorskip("pandas").DataFrame({"id": "ann", "x": [2.0, 1.0, 0.0], "a": 0, "dead": [0, 0, 1]})
    return interop.from_dataframe(frame, agent="id", observations=["x"], action="a", terminated="dead")


def environment():
    relabelled = dataclasses.replace(perfect_walk_ensemble(walk_task()), agent_labels=("2", "1", "0"))
    spec = EnvSpec("Walk-v0", entry_point=PersonalizedEnv)
    return gymnasium.make(spec, model=relabelled, agent=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (fit, "no covariate 'age'"),
        (cql, "terminal flags are not what"),
        (arrays, "terminated is true in 2 rows"),
        (table, "terminated is true in 1 row "),
        (environment, "agent 2 is the one of index 2"),
    ],
)
def test_the_line_of_the_call(call, message):
    """The last line of each function above."""
    if call is cql:
        pytest.importorskip("d3rlpy")
    with pytest.warns(match=message) as told:
        call()
    of_ours = next(one for one in told if message in str(one.message))
    assert of_ours.filename == __file__
    assert of_ours.lineno == max(line for *_, line in call.__code__.co_lines())
