"""What is measured for each of the paper's tables, and at which scale.

Raise an environment's `PROTOCOL` whenever its figures would come out differently: other data sets, shipped policies,
settings, scores. Its results and cached models of another version are then refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unseen import AGENT_COUNTS, agent_count, base_method, papers_name, with_agent_count, with_fraction

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

LOG = "log"
PERSIM = "PerSim"
PERSIM_PLUS = "PerSim+"
PERSIM_MEDIAN = "PerSim median"
PERSIM_VI = "PerSim + VI"
PERSIM_PLUS_VI = "PerSim+ + VI"
TRUE_MPC = "True env + MPC"
TRUE_VI = "True env + VI"
VANILLA_CADM = "Vanilla CaDM"
PE_TS_CADM = "PE-TS CaDM"
MOREL_P, MOREL_A = "MOReL-P", "MOReL-A"
BCQ_P, BCQ_A = "BCQ-P", "BCQ-A"
CQL_P, CQL_A = "CQL-P", "CQL-A"
MOREL_SAMPLED = {f"{method}, sampled": method for method in (MOREL_P, MOREL_A)}
"""The same policies acting at random, as they learned to, instead of by their most likely action."""
JOINT, JOINT_PLUS = "Joint network", "Joint network+"
JOINTS = {JOINT: PERSIM, JOINT_PLUS: PERSIM_PLUS}
"""PerSim without its factorization, and whose settings it has, as far as it knows them; with ours also standardized."""
PERSIM_PLAIN, VANILLA_CADM_PLAIN = "PerSim, plain objective", "Vanilla CaDM, plain objective"
"""Planners without MountainCar's position bonus and CartPole's done mask."""
VANILLA_CADM_VI, PE_TS_CADM_VI = "Vanilla CaDM + VI", "PE-TS CaDM + VI"
"""Value iteration in the simulator that has the context of the agent's last logged transitions."""

SIMULATOR_OF = {
    "PerSim-BCQ-5": PERSIM,
    "PerSim+-BCQ-5": PERSIM_PLUS,
    "PerSim-CQL-5": PERSIM,
    "PerSim+-CQL-5": PERSIM_PLUS,
    "PerSim+ + VI-BCQ-5": PERSIM_PLUS_VI,
    "PerSim+ + VI-CQL-5": PERSIM_PLUS_VI,
    "PerSim+ + VI-BCQ-5, selected": PERSIM_PLUS_VI,
    "PerSim+ + VI-CQL-5, selected": PERSIM_PLUS_VI,
}
"""Which simulators the five synthetic trajectories of Table 3 come from, and how they are planned."""
SELECTED = tuple(method for method in SIMULATOR_OF if method.endswith(", selected"))
"""Of these, those whose trajectories start far apart, and whose policy is the one with the best simulated return."""

CADM = (VANILLA_CADM, PE_TS_CADM)
POLICIES = (MOREL_P, MOREL_A, BCQ_P, BCQ_A, CQL_P, CQL_A)
OURS = (PERSIM_PLUS, PERSIM_PLUS_VI)
"""Methods with our own settings instead of the paper's."""
CADM_VI = {VANILLA_CADM_VI: VANILLA_CADM, PE_TS_CADM_VI: PE_TS_CADM}
VALUE_ITERATION = (PERSIM_VI, PERSIM_PLUS_VI, *CADM_VI, TRUE_VI)
"""Methods that plan by value iteration instead of MPC."""
PLAIN = {PERSIM_PLAIN: PERSIM, VANILLA_CADM_PLAIN: VANILLA_CADM}
"""Methods that plan with a plain objective."""
VARIANT_OF = MOREL_SAMPLED | PLAIN | CADM_VI
"""Which method's policy another acts with, or which one's model it plans in."""

PAPER_METHOD = {
    LOG: LOG,
    PERSIM: "PerSim",
    PERSIM_PLUS: "PerSim",
    PERSIM_MEDIAN: "PerSim",
    PERSIM_VI: "PerSim",
    PERSIM_PLUS_VI: "PerSim",
    TRUE_MPC: "True env+MPC",
    TRUE_VI: "True env+MPC",
    **{method: method for method in CADM},
    **CADM_VI,
    **{method: method for method in POLICIES},
    **MOREL_SAMPLED,
    **{method: f"PerSim-{'BCQ' if 'BCQ' in method else 'CQL'}-5" for method in SIMULATOR_OF},
    **dict.fromkeys(JOINTS, "PerSim"),
    PERSIM_PLAIN: "PerSim",
    VANILLA_CADM_PLAIN: VANILLA_CADM,
}
"""Which of the paper's rows a method of ours stands beside."""
PERSIMS = (PERSIM, PERSIM_PLUS, PERSIM_VI, PERSIM_PLUS_VI)
"""The factorized model, with the paper's settings and ours, with the paper's planner and value iteration."""


def is_persim(method: str) -> bool:
    """Return whether a method of any table plans or predicts with the factorized model."""
    return method.startswith(PERSIM)


def family(method: str) -> str:
    """Return what a method is a variant of, itself if of nothing: no rival of the other variants."""
    return PERSIM if is_persim(method) else VARIANT_OF.get(method, method)


def is_policy(method: str) -> bool:
    """Return whether a method learns a policy, and so runs a scale's ``policy_episodes``."""
    return family(method) in POLICIES or method in SIMULATOR_OF


def plans_by_mpc(method: str) -> bool:
    """Return whether a method's returns are of plans by MPC."""
    return not is_policy(method) and base_method(method) not in VALUE_ITERATION


_VARIANTS = (*with_fraction(PERSIMS), *with_agent_count(PERSIMS))
PAPER_METHOD |= {variant: papers_name(variant, PAPER_METHOD[base_method(variant)]) for variant in _VARIANTS}


def config_name(env: str, method: str) -> str:
    """Return the name in `persim_gym.config.CONFIGS`: the paper's settings, or ours for PerSim+."""
    return f"{env}+" if JOINTS.get(method, base_method(method)) in OURS else env


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

    def training(self, method: str) -> Mapping[str, Any]:
        """Return the budget of what a method acts or plans with, which is another method's where it is a variant."""
        return self.budgets.get(VARIANT_OF.get(method, method), {})

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
    return Table(number, title, (env,), ("return",), with_agent_count(learned), (), max_episodes, (data,))


_RETURN_METHODS = (*PERSIMS, *CADM, *CADM_VI, *POLICIES)
_TINY_CADM = {"hidden": (8, 8), "iterations": 2, "max_gradient_steps": 4, "futures_per_context": 1}
_TINY_MOREL = {"hidden": (8,), "epochs": 1, "policy_steps": 64, "num_envs": 8}

TABLES = {
    3: Table(
        3, "Average return of BCQ and CQL without and with five synthetic trajectories",
        ("MountainCar", "CartPole", "HalfCheetah"), ("return",),
        (BCQ_P, BCQ_A, CQL_P, CQL_A, *SIMULATOR_OF),
        data=("random",),
    ),
    5: Table(
        5, "Return and length of the logged trajectories", ("MountainCar", "CartPole", "HalfCheetah"),
        ("return", "length"), (LOG,),
    ),
    6: _prediction(6, "MountainCar", (PERSIM, PERSIM_PLUS, PERSIM_MEDIAN, *CADM, *JOINTS)),
    7: _prediction(7, "CartPole", (PERSIM, PERSIM_PLUS, PERSIM_MEDIAN, *CADM, *JOINTS)),
    8: _prediction(8, "HalfCheetah", (PERSIM, PERSIM_PLUS, PERSIM_MEDIAN, *CADM)),
    9: _returns(9, "MountainCar", (*_RETURN_METHODS, *JOINTS, *PLAIN), (TRUE_MPC, TRUE_VI)),
    10: _returns(10, "CartPole", (*_RETURN_METHODS, *MOREL_SAMPLED, *JOINTS, *PLAIN), (TRUE_MPC, TRUE_VI)),
    11: _returns(11, "HalfCheetah", (PERSIM, PERSIM_PLUS, *CADM, *POLICIES), (TRUE_MPC,), max_episodes=5),
    12: Table(
        12, "Prediction error, MountainCar, unseen agents: RMSE (mean over episodes) and R² (median)", ("MountainCar",),
        ("rmse", "r2"), with_fraction((PERSIM, PERSIM_PLUS)), data=("pure", "random"),
    ),
    13: Table(
        13, "Average return, MountainCar, unseen agents", ("MountainCar",), ("return",),
        with_fraction(PERSIMS), data=("pure", "random"),
    ),
    14: _few_agents(14, "MountainCar", PERSIMS, "random"),
    15: _few_agents(15, "CartPole", PERSIMS, "pure"),
    16: _few_agents(16, "HalfCheetah", (PERSIM, PERSIM_PLUS), "random", max_episodes=5),
}  # fmt: skip

SCALES = {
    "full": Scale(
        "full",
        num_agents=500,
        prediction_episodes=200,
        return_episodes=20,
        grids={"MountainCar": (301, 281), "CartPole": (17, 17, 17, 17)},
        # Each of PE-TS CaDM's plans is twenty times as dear as Vanilla CaDM's. Value iteration plans once and then acts
        # for nothing, so it runs the episodes that policies run, from which it differs by less than these differ.
        method_episodes={PE_TS_CADM: 5, **dict.fromkeys(VALUE_ITERATION, POLICY_EPISODES)},
        # The paper runs BCQ for 550,000 steps, and says nothing of CQL's. With a target network replaced every 8,000
        # steps, d3rlpy's default, they are 69 replacements; every 200 steps, 20,000 are 100 and 10,000 are 50. How the
        # returns grow is in results/plateau.csv.
        budgets={
            **dict.fromkeys(
                CADM, {"futures_per_context": 4, "max_gradient_steps": 60_000, "matmul_precision": "medium"}
            ),
            **dict.fromkeys((MOREL_P, MOREL_A), {"epochs": 100, "policy_steps": 1_000_000, "max_halted": 0.1}),
            BCQ_P: {"steps": 25_000},  # at 50,000 CartPole's poles fall early again
            BCQ_A: {"steps": 20_000},
            CQL_P: {"steps": 20_000, "target_update_interval": 200},
            CQL_A: {"steps": 10_000, "target_update_interval": 200},
            **{
                method: {"steps": 20_000} if "BCQ" in method else {"steps": 10_000, "target_update_interval": 200}
                for method in SIMULATOR_OF
            },
            **{
                method: {"steps": 30_000, "callback_every": 500, "patience": 20, "target_update_interval": 200}
                for method in SELECTED
            },
        },
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
                CADM, {"futures_per_context": 2, "max_gradient_steps": 20_000, "matmul_precision": "medium"}
            ),
            **dict.fromkeys(
                (MOREL_P, MOREL_A), {"max_gradient_steps": 4_000, "policy_steps": 200_000, "max_halted": 0.1}
            ),
            **dict.fromkeys((BCQ_P, CQL_P), {"steps": 5_000}),
            **dict.fromkeys((BCQ_A, CQL_A, *SIMULATOR_OF), {"steps": 1_000}),
        },
        envs=("HalfCheetah",),
    ),
    "quick": Scale(
        "quick",
        num_agents=8,
        prediction_episodes=4,
        return_episodes=1,
        grids={"MountainCar": (31, 29), "CartPole": (5, 7, 7, 7)},
        changes={"epochs": 2, "num_members": 2, "state_hidden": (16,), "action_hidden": (16,)},
        planner={"num_candidates": 20, "horizon": 5},
        policy_episodes=2,
        budgets={
            **dict.fromkeys(CADM, _TINY_CADM),
            **dict.fromkeys((MOREL_P, MOREL_A), _TINY_MOREL),
            **dict.fromkeys((BCQ_P, BCQ_A, CQL_P, CQL_A, *SIMULATOR_OF), {"steps": 2, "batch_size": 4}),
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
    count = agent_count(method)
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
