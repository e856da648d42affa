"""Reward and termination that nobody wrote down: learned from the log as further factorized outputs.

What agent n earns by a transition, and the logit of the probability that its episode ends there, is
Σ_l u_l(n)·v_l(x)·w_l(action): the dynamics' encoders (paper, section 4) with a single output. For the reward x is next
state and change; for the termination it is the next state, and w is the same for all actions. Where all agents earn or
end alike, u is the same for all of them, too (`persim_gym.training.outcomes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.config import PerSimConfig
from persim_gym.errors import InvalidArgumentError
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.model.parameters import parameter_shapes
from persim_gym.model.posterior import FactorPosterior
from persim_gym.tasks import PlanningObjective, Task, ToLearn
from persim_gym.tasks.rules import TerminationRisk, never_terminated
from persim_gym.types import FloatArray

if TYPE_CHECKING:
    import torch

SURE = 1e-3
"""Probabilities of termination this close to 0 or 1 are taken for 0 or 1.

A sigmoid reaches neither: inside a region in which episodes never, or always, end it is that close, and a few thousand
rows of a log do not tell the difference. Drawn, it would end some of the episodes that stay there. What this costs: a
true risk below it, which ends less than a fifth of episodes of 200 steps, is not simulated.
"""


@dataclass(frozen=True)
class OutcomeScaling:
    """Standardization of an outcome's inputs x, and of a reward; 0 and 1 for the logit of a termination."""

    input_mean: FloatArray
    """(I,)."""
    input_scale: FloatArray
    """(I,)."""
    output_mean: FloatArray
    """(1,)."""
    output_scale: FloatArray
    """(1,); 0 for a reward that is the same in all rows."""

    def standardized(self, inputs: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return inputs (T, I) and targets (T, 1) as the network has them."""
        divisor = np.where(self.output_scale > 0, self.output_scale, 1.0)
        return (inputs - self.input_mean) / self.input_scale, (targets - self.output_mean) / divisor


@dataclass(frozen=True)
class Outcome:
    """A reward or a termination learned from the log: M members for N agents."""

    parameters: Mapping[str, np.ndarray]
    """float32, as `outcome_shapes` says."""
    scaling: OutcomeScaling
    posterior: FactorPosterior | None = None
    """Of a reward's factors, D being 1, if each agent has its own. Its prior is of the agents learned from; its means
    are the factors of those whose rewards came later, while the others' stay as training left them."""

    def factors(self) -> FloatArray:
        """Return u (M, N, r), shared bias included."""
        return np.asarray(self.parameters["agent.weight"], np.float64) + self.parameters["agent.bias"][:, None]

    def table_rows(self, factors: FloatArray) -> FloatArray:
        """Return the rows (M, n, r) float32 of an agent table by which n agents have the factors u (M, n, r)."""
        return (factors - self.parameters["agent.bias"][:, None]).astype(np.float32)

    def of_agents(self, agents: Sequence[int | None]) -> Outcome:
        """Return the outcome of some agents, in the order given; None for one that the log never saw.

        An agent that was never seen has the prior's mean or, without a posterior, the mean of the others' factors.
        """
        table = self.parameters["agent.weight"]
        mean = table.mean(axis=1)
        if self.posterior is not None:
            mean = self.table_rows(self.posterior.prior.mean[:, None])[:, 0]
        rows = [mean if agent is None else table[:, agent] for agent in agents]
        return replace(
            self,
            parameters={**self.parameters, "agent.weight": np.stack(rows, axis=1)},
            posterior=None if self.posterior is None else self.posterior.with_agents(agents),
        )

    def with_members(self, members: Sequence[int]) -> Outcome:
        """Return the outcome in some of the members only."""
        chosen = list(members)
        return replace(
            self,
            parameters={name: array[chosen] for name, array in self.parameters.items()},
            posterior=None if self.posterior is None else self.posterior.with_members(chosen),
        )


def outcome_shapes(
    task: Task, config: PerSimConfig, num_agents: int, name: str
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and fan-in of the parameters of a learned "reward" or "terminated"."""
    reward = name == "reward"
    return parameter_shapes(
        config,
        num_agents=num_agents,
        observation_size=task.observation_size * (2 if reward else 1),
        action_size=task.action_size if reward else 1,
        discrete=task.discrete or not reward,
        num_outputs=1,
    )


def bound_task(model: LearnedDynamics, agents: Sequence[int]) -> Task:
    """Return the task with the functions that were learned for it, for one agent or one agent for each row of a batch.

    A task that brings its own functions comes back as it is.

    Raises:
        InvalidArgumentError: the task leaves some to be learned, and the model is one that learns none.

    """
    task = model.task
    if not task.learned:
        return task
    outcomes = known_outcomes(model)
    functions: dict[str, Any] = {}
    for name in task.learned:
        outcome = outcomes.get(name)
        if name == "terminated":
            functions[name] = never_terminated if outcome is None else LearnedTermination(outcome, agents)
        elif outcome is not None:  # it is None while `fit` is still at the dynamics
            functions[name] = LearnedReward(outcome, agents)
    objective = _with_learned(task.objective, functions)
    if len(agents) > 1:
        objective = replace(objective, of_agent=partial(_objective_of, model))
    return replace(task, **functions, planning_objective=objective)


def known_outcomes(model: LearnedDynamics) -> Mapping[str, Outcome]:
    """Return what a model has learned of what its task leaves to be learned.

    Raises:
        InvalidArgumentError: the task leaves something, and the model is one that learns none.

    """
    if model.outcomes is None and model.task.learned:
        raise InvalidArgumentError(
            f"task {model.task.name} leaves {', '.join(model.task.learned)} to be learned; {type(model).__name__} "
            "learns none: use PerSim's ensemble, or give the task these functions"
        )
    return model.outcomes or {}


def _objective_of(model: LearnedDynamics, agent: int) -> PlanningObjective:
    return bound_task(model, [agent]).objective


def reward_inputs(observations: Any, next_observations: Any) -> tuple[Any, Any]:
    """Return the parts (…, D) that make up x for the reward."""
    return next_observations, next_observations - observations


class LearnedReward:
    """A `persim_gym.tasks.RewardFn`: the members' mean."""

    def __init__(self, outcome: Outcome, agents: Sequence[int]) -> None:
        self._outcome = _Bound(outcome, agents)

    def __call__(self, observations: Any, actions: Any, next_observations: Any) -> Any:
        return self._outcome(reward_inputs(observations, next_observations), actions)


class LearnedTermination(TerminationRisk):
    """The members' mean probability."""

    def __init__(self, outcome: Outcome, agents: Sequence[int]) -> None:
        self._outcome = _Bound(outcome, agents, probability=True)

    def probability(self, next_observations: Any) -> Any:
        """Return the probability (…) that an episode ends in the state (…, D), 0 and 1 where it is `SURE`."""
        return self._outcome((next_observations,), None)


class _Bound:
    """An outcome for given agents; NumPy arrays in, NumPy arrays out; torch tensors in, torch tensors out."""

    def __init__(self, outcome: Outcome, agents: Sequence[int], *, probability: bool = False) -> None:
        self._arrays = dict(outcome.parameters)
        self._arrays["agent.weight"] = self._arrays["agent.weight"][:, list(agents)]
        self._scaling, self._num_agents, self._probability = outcome.scaling, len(agents), probability
        self._on_device: dict[torch.device, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}

    def __call__(self, parts: Sequence[Any], actions: Any) -> Any:
        """Return the members' mean (…) for parts (…, D) of x and actions (…) or (…, A), or None for a single w."""
        import torch

        from persim_gym.model.factorization import member_actions, member_rows, predict

        numpy = not isinstance(parts[0], torch.Tensor)
        columns = [torch.tensor(np.asarray(part, np.float32)) if numpy else part.float() for part in parts]
        leading, device = columns[0].shape[:-1], columns[0].device
        parameters, scaling = self._on(device)
        members, table_size = parameters["agent.weight"].shape[0], 0
        states = torch.cat(columns, dim=-1)
        states = (states.reshape(-1, states.shape[-1]) - scaling["input_mean"]) / scaling["input_scale"]
        agents = torch.zeros(len(states), dtype=torch.int64, device=device)
        if self._num_agents > 1:
            agents = torch.arange(self._num_agents, device=device).expand(leading).reshape(-1)
        taken = torch.as_tensor(0 if actions is None else actions, device=device)
        if "action.weight" in parameters:
            taken, table_size = taken.expand(leading).reshape(-1), parameters["action.weight"].shape[1]
        else:
            taken = taken.float().expand(*leading, taken.shape[-1]).reshape(len(states), -1)
        with torch.inference_mode():
            rows = member_rows(agents, members, self._num_agents).view(-1)
            moves = member_actions(taken, members, table_size)
            outputs = predict(parameters, states.T.expand(members, -1, -1), rows, moves)[:, 0]
            if self._probability:
                likely = outputs.sigmoid().mean(0)
                result = torch.where((likely < SURE) | (likely > 1 - SURE), likely.round(), likely)
            else:
                result = outputs.mean(0) * scaling["output_scale"] + scaling["output_mean"]
            result = result.reshape(leading)
        return result.numpy() if numpy else result

    def _on(self, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the parameters and the scaling on a device."""
        from persim_gym.devices import on_device

        if device not in self._on_device:
            scaling = {name: np.asarray(array, np.float32) for name, array in vars(self._scaling).items()}
            self._on_device[device] = on_device(self._arrays, device), on_device(scaling, device)
        return self._on_device[device]


def _with_learned(objective: PlanningObjective, functions: dict[str, Any]) -> PlanningObjective:
    """Return an objective with learned functions in the place of those that were to be learned."""
    return replace(
        objective, **{name: one for name, one in functions.items() if isinstance(getattr(objective, name), ToLearn)}
    )
