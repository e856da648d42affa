"""What `speed.py` measures, a function a part: each yields its rows."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import speed_mbrl
import speed_reference
import startup
import torch
from speed_made_up import NUM_AGENTS, made_up_ensemble, made_up_log, shapes_of, shipped
from speed_rows import OURS, Row, in_turn, rows

from persim_gym import MPCAgent, Trajectories, collect, get_task, personalize
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.config import CONFIGS, PerSimConfig
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.model.normalizer import Normalizer
from persim_gym.rollouts import simulated_returns
from persim_gym.tasks import Task
from persim_gym.training.trainer import DeviceLog, Trainer

MEDIUM = "persim-gym, medium precision"
"""Matrix products in bfloat16, where the processor has them."""
TRAINING_ROWS = {"CartPole": 10_000, "MountainCar": 20_000, "HalfCheetah-text": 5_000}
PRODUCTS = {
    "training CartPole": (64, 4, 256),
    "stepping CartPole": (5000, 4, 256),
    "planning HalfCheetah": (200, 256, 256),
    "training HalfCheetah": (512, 256, 256),
    "large": (2048, 2048, 2048),
}
"""Rows, inputs and outputs."""
BATCHES = (1, 32, 1000, 5000, 100_000)


def epoch(log: Trajectories, task: Task, config: PerSimConfig) -> float:
    """Train for one epoch from nothing, as `fit` does; the posterior that it infers in the end is no part of it."""
    device = torch.device("cpu")
    shapes = shapes_of(task, config, log.num_agents)
    columns = DeviceLog.of(log, task, Normalizer.identity(task.observation_size), device)
    return Trainer(shapes, config, 0, device).run_epoch(columns, torch.arange(log.num_transitions))


def training() -> Iterator[Row]:
    """(a) Seconds an epoch of five members."""
    for name, count in TRAINING_ROWS.items():
        config = CONFIGS[name].with_changes(normalize=False, halve_learning_rate_every=0, epochs=1)
        task, log = get_task(name.split("-")[0]), made_up_log(name.split("-")[0], count)
        contenders = {
            OURS: partial(epoch, log, task, config),
            "reference": partial(speed_reference.train, log, task, config),
        }
        if len(config.state_hidden) > 1:
            contenders[MEDIUM] = partial(epoch, log, task, config.with_changes(matmul_precision="medium"))
        yield from rows("train", f"epoch of {count} rows, {name}, batch {config.batch_size}", in_turn(contenders, 3))
    log, task = made_up_log("CartPole", 10_000), get_task("CartPole")
    config = CONFIGS["CartPole"].with_changes(batch_size=512, epochs=1)
    contenders = {OURS: partial(epoch, log, task, config)}
    if speed_mbrl.available():
        contenders["mbrl 0.2.0"] = speed_mbrl.training_epoch(log, task, 512)
    yield from rows("train", "epoch of 10000 rows, CartPole, batch 512", in_turn(contenders, 5))


def single_steps() -> Iterator[Row]:
    """(b) Microseconds of one step of an unwrapped environment."""
    for name, real_id in (("CartPole", "CartPole-v1"), ("MountainCar", "MountainCar-v0")):
        model = speed_reference.Model(get_task(name), shipped(name).config, NUM_AGENTS)
        state = np.zeros((1, get_task(name).observation_size))
        contenders = {
            OURS: _stepping(PersonalizedEnv(shipped(name), 7)),
            f"the real {real_id}": _stepping(gymnasium.make(real_id).unwrapped),
            "reference": partial(model.step, state, np.array([1])),
        }
        yield from rows("step", f"one step, {name}", in_turn(contenders, 25, 500), "us", 1e6)


def _stepping(env: gymnasium.Env) -> Callable[[], object]:
    """Return a call that takes a step, and resets where an episode is over."""
    env.reset(seed=0)
    step, actions = env.step, iter(np.random.default_rng(0).integers(2, size=1_000_000).tolist())

    def call() -> None:
        result = step(next(actions))
        if result[2] or result[3]:
            env.reset()

    return call


def batched_steps() -> Iterator[Row]:
    """(c) Transitions a second of a batch, five members' mean."""
    ensemble, task = shipped("CartPole"), get_task("CartPole")
    model = speed_reference.Model(task, ensemble.config, NUM_AGENTS)
    for batch in BATCHES:
        vector = PersonalizedVectorEnv(ensemble, num_envs=batch, agent=7)
        states, actions = vector.reset(seed=0)[0], np.arange(batch) % 2
        contenders = {
            OURS: partial(vector.step, actions),
            "reference": partial(model.step, states, actions),
            "matrix products alone, torch": _products(task.observation_size, task.action_size, batch),
        }
        repeats = max(1, 5000 // batch)
        measured = in_turn(contenders, 7 if batch < 100_000 else 3, repeats)
        for row in rows("batch", f"{batch} environments, CartPole", measured):
            yield replace(row, median=batch / row.median, unit="1/s")


def _products(size: int, num_actions: int, batch: int) -> Callable[[], object]:
    """Return the matrix products of the folded network and nothing else, in the batches torch is fastest with."""
    part = min(batch, 5000)
    weights = torch.rand(256, size), torch.rand(num_actions * size, 256)
    inputs, hidden, outputs = torch.rand(size, part), torch.rand(256, part), torch.rand(num_actions * size, part)

    def call() -> None:
        for _ in range(5 * -(-batch // part)):
            torch.mm(weights[0], inputs, out=hidden)
            torch.mm(weights[1], hidden, out=outputs)

    return call


def planning() -> Iterator[Row]:
    """(d) Milliseconds of one decision at the paper's budgets."""
    rng = np.random.default_rng(0)
    for name in ("CartPole", "MountainCar"):
        task = get_task(name)
        start = task.initial_observations(rng, 1)
        model = speed_reference.Model(task, shipped(name).config, NUM_AGENTS)
        contenders: dict[str, Callable[[], object]] = {}
        for agent in (1, 4):
            planner = MPCAgent(shipped(name).simulator(agent), seed=0)
            contenders[f"{OURS}, agent {agent}"] = partial(planner.predict, start)
        sequences = rng.integers(task.action_size, size=(1, 1000, 50))
        score = simulated_returns(shipped(name).simulator(1), start)
        contenders[f"{OURS}, every rollout"] = partial(score, np.array([0]), sequences)
        contenders["reference"] = speed_reference.shooting_decision(model, start, rng)
        if speed_mbrl.available():
            contenders["mbrl 0.2.0"] = speed_mbrl.shooting_decision(task, start[0], rng)
        yield from rows("plan", f"decision 1000 x 50 x 5, {name}", in_turn(contenders, 9), "ms", 1e3)
    yield from _cheetah_planning(rng)


def _cheetah_planning(rng: np.random.Generator) -> Iterator[Row]:
    ensemble, task = shipped("HalfCheetah"), get_task("HalfCheetah")
    start = task.initial_observations(rng, 1)
    model = speed_reference.Model(task, ensemble.config, NUM_AGENTS)
    candidates = rng.uniform(-1, 1, (200, 30, 6))

    def reference() -> None:
        for _ in range(6):
            model.mean_state_returns(start, candidates)

    agents = {name: MPCAgent(ensemble.simulator(0), planner=name, seed=0) for name in ("cem", "icem", "mppi")}
    contenders = {
        f"{OURS}, cem": partial(agents["cem"].predict, start),
        "reference, cem": reference,
        f"{OURS}, icem": partial(agents["icem"].predict, start),
        f"{OURS}, mppi": partial(agents["mppi"].predict, start),
    }
    case = "decision 6 x 200 x 30 x 5, HalfCheetah"
    yield from rows("plan", case, in_turn(contenders, 3), "ms", 1e3)
    torch.set_num_threads(2)
    both = {name: contenders[name] for name in (f"{OURS}, cem", "reference, cem")}
    yield from rows("plan", f"{case}, two threads", in_turn(both, 5, clock=time.perf_counter), "ms", 1e3)
    torch.set_num_threads(1)
    yield from planning_returns()


def context_planning() -> Iterator[Row]:
    """Milliseconds of one decision by MPC in PE-TS CaDM, whose twenty particles draw their next states."""
    rng = np.random.default_rng(0)
    for name in ("CartPole", "MountainCar"):
        task, log = get_task(name), collect(name, num_agents=100)
        model = fit_cadm(
            log, config="PE-TS CaDM", futures_per_context=1, iterations=1, max_gradient_steps=500, progress=False
        )
        start = task.initial_observations(rng, 1)
        sequences = rng.integers(task.action_size, size=(1, 1000, 50))
        score = simulated_returns(model.simulator(0), start, together=True)
        contenders = {
            f"{OURS}, bfloat16": partial(CaDMAgent(model, dtype=torch.bfloat16).predict, start),
            OURS: partial(CaDMAgent(model).predict, start),
            f"{OURS}, every rollout": partial(score, np.array([0]), sequences),
        }
        yield from rows("context", f"decision 1000 x 50 x 20, {name}", in_turn(contenders, 5), "ms", 1e3)


def planning_returns(steps: int = 2) -> Iterator[Row]:
    """Yield the simulated return of the sequences that CEM and iCEM would execute, along the first steps of MPC."""
    ensemble, task = shipped("HalfCheetah"), get_task("HalfCheetah")
    found: dict[str, list[float]] = {"cem": [], "icem": []}
    for agent in range(5):
        simulator = ensemble.simulator(agent)
        start = task.initial_observations(np.random.default_rng(agent), 1)
        for name, values in found.items():
            planner, observations, state = MPCAgent(simulator, planner=name, seed=agent), start, None
            for _ in range(steps):
                plan = planner.plan(observations, state)
                state = plan.warm_start
                score = simulated_returns(simulator, observations, propagation="mean_state")
                values.append(float(score(np.array([0]), plan.actions[:, None])[0, 0]))
                observations = simulator.step(observations, plan.actions[:, 0]).next_observations
    for name, values in found.items():
        mean = statistics.mean(values)
        print(f"{'plan':8} {'return of the executed sequence, HalfCheetah':44} {name:28} {mean:12.5g}", flush=True)
        ratio = mean / statistics.mean(found["cem"])
        yield Row(
            "plan",
            "return of the executed sequence, HalfCheetah",
            f"{OURS}, {name}",
            mean,
            "return",
            ratio,
            len(values),
        )


def products() -> Iterator[Row]:
    """Yield what the libraries for matrix products reach at the shapes of training and planning, in seconds."""
    from torch.utils.mkldnn import to_mkldnn

    for case, (count, inputs, outputs) in PRODUCTS.items():
        left, right, out = torch.rand(count, inputs), torch.rand(inputs, outputs), torch.empty(count, outputs)
        linear = to_mkldnn(torch.nn.Linear(inputs, outputs, bias=False).eval())
        contenders = {
            "torch": partial(torch.mm, left, right, out=out),
            "NumPy": partial(np.matmul, left.numpy(), right.numpy(), out=out.numpy()),
            "torch's oneDNN": partial(linear, left.to_mkldnn()),
        }
        repeats = max(1, 100_000_000 // (count * inputs * outputs))
        with torch.inference_mode():
            measured = in_turn(contenders, 9, repeats)
        yield from rows("product", f"{count} x {inputs} x {outputs}, {case}", measured, "us", 1e6)


def offline_learning() -> Iterator[Row]:
    """Yield gradient steps of BCQ and CQL, on the log of everyone and on that of one agent."""
    from persim_gym.baselines import bcq, cql
    from persim_gym.baselines.discrete_q import DiscreteSteps
    from persim_gym.baselines.offline_training import D3rlpySteps

    task, everyones, rng = get_task("CartPole"), made_up_log("CartPole", 50_000), np.random.default_rng(0)

    def contender(config: Any, log: Trajectories, steps: Callable[[Any, Trajectories], Any]) -> Callable[[], object]:
        algorithm = config.create()
        algorithm.create_impl((task.observation_size,), task.action_size)
        learner = steps(algorithm, log)
        return lambda: learner.update(rng.integers(log.num_transitions, size=config.batch_size))

    for name, config in (("BCQ", bcq.discrete_config()), ("CQL", cql.discrete_config())):
        for log in (everyones, everyones.select([0])):
            contenders = {
                OURS: contender(config, log, DiscreteSteps),
                "d3rlpy": contender(config, log, partial(D3rlpySteps, task=task)),
            }
            what = f"gradient step of {name}, batch {config.batch_size} of {log.num_transitions} rows"
            yield from rows("offline", what, in_turn(contenders, 9, repeats=20), "ms", 1e3)


def personalizing() -> Iterator[Row]:
    """Seconds by the clock until 10,000 agents nobody trained on have simulators, of 50 transitions each."""
    ensemble, log = shipped("CartPole"), made_up_log("CartPole", 500_000, 10_000, "new ")
    contenders = {
        OURS: partial(personalize, ensemble, log),
        "one epoch of training": partial(epoch, log, ensemble.task, ensemble.config),
    }
    yield from rows(
        "newcomers", "10000 agents, 50 transitions each, CartPole", in_turn(contenders, 5, clock=time.perf_counter)
    )


def starting() -> Iterator[Row]:
    """(e) Wall-clock seconds to import and to make, in fresh processes."""
    names = list(startup.MEASURED)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(7):
        for name in names:
            times[name].append(startup.seconds(startup.MEASURED[name]))
    for peer, own in (names[:2], names[2:]):
        yield from rows("start", own, {OURS: times[own], peer: times[peer]})


_MEMORY = """
import sys
sys.path.insert(0, {folder!r})
import speed, speed_reference
name, count = "CartPole", 50_000
log, task = speed.made_up_log(name, count), speed.get_task(name)
config = speed.CONFIGS[name].with_changes(epochs=1, batch_size=4096)
small = log.select(range(2))
{warm}
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = speed.resident("VmRSS")
{code}
print(speed.resident("VmHWM") - before)
"""
_FIT = "speed.persim_gym.fit({log}, config=config, task=task, validation_fraction=0, progress=False, device='cpu')"
_TRAIN = "speed_reference.train({log}, task, config)"


def resident(field: str) -> float:
    """Return this process's resident bytes, now ("VmRSS") or at their peak ("VmHWM"); on Linux only."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return 1024 * float(line.split()[1])


def memory() -> Iterator[Row]:
    """(f) Bytes that training adds to a process that holds the log and has trained on two of its agents."""
    measured: dict[str, list[float]] = {}
    for name, code in ((OURS, _FIT), ("reference", _TRAIN)):
        script = _MEMORY.format(
            folder=str(Path(__file__).parent), warm=code.format(log="small"), code=code.format(log="log")
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        measured[name] = [float(done.stdout.split()[-1])]
    yield from rows("memory", "training, 500 agents, 50000 rows, CartPole", measured, "MB", 1e-6)


def scaling() -> Iterator[Row]:
    """Cost against the number of agents and of members; against the batch it is part (c)."""
    for exponent in range(2, 7):
        ensemble = made_up_ensemble("CartPole", CONFIGS["CartPole"], 10**exponent)
        agent = 10**exponent - 1
        env = PersonalizedEnv(ensemble, agent)
        calls = {"step": _stepping(env), "bind": partial(PersonalizedEnv, ensemble, agent)}
        for what, call in calls.items():
            measured = {OURS: in_turn({OURS: call}, 5, 1000 if what == "step" else 5)[OURS]}
            yield from rows("agents", f"{what}, {10**exponent} agents", measured, "us", 1e6)
    for members in (1, 2, 5, 10, 20):
        ensemble = made_up_ensemble("CartPole", CONFIGS["CartPole"].with_changes(num_members=members))
        start, sequences = np.zeros((1, 4)), np.random.default_rng(0).integers(2, size=(1, 1000, 50))
        score = simulated_returns(ensemble.simulator(0), start)
        calls = {"step": (_stepping(PersonalizedEnv(ensemble)), 1000), "plan": (partial(score, [0], sequences), 1)}
        for what, (call, repeats) in calls.items():
            measured = {OURS: in_turn({OURS: call}, 5, repeats)[OURS]}
            yield from rows("members", f"{what}, {members} members", measured, "us", 1e6)


PARTS = {
    "train": training,
    "step": single_steps,
    "batch": batched_steps,
    "plan": planning,
    "context": context_planning,
    "product": products,
    "offline": offline_learning,
    "start": starting,
    "memory": memory,
    "scaling": scaling,
    "newcomers": personalizing,
}
