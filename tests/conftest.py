"""Small trained ensembles and a way to run code in a fresh process."""
# ruff: noqa: E402

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

# Set before persim_gym is imported: the tests see no models that the user has installed, and open no window.
os.environ["PERSIM_HOME"] = str(Path(tempfile.gettempdir()) / f"persim-gym-no-models-{os.getpid()}")
os.environ["SDL_VIDEODRIVER"] = "dummy"

import gymnasium
import numpy as np
import pytest
import torch

import persim_gym
from persim_gym.tasks import registry as task_registry

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cart_pole_log():
    """Random trajectories of 20 CartPoles."""
    return persim_gym.collect("CartPole", num_agents=20, seed=0)


@pytest.fixture(scope="session")
def cart_pole(cart_pole_log):
    """A CartPole ensemble, trained for some epochs."""
    return persim_gym.fit(cart_pole_log, config="CartPole", epochs=40, seed=0, progress=False)


@pytest.fixture(scope="session")
def mountain_car():
    """A MountainCar ensemble, trained for some epochs on 10 random trajectories."""
    log = persim_gym.collect("MountainCar", num_agents=10, seed=0)
    return persim_gym.fit(log, config="MountainCar", epochs=10, validation_fraction=0, seed=0, progress=False)


@pytest.fixture(scope="session")
def half_cheetah():
    """A tiny HalfCheetah ensemble, trained on a made-up log, which needs no MuJoCo."""
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(120, 18)), rng.uniform(-1, 1, (120, 6))
    mixing = 0.1 * rng.normal(size=(18, 18))
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(4), 30),
        observations=observations,
        actions=actions,
        next_observations=observations + np.tanh(observations @ mixing) * actions[:, :1],
        task="HalfCheetah",
    )
    config = persim_gym.PerSimConfig(rank=3, state_hidden=(16, 16), action_hidden=(16,), num_members=3, epochs=5)
    return persim_gym.fit(log, config=config, validation_fraction=0, seed=0, progress=False)


@pytest.fixture
def run_python():
    """Run code in a fresh process in which warnings are errors; return what it prints."""

    def run(code, *, cwd=None, **environment):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def global_generators_untouched():
    """Python's, NumPy's and torch's own random numbers go on afterwards as if nothing had been."""

    def states():
        kind, key, *place = np.random.get_state()  # the key alone changes once in 624 numbers
        return random.getstate(), (kind, key.tobytes(), *place), torch.get_rng_state().numpy().tobytes()

    before = states()
    yield
    assert states() == before


@pytest.fixture
def registry():
    """Gymnasium's registry, put back afterwards."""
    before = dict(gymnasium.registry)
    yield gymnasium.registry
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture
def known_tasks():
    """The tasks that are known by name, put back afterwards."""
    before = dict(task_registry._TASKS)
    yield
    task_registry._TASKS.clear()
    task_registry._TASKS.update(before)
