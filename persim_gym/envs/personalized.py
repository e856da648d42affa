"""The simulator of one agent as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.envs.binding import bind, check_mode, draw_initial_observations, load
from persim_gym.envs.caution import Caution
from persim_gym.errors import InvalidArgumentError
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.outcomes import bound_task
from persim_gym.simulators.aggregation import aggregated
from persim_gym.simulators.networks.folding import fold
from persim_gym.simulators.networks.steppers import CompiledMeanStepper, MeanStepper, SingleStepper, mean_stepper
from persim_gym.tasks.environment import TaskEnv
from persim_gym.types import FloatArray

if TYPE_CHECKING:
    from persim_gym.simulators.simulator import Simulator


class PersonalizedEnv(TaskEnv):
    """The learned simulator of one agent: ``gym.make("PerSim-CartPole-agent7-v0")``.

    Observation, action, reward, termination, start states, pictures and, unless given, the time limit are the task's,
    the same as the true system's. A task without start states of its own starts in the first states of the log. A step
    is `Simulator.step`, kept within the observation space. If a prediction is not finite, the episode is truncated and
    ``info["diverged"]`` is True.

    A termination that was learned is a probability at each state: whether the episode ends there is drawn with it from
    ``np_random``, so that the risk in each state is that of the log.

    ``info`` after a step holds ``disagreement`` (D,): the standard deviation of the members' predictions. With
    ``disagreement_penalty`` it costs reward, and ``info["penalty"]`` says how much; with ``max_disagreement`` an
    episode is truncated after the first step with more, and ``info["unknown"]`` is True.

    ``reset(options={"state": observation})`` starts from any observed state.
    """

    def __init__(
        self,
        model: str | Path | LearnedDynamics,
        agent: int | str | None = None,
        *,
        covariates: Mapping[str, float] | None = None,
        aggregate: str = "mean",
        ensemble: str = "aggregate",
        uncertainty: bool = False,
        disagreement_penalty: float | Sequence[float] | None = None,
        max_disagreement: float | Sequence[float] | None = None,
        render_mode: str | None = None,
        time_limit: int | None = None,
    ) -> None:
        """Bind a trained ensemble to an agent.

        Args:
            model: the ensemble, its file or its name, or other learned dynamics (`persim_gym.baselines`).
            agent: index or label; the first if neither it nor ``covariates`` is given.
            covariates: all covariates of an agent that was never seen, by name, instead of ``agent``
                (`persim_gym.personalize`).
            aggregate: "mean" or "median" over the members.
            ensemble: "aggregate"; or "member": one member, drawn at each reset, makes the whole episode; or
                "posterior": one member and a factor drawn from the agent's posterior do.
            uncertainty: whether ``info`` holds ``standard_deviation`` (D,) of the next observation, by disagreement,
                the uncertainty of the agent's factor and noise together.
            disagreement_penalty: what each unit of disagreement costs, one number or D of them; in the observation's
                units, as the disagreement is.
            max_disagreement: one number or D of them, in the same units.
            render_mode: None, "rgb_array" or "human".
            time_limit: steps after which an episode is truncated; the task's if not given, −1 for no limit, as ids
                have it: theirs is ``gym.make``'s ``max_episode_steps``.

        Raises:
            UnknownNameError: no such model, agent or covariate.
            InvalidArgumentError: an argument out of its range, or covariates that are incomplete.
            MissingStatisticsError: "posterior" or ``uncertainty``, of a model that knows no posterior.

        """
        check_mode(ensemble, aggregate)
        self.ensemble: LearnedDynamics
        self.ensemble, agents = bind(load(model), agent, covariates)
        if len(agents) != 1:
            raise InvalidArgumentError(
                f"one environment has one agent, not {len(agents)}: more go with "
                "gymnasium.make_vec(..., vectorization_mode='vector_entry_point')"
            )
        self.agent = self.ensemble.agent_index(agents[0])
        task, recorded = bound_task(self.ensemble, [self.agent]), self.ensemble.covariates
        hidden = task.default_covariates
        if recorded is not None and np.isfinite(recorded[self.agent]).all():
            hidden = recorded[self.agent]
        super().__init__(task, hidden, render_mode, time_limit)
        self.caution = Caution.of(task, disagreement_penalty, max_disagreement)
        self.aggregate = aggregate
        self._mode = ensemble
        self._uncertainty = uncertainty
        if ensemble == "posterior" or uncertainty:
            self.ensemble.known_posterior()
        self._member: int | None = None
        """The member that makes the episode, where one does."""
        self._stepper, self._mean = self._steppers()
        space, limit = task.observation_space, inf if self._mean is None else self._mean.limit
        self._lows, self._highs = np.maximum(space.low, -limit).tolist(), np.minimum(space.high, limit).tolist()
        self._member_bounds = self.ensemble.state_bounds
        """Of each member's next state, where the simulator keeps to them."""
        self._reach = sqrt(self.ensemble.num_members - 1)
        """Standard deviations from their mean within which all members lie (Samuelson's inequality)."""
        self._far = True
        """Whether the state may be so large that the model overflows, which must not warn."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        cost = self.caution.cost(info["disagreement"], info.get("diverged", False))
        if cost is not None:
            info["penalty"] = float(cost)
            reward -= info["penalty"]
        return observation, reward, terminated, truncated, info

    @cached_property
    def simulator(self) -> Simulator:
        """The simulator of the agent, for rollouts and planners; what these draw leaves episodes as they are."""
        return self.ensemble.simulator(self.agent, aggregate=self.aggregate)

    def _steppers(self) -> tuple[SingleStepper | _SimulatorStepper, MeanStepper | CompiledMeanStepper | None]:
        """Return what steps every member, and what steps their mean at once, where that is enough."""
        if not isinstance(self.ensemble, Ensemble):
            return _SimulatorStepper(self.ensemble.simulator(self.agent, aggregate=self.aggregate)), None
        network = fold(self.ensemble, self.agent)
        of_mean = self._mode == "aggregate" and self.aggregate == "mean" and MeanStepper.fits(network)
        return SingleStepper(network), mean_stepper(network) if of_mean else None

    def _begin(self, state: FloatArray | None) -> FloatArray:
        if isinstance(self._stepper, _SimulatorStepper):
            self._stepper.reseed(self.np_random)
        if self._mode != "aggregate":
            self._member = int(self.np_random.integers(self.ensemble.num_members))
        if self._mode == "posterior":
            assert isinstance(self.ensemble, Ensemble), "no other model has a posterior"
            factors = self.ensemble.known_posterior().draw([self.agent], self.np_random, 1)[0, :, 0]
            self._stepper = SingleStepper(fold(self.ensemble, self.agent, factors))
        self._far = True
        if state is not None:
            return state
        return draw_initial_observations(self.ensemble, self.np_random, 1)[0]

    def _advance(self, observation: FloatArray, action: Any) -> tuple[FloatArray, bool, dict[str, Any]]:
        step = None if self._mean is None else self._step_of_mean(self._mean, observation, action)
        proposed, disagreement = self._step_of_members(observation, action) if step is None else step
        info: dict[str, Any] = {"disagreement": disagreement}
        if self._uncertainty:
            prediction = self.simulator.step(observation[None], np.asarray(action)[None], uncertainty=True)
            info["standard_deviation"] = prediction.standard_deviation[0]
        if step is None or self._far:
            if not np.isfinite(proposed).all():
                return observation, True, {**info, "diverged": True}
            proposed = np.clip(proposed, self.task.observation_space.low, self.task.observation_space.high)
        unknown = self.caution.limit is not None and bool(self.caution.exceeded(disagreement, False))
        if unknown:
            info["unknown"] = True
        return proposed, unknown, info

    def _step_of_mean(
        self, stepper: MeanStepper | CompiledMeanStepper, observation: FloatArray, action: Any
    ) -> tuple[FloatArray, FloatArray] | None:
        """Return the next state (D,) and the members' deviation (D,); None where a bound may lie among the members."""
        predict = stepper.guarded if self._far else stepper
        proposed, disagreement = predict(observation, action)
        coordinates = zip(self._lows, proposed.tolist(), disagreement.tolist(), self._highs, strict=True)
        self._far = False
        for low, value, deviation, high in coordinates:  # comparing numbers costs a sixth of NumPy's clip
            reach = self._reach * deviation
            if not (low + reach <= value <= high - reach):
                self._far = True
                if not (value + reach < low or value - reach > high):
                    return None
        if self._far and self._member_bounds is not None:
            within = np.clip(proposed, *self._member_bounds)
            proposed, disagreement = within, np.where(within == proposed, disagreement, 0)  # all members meet the bound
        return proposed, disagreement

    def _step_of_members(self, observation: FloatArray, action: Any) -> tuple[FloatArray, FloatArray]:
        """Return the next state (D,) and the members' deviation (D,), each member within the simulator's bounds."""
        with np.errstate(invalid="ignore", over="ignore"):  # a model that diverges
            members = observation + self._stepper.changes(observation, action)
            if self._member_bounds is not None:
                members = np.clip(members, *self._member_bounds)
            if self._member is not None:
                return members[self._member], members.std(axis=0)
            return aggregated(members, self.aggregate), members.std(axis=0)


class _SimulatorStepper:
    """Steps one state of any learned dynamics as `SingleStepper` does PerSim's, through its simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def reseed(self, rng: np.random.Generator) -> None:
        """Start the simulator's own random numbers anew, if it has any."""
        self._simulator.reseed(rng)

    def changes(self, state: np.ndarray, action: int | np.ndarray) -> np.ndarray:
        """Return every member's predicted change (M, D) for a state (D,) and a checked action."""
        return self._simulator.step_members(state[None], np.asarray([action]))[:, 0] - state
