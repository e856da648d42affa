"""The methods that the tables have rows of: of each, all that tells it from the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

LOG = "log"
"""Name of the logged trajectories' row, here and in the paper's figures."""
FRACTIONS = (1.0, 0.5, 0.25, 0.1)
"""p, of Tables 12 and 13 (appendix F.5 of the paper): the part of the training agents whose covariates are known."""
AGENT_COUNTS = (250, 100, 50, 25)
"""N, of Tables 14, 15 and 16 (appendix F.6): the number of training agents."""


class Model(Enum):
    """Dynamics that a method predicts with, plans in, or generates trajectories in."""

    PERSIM = auto()
    JOINT = auto()
    """PerSim without its factorization."""
    CADM = auto()
    TRUE = auto()
    """The true systems."""
    LOG = auto()
    """None: the logged trajectories as they are."""


class Planner(Enum):
    """How actions are planned in a model."""

    MPC = auto()
    VALUE_ITERATION = auto()
    """On a grid of states; in CaDM, every ten steps anew, as its context follows the episode."""


class Learner(Enum):
    """What learns a policy from a log."""

    MOREL = auto()
    BCQ = auto()
    CQL = auto()


@dataclass(frozen=True)
class Method:
    """One row of the tables. It has a model, a learner, or both: then it learns from the model's trajectories, too."""

    name: str
    """In tables, on the command line, in results files."""
    paper: str
    """The paper's row that it stands beside."""
    model: Model | None = None
    our_settings: bool = False
    """Whether the model has our settings instead of the paper's, as far as it knows them."""
    planner: Planner = Planner.MPC
    """How its model is planned in, if it is."""
    plain_objective: bool = False
    """Whether plans lack MountainCar's position bonus and CartPole's done mask."""
    aggregate: str = "mean"
    """Of the members' predictions."""
    learner: Learner | None = None
    own_data: bool = False
    """Whether a policy is learned from the agent's own data, instead of once from everyone's."""
    sampled: bool = False
    """Whether the policy acts at random, as it learned to, instead of by its most likely action."""
    selected: bool = False
    """Whether synthetic trajectories start far apart, and the policy is the one with the best simulated return."""
    fraction: float | None = None
    """p, where it meets agents that it was never trained on."""
    num_agents: int | None = None
    """N, where it is trained on so few agents."""
    variant_of: str | None = None
    """Name of the method that it differs from in one thing; it has its budget and, but for N, its trained model."""

    @property
    def base(self) -> str:
        """Name of the method that it is a variant of; its own if of none."""
        return self.variant_of or self.name

    @property
    def is_persim(self) -> bool:
        """Whether it plans, predicts or generates trajectories with the factorized model."""
        return self.model is Model.PERSIM

    @property
    def solves_contexts(self) -> bool:
        """Whether it is value iteration in a simulator whose context changes along an episode."""
        return self.model is Model.CADM and self.planner is Planner.VALUE_ITERATION

    @property
    def is_augmented(self) -> bool:
        """Whether it learns a policy from a simulator's trajectories, too."""
        return self.model is not None and self.learner is not None

    @property
    def family(self) -> str:
        """What its variants have in common, and all of the factorized model: none is another's rival."""
        return "PerSim" if self.is_persim else self.base

    def acts_by(self, planner: Planner) -> bool:
        """Return whether its returns are of such plans, and not of a learned policy."""
        return self.learner is None and self.planner is planner

    def config_name(self, env: str) -> str:
        """Return the name of its model's settings in `persim_gym.config.CONFIGS`."""
        return f"{env}+" if self.our_settings else env


_VI = Planner.VALUE_ITERATION
_PERSIM = Method("PerSim", "PerSim", Model.PERSIM)
_PERSIM_PLUS = replace(_PERSIM, name="PerSim+", our_settings=True)
_PERSIM_VI = replace(_PERSIM, name="PerSim + VI", planner=_VI)
_PERSIM_PLUS_VI = replace(_PERSIM_PLUS, name="PerSim+ + VI", planner=_VI)
_BCQ_5 = replace(_PERSIM, name="PerSim-BCQ-5", paper="PerSim-BCQ-5", learner=Learner.BCQ, own_data=True)
_CQL_5 = replace(_PERSIM, name="PerSim-CQL-5", paper="PerSim-CQL-5", learner=Learner.CQL, own_data=True)
_BCQ_5_VI = replace(_BCQ_5, name="PerSim+ + VI-BCQ-5", our_settings=True, planner=_VI)
_CQL_5_VI = replace(_CQL_5, name="PerSim+ + VI-CQL-5", our_settings=True, planner=_VI)
_VANILLA_CADM = Method("Vanilla CaDM", "Vanilla CaDM", Model.CADM)
_PE_TS_CADM = Method("PE-TS CaDM", "PE-TS CaDM", Model.CADM)
_MOREL_P = Method("MOReL-P", "MOReL-P", learner=Learner.MOREL)
_MOREL_A = Method("MOReL-A", "MOReL-A", learner=Learner.MOREL, own_data=True)
_JOINT = Method("Joint network", "PerSim", Model.JOINT)


def _variant(of: Method, name: str, **changes: Any) -> Method:
    """Return a method that differs from another in one thing."""
    return replace(of, name=name, variant_of=of.name, **changes)


def _of_unseen_agents(method: Method, fraction: float) -> Method:
    """Return a method of Tables 12 and 13."""
    part = f"(p={fraction})"
    return _variant(method, f"{method.name} {part}", paper=method.paper + part, fraction=fraction)


def _of_few_agents(method: Method, count: int) -> Method:
    """Return a method of Tables 14 to 16."""
    number = f"(N={count})"
    return _variant(method, f"{method.name} {number}", paper=method.paper + number, num_agents=count)


_PERSIMS = (_PERSIM, _PERSIM_PLUS, _PERSIM_VI, _PERSIM_PLUS_VI)
METHODS = {
    method.name: method
    for method in (
        Method(LOG, LOG, Model.LOG),
        _PERSIM,
        _PERSIM_PLUS,
        _variant(_PERSIM, "PerSim median", aggregate="median"),
        _PERSIM_VI,
        _PERSIM_PLUS_VI,
        Method("True env + MPC", "True env+MPC", Model.TRUE),
        Method("True env + VI", "True env+MPC", Model.TRUE, planner=_VI),
        _VANILLA_CADM,
        _PE_TS_CADM,
        replace(_VANILLA_CADM, name="Vanilla CaDM+", our_settings=True),
        _variant(_VANILLA_CADM, "Vanilla CaDM + VI", planner=_VI),
        _variant(_PE_TS_CADM, "PE-TS CaDM + VI", planner=_VI),
        _MOREL_P,
        _MOREL_A,
        Method("BCQ-P", "BCQ-P", learner=Learner.BCQ),
        Method("BCQ-A", "BCQ-A", learner=Learner.BCQ, own_data=True),
        Method("CQL-P", "CQL-P", learner=Learner.CQL),
        Method("CQL-A", "CQL-A", learner=Learner.CQL, own_data=True),
        _variant(_MOREL_P, "MOReL-P, sampled", sampled=True),
        _variant(_MOREL_A, "MOReL-A, sampled", sampled=True),
        _BCQ_5,
        replace(_BCQ_5, name="PerSim+-BCQ-5", our_settings=True),
        _CQL_5,
        replace(_CQL_5, name="PerSim+-CQL-5", our_settings=True),
        _BCQ_5_VI,
        _CQL_5_VI,
        replace(_BCQ_5_VI, name="PerSim+ + VI-BCQ-5, selected", selected=True),
        replace(_CQL_5_VI, name="PerSim+ + VI-CQL-5, selected", selected=True),
        _JOINT,
        replace(_JOINT, name="Joint network+", our_settings=True),
        _variant(_PERSIM, "PerSim, plain objective", plain_objective=True),
        _variant(_VANILLA_CADM, "Vanilla CaDM, plain objective", plain_objective=True),
        *(_of_unseen_agents(method, fraction) for method in _PERSIMS for fraction in FRACTIONS),
        *(_of_few_agents(method, count) for method in _PERSIMS for count in AGENT_COUNTS),
    )
}
"""By name, in the order of rows in the results files."""

PERSIMS = tuple(method.name for method in _PERSIMS)
"""The factorized model, with the paper's settings and ours, with the paper's planner and with value iteration."""
