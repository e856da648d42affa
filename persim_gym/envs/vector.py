"""The simulators of many agents as one Gymnasium vector environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from persim_gym.arguments import array_or_object, whole_number
from persim_gym.envs.binding import bind, check_mode, draw_initial_observations, load
from persim_gym.envs.caution import Caution
from persim_gym.errors import (
    EpisodeOverError,
    InvalidArgumentError,
    OutOfMemoryError,
)
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.outcomes import known_outcomes
from persim_gym.tasks.environment import checked_options, step_limit
from persim_gym.tasks.rules import ended
from persim_gym.types import BoolArray, FloatArray, IntArray, Prediction

if TYPE_CHECKING:
    from persim_gym.simulators.factor_simulator import FactorSimulator
    from persim_gym.simulators.simulator import Simulator

AUTORESET_MODES = ("next_step", "same_step", "disabled")


def _autoreset_name(mode: Any) -> str:
    """Return the name of an autoreset mode given by name or as Gymnasium's enum."""
    text = str(getattr(mode, "name", mode)).lower()
    if text not in AUTORESET_MODES:
        raise InvalidArgumentError(f"autoreset_mode={mode!r} must be one of {', '.join(AUTORESET_MODES)}")
    return text


def autoreset_metadata(name: str) -> Any:
    """Return Gymnasium's enum for a mode, or its name where Gymnasium is 1.0 and has none."""
    modes = getattr(gymnasium.vector, "AutoresetMode", None)
    return name if modes is None else modes[name.upper()]


class PersonalizedVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The simulators of many agents, one state each, stepped together.

    ``gym.make_vec("PerSim-CartPole-v0", num_envs=1024, vectorization_mode="vector_entry_point", agent=[…])``

    What happens to an environment whose episode ended is Gymnasium's choice of three (``autoreset_mode``):

    * "next_step": the next call of `step` resets it, ignores its action and returns reward 0;
    * "same_step": it is reset at once; ``info["final_obs"]`` and ``info["final_info"]`` hold the episode's last;
    * "disabled": `step` refuses until ``reset(options={"reset_mask": mask})`` has reset it.

    Gymnasium 1.0 has "next_step" only, and so have its own vector wrappers: in the other modes
    `gymnasium.wrappers.vector.RecordEpisodeStatistics` counts wrongly there; Stable-Baselines3's `VecMonitor` does not.

    Simulated states are kept within the observation space. A continuous action is brought within its bounds before it
    acts and is rewarded. A termination that was learned is drawn with its probability, as in `PersonalizedEnv`.

    ``info`` is what Gymnasium's own vector environments make of single ones': ``disagreement`` (B, D), the members'
    standard deviation, and ``_disagreement`` (B,), which says where it means anything. An environment whose model
    diverges is truncated; after a step in which that happened, and only then, ``diverged`` (B,) and ``_diverged`` (B,)
    say where; ``unknown`` and ``_unknown`` do so where there was more than ``max_disagreement``. In "same_step" mode
    ``final_info`` holds these of the episodes that ended.
    """

    metadata = {"render_modes": [], "autoreset_mode": autoreset_metadata("next_step")}

    def __init__(
        self,
        model: str | Path | LearnedDynamics,
        num_envs: int = 1,
        agent: int | str | Sequence[int | str] | None = None,
        *,
        covariates: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        aggregate: str = "mean",
        ensemble: str = "aggregate",
        uncertainty: bool = False,
        disagreement_penalty: float | Sequence[float] | None = None,
        max_disagreement: float | Sequence[float] | None = None,
        time_limit: int | None = None,
        max_episode_steps: int | None = None,
        device: str = "cpu",
        autoreset_mode: Any = "next_step",
        render_mode: None = None,
    ) -> None:
        """Bind a trained ensemble to agents.

        Args:
            model: the ensemble, its file or its name, or other learned dynamics (`persim_gym.baselines`).
            num_envs: B.
            agent: one agent for all environments, or a sequence of B; agent 0 if neither it nor ``covariates`` is
                given.
            covariates: of an agent that was never seen, or of B such agents, instead of ``agent``.
            aggregate: "mean" or "median" over the members.
            ensemble: "aggregate", "member" or "posterior", as for `PersonalizedEnv`: what is drawn there at each reset
                is drawn here at the reset of each environment.
            uncertainty: whether ``info`` holds ``standard_deviation`` (B, D), as for `PersonalizedEnv`, and where it
                means anything, ``_standard_deviation`` (B,).
            disagreement_penalty: what each unit of disagreement costs, as for `PersonalizedEnv`; ``info`` then holds
                ``penalty`` (B,).
            max_disagreement: with more an episode is truncated, as for `PersonalizedEnv`.
            time_limit: steps after which an episode is truncated; the task's if not given, −1 for no limit.
            max_episode_steps: the same by the name that ``gym.make_vec`` has for it; of two limits the lesser holds.
            device: to simulate on.
            autoreset_mode: "next_step", "same_step" or "disabled", or Gymnasium's `AutoresetMode`, which 1.0 lacks.
            render_mode: must be None.

        Raises:
            InvalidArgumentError: one of them is out of its range.
            UnknownNameError: no such model or agent.
            MissingStatisticsError: "posterior" or ``uncertainty``, of a model that knows no posterior.

        """
        num_envs = whole_number("num_envs", num_envs)
        if render_mode is not None:
            raise InvalidArgumentError("a vector environment draws nothing; render a PerSim-…-agentN-v0 instead")
        self.autoreset_mode = _autoreset_name(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_metadata(self.autoreset_mode)}
        check_mode(ensemble, aggregate)
        known, agents = bind(load(model), agent, covariates)
        if len(agents) not in (1, num_envs):
            raise InvalidArgumentError(f"{len(agents)} agents were given for num_envs={num_envs} environments")
        known_outcomes(known)  # says at once if rewards or ends of episodes are missing
        if uncertainty:
            known.known_posterior()
        self.ensemble, self.num_envs = known, num_envs
        self._stepping = known.simulator(agents=agents, aggregate=aggregate, device=device)
        self.simulator = self._stepping
        """The simulator of these agents, for batches and planners; what these draw leaves episodes as they are."""
        if self._stepping.stochastic:
            self.simulator = known.simulator(agents=agents, aggregate=aggregate, device=device)
        self.task = self.simulator.task
        self.max_episode_steps = step_limit(self.task, time_limit, max_episode_steps)
        self._uncertainty = uncertainty
        self.caution = Caution.of(self.task, disagreement_penalty, max_disagreement)
        self.single_observation_space = copy.deepcopy(self.task.observation_space)
        self.single_action_space = copy.deepcopy(self.task.action_space)
        self._observations: FloatArray | None = None
        try:
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
            self._steps = np.zeros(num_envs, np.int64)
            self._ended = np.zeros(num_envs, bool)
        except (MemoryError, ValueError) as error:  # NumPy's word for more than can be counted is ValueError
            raise OutOfMemoryError(f"out of memory ({error}); lower num_envs={num_envs}") from error
        self._drawn = None if ensemble == "aggregate" else _DrawnMembers(known, self._stepping, num_envs, ensemble)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: seed of the one generator that draws start states and learned terminations: one number, or B of them
                that are combined into one. None keeps the current generator.
            options: "state", a start state for all (D,) or one for each (B, D); "reset_mask", (B,) booleans: which
                environments to reset, at least one; the others stay where they are.

        Raises:
            InvalidStateError: states of another shape or not finite.
            InvalidArgumentError: a mask of another shape or type, or without any True; another number of seeds.

        """
        super().reset(seed=self._single_seed(seed))
        self._stepping.reseed(self.np_random)
        given = checked_options(options, ("state", "reset_mask"))
        mask = np.ones(self.num_envs, bool)
        if given.get("reset_mask") is not None:
            mask = self._checked_mask(given["reset_mask"])
        if given.get("state") is not None:
            fresh = self._checked_states(given["state"])[mask]
        else:
            fresh = draw_initial_observations(self.ensemble, self.np_random, int(mask.sum()))
        if self._drawn is not None:
            self._drawn.draw(np.flatnonzero(mask), self.np_random)
        if self._observations is None:
            self._observations = np.empty((self.num_envs, self.task.observation_size), np.float32)
        self._observations[mask] = fresh
        self._steps[mask] = 0
        self._ended[mask] = False
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._observations is None:
            raise EpisodeOverError("call reset() before step()")
        if self.autoreset_mode == "disabled" and self._ended.any():
            raise EpisodeOverError(
                f"the episode of environment {int(np.flatnonzero(self._ended)[0])} is over: call "
                "reset(options={'reset_mask': terminated | truncated}), or choose another autoreset_mode"
            )
        actions = self.task.executed(actions, self.num_envs)
        before, resetting = self._observations, self._ended
        model = self._stepping if self._drawn is None else self._drawn
        prediction = model.step(before, actions, uncertainty=self._uncertainty)
        after, diverged = self._within_space(before, prediction.next_observations)
        rewards = np.array(self.task.reward(before, actions, after), np.float64)  # a copy: both are written to below
        terminated = np.asarray(ended(self.task, after, self.np_random), bool)
        cost = self.caution.cost(prediction.disagreement, diverged)
        if cost is not None:
            rewards -= cost
        self._steps += 1
        unknown = self.caution.exceeded(prediction.disagreement, diverged)
        truncated = diverged | unknown | (self._steps >= self.max_episode_steps)
        if resetting.any():  # next-step autoreset
            self._begin(after, resetting)
            rewards[resetting], terminated[resetting], truncated[resetting] = 0.0, False, False
        self._observations = after
        self._ended = over = terminated | truncated
        told = {"disagreement": prediction.disagreement}
        if prediction.standard_deviation is not None:
            told["standard_deviation"] = prediction.standard_deviation
        if cost is not None:
            told["penalty"] = cost
        broken = {}
        for name, where in (("diverged", diverged & ~resetting), ("unknown", unknown & ~resetting)):
            if where.any():
                broken |= _masked({name: where}, where)
        if self.autoreset_mode == "same_step" and self._ended.any():
            final = {"final_obs": self._reset_at_once(after), "final_info": {**_masked(told, over), **broken}}
            info = {**_masked(told, ~over), **_masked(final, over)}
        else:
            info = {**_masked(told, ~resetting), **broken}
        return after.copy(), rewards, terminated, truncated, info

    def _reset_at_once(self, observations: FloatArray) -> np.ndarray:
        """Begin new episodes where one ended; return the states that those ended in, (B,) objects, None elsewhere."""
        final = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(self._ended):
            final[row] = observations[row].copy()
        self._begin(observations, self._ended)
        self._ended = np.zeros(self.num_envs, bool)
        return final

    def _begin(self, observations: FloatArray, mask: BoolArray) -> None:
        """Put random initial states into the rows of a mask."""
        observations[mask] = draw_initial_observations(self.ensemble, self.np_random, int(mask.sum()))
        self._steps[mask] = 0
        if self._drawn is not None:
            self._drawn.draw(np.flatnonzero(mask), self.np_random)

    def _within_space(self, before: FloatArray, proposed: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Return states (B, D) within the observation space, and which (B,) diverged and stay where they were."""
        space = self.task.observation_space
        after = np.clip(proposed, space.low, space.high)
        finite = np.isfinite(proposed)
        if finite.all():
            return after, np.zeros(self.num_envs, bool)
        diverged = np.logical_not(finite.all(axis=1))
        after[diverged] = before[diverged]
        return after, diverged

    def _single_seed(self, seed: int | Sequence[int] | None) -> int | None:
        """Return the seed that one for each environment amount to."""
        if not isinstance(seed, (Sequence, np.ndarray)):
            return seed
        if len(seed) != self.num_envs:
            raise InvalidArgumentError(f"seed={seed!r} must be one whole number, or {self.num_envs} of them")
        each = [whole_number("seed", one, least=0) for one in seed]
        return int(np.random.SeedSequence(each).generate_state(1)[0])

    def _checked_states(self, state: Any) -> FloatArray:
        """Return start states (B, D), given for each or one for all."""
        leading = (self.num_envs,) if array_or_object(state).ndim > 1 else ()
        return np.broadcast_to(self.task.check_states(state, *leading), (self.num_envs, self.task.observation_size))

    def _checked_mask(self, mask: Any) -> BoolArray:
        given = array_or_object(mask)
        if given.shape != (self.num_envs,) or given.dtype != bool or not given.any():
            raise InvalidArgumentError(
                f"reset_mask must be booleans of shape ({self.num_envs},) with at least one True, got {mask!r}"
            )
        if self._observations is None:
            raise EpisodeOverError("no episode has begun: call reset() without a reset_mask first")
        return given


def _masked(values: Mapping[str, Any], mask: BoolArray) -> dict[str, Any]:
    """Return an info of some values, and for each of them where (B,) it means anything, as Gymnasium has it."""
    return {**values, **{f"_{name}": mask for name in values}}


class _DrawnMembers:
    """Steps B environments, each by one member, and with factors drawn from its agent's posterior if asked."""

    def __init__(self, model: LearnedDynamics, simulator: Simulator, num_envs: int, mode: str) -> None:
        """Prepare for B environments; what they follow is drawn by `draw`.

        Args:
            model: the ensemble.
            simulator: of it, bound to one agent or to B.
            num_envs: B.
            mode: "member" or "posterior".

        """
        self._members = np.zeros(num_envs, np.int64)
        self._simulator = self._bound = simulator
        self._own: FactorSimulator | None = None
        """Where factors are drawn: the simulator whose rows have their own."""
        if mode == "posterior":
            from persim_gym.simulators.factor_simulator import FactorSimulator

            model.known_posterior()
            assert isinstance(model, Ensemble), "no other model has a posterior"
            agents = np.broadcast_to(simulator.agents, num_envs)
            self._simulator = self._own = FactorSimulator(model, agents, device=simulator.device, own_factors=True)

    def draw(self, rows: IntArray, rng: np.random.Generator) -> None:
        """Draw what the environments of some rows follow from now on."""
        self._members[rows] = rng.integers(self._simulator.num_members, size=len(rows))
        if self._own is not None and len(rows):
            posterior = self._own.ensemble.known_posterior()
            self._own.set_factors(rows, posterior.draw(self._own.agents[rows], rng, 1)[0])

    def step(self, observations: FloatArray, actions: np.ndarray, *, uncertainty: bool) -> Prediction:
        """Predict one step (B, D); the uncertainty is the simulator's, of nothing that was drawn."""
        following = self._simulator.step_members(observations, actions)
        with np.errstate(invalid="ignore", over="ignore"):  # a model that diverges
            disagreement = following.std(axis=0)
        whole = self._bound.step(observations, actions, uncertainty=True) if uncertainty else None
        return Prediction(
            following[self._members, np.arange(len(self._members))],
            disagreement,
            None if whole is None else whole.standard_deviation,
        )
