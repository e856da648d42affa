"""What is measured for each of the paper's tables, and at which scale.

Raise an environment's `PROTOCOL` whenever its figures would come out differently: other data sets, shipped policies,
settings, scores. Its results and cached models of another version are then refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from methods import AGENT_COUNTS, METHODS, PERSIMS, Learner, Method

from persim_gym.collection.logging_policies import LOGGING_POLICIES
from persim_gym.errors import InvalidArgumentError, UnknownNameError

PROTOCOL = {"MountainCar": 2, "CartPole": 2, "HalfCheetah": 4}
DATA_SEED = 0
"""All of a table's models learn from the same data sets; what differs from seed to seed is the training."""
POLICY_EPISODES = 100
"""Of an agent, for what acts without planning anew at every step: policies and, at full scale, value iteration."""
NO_DATA = "-"
"""Data of the methods that plan in the true system."""
DATA = (*LOGGING_POLICIES, NO_DATA)

CHOICES = ("threshold_scale", "halted")
"""What a policy's provenance says of its training: kept beside its scores, in no table of the paper."""
EVERYONE = "all"
"""In place of an agent, where it is a training on all agents' data."""

_CADM = ("Vanilla CaDM", "PE-TS CaDM")
_CADM_PLUS = ("Vanilla CaDM+",)
_CADM_VI = ("Vanilla CaDM + VI", "PE-TS CaDM + VI")
_MOREL = ("MOReL-P", "MOReL-A")
_MOREL_SAMPLED = ("MOReL-P, sampled", "MOReL-A, sampled")
_BCQ_AND_CQL = ("BCQ-P", "BCQ-A", "CQL-P", "CQL-A")
_JOINTS = ("Joint network", "Joint network+")
_TRUE = ("True env + MPC", "True env + VI")
_PLAIN = ("PerSim, plain objective", "Vanilla CaDM, plain objective")
_AUGMENTED = tuple(name for name, method in METHODS.items() if method.is_augmented)
_SOLVED = ("PerSim + VI", "PerSim+ + VI", "True env + VI")


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    number: int
    title: str
    envs: tuple[str, ...]
    metrics: tuple[str, ...]
    learned: tuple[str, ...]
    """Methods that need a data set."""
    true: tuple[str, ...] = ()
    """Methods that plan in the true system."""
    max_episodes: int | None = None
    """Limit on the episodes of each agent, where they are dear."""
    data: tuple[str, ...] = LOGGING_POLICIES
    """Data sets that the learned methods are measured with."""

    def methods(self, data: str) -> tuple[str, ...]:
        """Return the methods measured with one data set, or without any."""
        if data == NO_DATA:
            return self.true
        return self.learned if data in self.data else ()


@dataclass(frozen=True)
class Scale:
    """How large the experiment is."""

    name: str
    num_agents: int
    prediction_episodes: int
    return_episodes: int
    grids: Mapping[str, Any]
    """By environment, the points of `persim_gym.planning.value_iteration` along each coordinate."""
    context_grids: Mapping[str, Any] = field(default_factory=dict)
    """The same for a simulator whose context changes along an episode, in which it is done again and again."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """To the task's `persim_gym.config.CONFIGS`."""
    planner: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `persim_gym.MPCAgent` other than the paper's."""
    policy_episodes: int = POLICY_EPISODES
    """Of the methods that learn a policy."""
    method_episodes: Mapping[str, int] = field(default_factory=dict)
    """By method, the episodes of a return where they are not ``return_episodes``."""
    envs: tuple[str, ...] = ("MountainCar", "CartPole", "HalfCheetah")
    """The environments that it is meant for."""
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By method, the settings that say how much it is trained."""
    env_budgets: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """By environment and method, those that are otherwise there."""

    def training(self, method: str, env: str) -> Mapping[str, Any]:
        """Return the budget of what a method acts or plans with, which is another method's where it is a variant."""
        base = METHODS[method].base
        return {**self.budgets.get(base, {}), **self.env_budgets.get(env, {}).get(base, {})}

    @property
    def file_suffix(self) -> str:
        """What its results files have behind their names: scales do not share one."""
        return "" if self.name == "full" else f"-{self.name}"


def _prediction(number: int, env: str, learned: tuple[str, ...]) -> Table:
    title = f"Prediction error, {env}: RMSE (mean over episodes) and R² (median)"
    return Table(number, title, (env,), ("rmse", "r2"), learned)


def _returns(
    number: int, env: str, learned: tuple[str, ...], true: tuple[str, ...], max_episodes: int | None = None
) -> Table:
    return Table(number, f"Average return, {env}", (env,), ("return",), learned, true, max_episodes)


def _few_agents(number: int, env: str, learned: tuple[str, ...], data: str, max_episodes: int | None = None) -> Table:
    title = f"Average return, {env}, few training agents"
    return Table(number, title, (env,), ("return",), _few(learned), (), max_episodes, (data,))


def _unseen(bases: Sequence[str]) -> tuple[str, ...]:
    """Return the variants for unseen agents, for every p."""
    return tuple(name for name, method in METHODS.items() if method.base in bases and method.fraction is not None)


def _few(bases: Sequence[str]) -> tuple[str, ...]:
    """Return the variants of few training agents, for every N."""
    return tuple(name for name, method in METHODS.items() if method.base in bases and method.num_agents is not None)


_PREDICTION_METHODS = ("PerSim", "PerSim+", "PerSim median", *_CADM)
_RETURN_METHODS = (*PERSIMS, *_CADM, *_CADM_PLUS, *_CADM_VI, *_MOREL, *_BCQ_AND_CQL)


def _augmented_budget(method: Method) -> dict[str, Any]:
    """Return how much a policy learns at full scale from an agent's trajectory and five synthetic ones."""
    if method.selected:
        return {"steps": 30_000, "callback_every": 500, "patience": 20, "target_update_interval": 200}
    return {"steps": 20_000} if method.learner is Learner.BCQ else {"steps": 10_000, "target_update_interval": 200}


_TINY_CADM = {"hidden": (8, 8), "iterations": 2, "max_gradient_steps": 4, "futures_per_context": 1}
_TINY_MOREL = {"hidden": (8,), "epochs": 1, "policy_steps": 64, "num_envs": 8}

TABLES = {
    3: Table(
        3, "Average return of BCQ and CQL without and with five synthetic trajectories",
        ("MountainCar", "CartPole", "HalfCheetah"), ("return",),
        (*_BCQ_AND_CQL, *_AUGMENTED),
        data=("random",),
    ),
    5: Table(
        5, "Return and length of the logged trajectories", ("MountainCar", "CartPole", "HalfCheetah"),
        ("return", "length"), ("log",),
    ),
    6: _prediction(6, "MountainCar", (*_PREDICTION_METHODS, *_CADM_PLUS, *_JOINTS)),
    7: _prediction(7, "CartPole", (*_PREDICTION_METHODS, *_CADM_PLUS, *_JOINTS)),
    8: _prediction(8, "HalfCheetah", _PREDICTION_METHODS),
    9: _returns(9, "MountainCar", (*_RETURN_METHODS, *_JOINTS, *_PLAIN), _TRUE),
    10: _returns(10, "CartPole", (*_RETURN_METHODS, *_MOREL_SAMPLED, *_JOINTS, *_PLAIN), _TRUE),
    11: _returns(
        11, "HalfCheetah", ("PerSim", "PerSim+", *_CADM, *_MOREL, *_BCQ_AND_CQL), ("True env + MPC",), max_episodes=5,
    ),
    12: Table(
        12, "Prediction error, MountainCar, unseen agents: RMSE (mean over episodes) and R² (median)", ("MountainCar",),
        ("rmse", "r2"), _unseen(("PerSim", "PerSim+")), data=("pure", "random"),
    ),
    13: Table(
        13, "Average return, MountainCar, unseen agents", ("MountainCar",), ("return",),
        _unseen(PERSIMS), data=("pure", "random"),
    ),
    14: _few_agents(14, "MountainCar", PERSIMS, "random"),
    15: _few_agents(15, "CartPole", PERSIMS, "pure"),
    16: _few_agents(16, "HalfCheetah", ("PerSim", "PerSim+"), "random", max_episodes=5),
}  # fmt: skip

SCALES = {
    "full": Scale(
        "full",
        num_agents=500,
        prediction_episodes=200,
        return_episodes=20,
        grids={"MountainCar": (301, 281), "CartPole": (17, 17, 17, 17)},
        context_grids={"MountainCar": (121, 113), "CartPole": (17, 17, 17, 17)},
        # Each of PE-TS CaDM's plans is twenty times as dear as Vanilla CaDM's, and seeds differ by more than episodes.
        # Value iteration plans once and then acts for nothing, so it runs the episodes that policies run, from which it
        # differs by less than these differ; but in CaDM, where it plans every ten steps, it runs those of MPC, or few.
        method_episodes={**dict.fromkeys(_SOLVED, POLICY_EPISODES), "PE-TS CaDM": 1, "PE-TS CaDM + VI": 5},
        # The paper runs BCQ for 550,000 steps, and says nothing of CQL's. With a target network replaced every 8,000
        # steps, d3rlpy's default, they are 69 replacements; every 200 steps, 20,000 are 100 and 10,000 are 50. How the
        # returns grow is in results/plateau.csv.
        budgets={
            **dict.fromkeys(
                ("Vanilla CaDM", *_CADM_PLUS),
                {"futures_per_context": 4, "max_gradient_steps": 60_000, "matmul_precision": "medium"},
            ),
            # A batch of 256 pairs, as its authors' code has them: four futures cost five members four times as much.
            "PE-TS CaDM": {"futures_per_context": 1, "max_gradient_steps": 60_000, "matmul_precision": "medium"},
            **dict.fromkeys(_MOREL, {"epochs": 100, "policy_steps": 1_000_000, "max_halted": 0.1}),
            "BCQ-P": {"steps": 25_000},  # at 50,000 CartPole's poles fall early again, while MountainCar settles
            "BCQ-A": {"steps": 20_000},
            "CQL-P": {"steps": 20_000, "target_update_interval": 200},
            "CQL-A": {"steps": 10_000, "target_update_interval": 200},
            **{name: _augmented_budget(METHODS[name]) for name in _AUGMENTED},
        },
        env_budgets={"MountainCar": {"BCQ-P": {"steps": 50_000}}},
    ),
    # What two cores of a CPU do of HalfCheetah in an hour.
    "small": Scale(
        "small",
        num_agents=100,
        prediction_episodes=200,
        return_episodes=1,
        grids={},
        changes={
            "state_hidden": (256,) * 4,
            "action_hidden": (256, 256),
            "batch_size": 512,
            "epochs": 40,
            "halve_learning_rate_every": 10,
            "matmul_precision": "medium",
        },
        # Of the paper's planner, as little as did as well as twice of it, and better than twice as much of iCEM, in the
        # true systems of training agents 5 to 10 with a model of random data.
        planner={"planner": "cem", "num_candidates": 20, "num_elites": 5, "num_rounds": 2, "horizon": 20},
        policy_episodes=10,
        budgets={
            **dict.fromkeys(
                _CADM, {"futures_per_context": 2, "max_gradient_steps": 20_000, "matmul_precision": "medium"}
            ),
            **dict.fromkeys(_MOREL, {"max_gradient_steps": 4_000, "policy_steps": 200_000, "max_halted": 0.1}),
            **dict.fromkeys(("BCQ-P", "CQL-P"), {"steps": 5_000}),
            **dict.fromkeys(("BCQ-A", "CQL-A", *_AUGMENTED), {"steps": 1_000}),
        },
        envs=("HalfCheetah",),
    ),
    "quick": Scale(
        "quick",
        num_agents=8,
        prediction_episodes=4,
        return_episodes=1,
        grids={"MountainCar": (31, 29), "CartPole": (5, 7, 7, 7)},
        context_grids={"MountainCar": (11, 9), "CartPole": (5, 7, 7, 7)},
        changes={"epochs": 2, "num_members": 2, "state_hidden": (16,), "action_hidden": (16,)},
        planner={"num_candidates": 20, "horizon": 5},
        policy_episodes=2,
        budgets={
            **dict.fromkeys((*_CADM, *_CADM_PLUS), _TINY_CADM),
            **dict.fromkeys(_MOREL, _TINY_MOREL),
            **dict.fromkeys((*_BCQ_AND_CQL, *_AUGMENTED), {"steps": 2, "batch_size": 4}),
        },
    ),
}


def get_table(number: int) -> Table:
    """Return a table by its number in the paper."""
    if number not in TABLES:
        raise UnknownNameError(f"table {number} is not reproduced here; there are {', '.join(map(str, TABLES))}")
    return TABLES[number]


def returns_table(env: str) -> Table:
    """Return the table of an environment's average returns."""
    return next(table for number, table in TABLES.items() if number >= 9 and table.envs == (env,))


def scale_of(scale: Scale, method: str) -> Scale:
    """Return the scale at which a method is trained: with N agents, and a name of its own, where its variant says so.

    A scale of fewer agents than any N keeps its own number.
    """
    count = METHODS[method].num_agents
    if count is None:
        return scale
    agents = count if scale.num_agents >= min(AGENT_COUNTS) else scale.num_agents
    return replace(scale, name=f"{scale.name}-N{count}", num_agents=agents)


def get_scale(name: str) -> Scale:
    """Return a scale by name."""
    if name not in SCALES:
        raise UnknownNameError(f"no scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]


def check_data(table: Table, data: str) -> str:
    """Return the name of a data set if the table has it."""
    if data not in DATA:
        raise UnknownNameError(f"no data set {data!r}; there are {', '.join(LOGGING_POLICIES)}, and {NO_DATA} for none")
    if not table.methods(data):
        given = "without data" if data == NO_DATA else f"on {data} data"
        raise InvalidArgumentError(f"table {table.number} has no rows {given}; give one of {', '.join(table.data)}")
    return data
