"""Planners against closed forms and exhaustive search; rollouts against plain loops; `MPCAgent` in its evaluators."""

import dataclasses
import itertools
import math
from functools import partial
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from support import DEEP, SMALL, perfect_walk_ensemble, random_actions, random_ensemble, walk_task

from persim_gym import MPCAgent, ValueIterationAgent, errors, get_task, true_mpc_returns
from persim_gym.planning import ContinuousSearch, DiscreteSearch, cross_entropy_method, random_shooting
from persim_gym.planning.cem import truncated_normal
from persim_gym.rollouts import simulated_returns, true_returns
from persim_gym.tasks import PlanningObjective
from persim_gym.tasks.rules import TerminationRisk


def cold(environments, horizon, *action):
    """Parts of a search without a previous plan."""
    return {"previous": np.zeros((environments, horizon, *action)), "warm": np.zeros(environments, bool)}


class TestRandomShooting:
    """Uniform sequences of discrete actions."""

    @staticmethod
    def search(returns, *, previous, warm, seed=0, max_return=None, **settings):
        given = returns, np.random.default_rng(seed), previous, warm
        return random_shooting(DiscreteSearch(*given, num_actions=3, max_return=max_return), **settings)

    @staticmethod
    def walk(starts):
        """Returns −Σ|x_t| of a walk on a line from each environment's start, with steps a − 1."""

        def returns(environments, actions):
            positions = np.asarray(starts)[environments][:, None, None] + np.cumsum(actions - 1, axis=2)
            return -np.abs(positions).sum(axis=2).astype(float)

        return returns

    @pytest.mark.parametrize("horizon", [1, 2, 4])
    def test_enough_candidates_find_the_optimum(self, horizon):
        """Of each of several environments at once: the best of all 3^H sequences, listed one by one."""
        starts = [-3, 0, 5]
        returns = self.walk(starts)
        plan = self.search(returns, num_candidates=1500, **cold(3, horizon))
        everything = np.array(list(itertools.product(range(3), repeat=horizon)))
        for row in range(3):
            scores = returns(np.array([row]), everything[None])[0]
            np.testing.assert_array_equal(plan.actions[row], everything[scores.argmax()])
            assert plan.returns[row] == scores.max()
        assert plan.actions[:, 0].tolist() == [2, 1, 0]

    def test_the_previous_plan_is_the_first_candidate(self):
        """Shifted by one, its last action drawn anew; only where there is one."""
        previous, seen = np.tile(np.arange(8) % 3, (2, 1)), []

        def returns(environments, actions):
            seen.append(actions)
            return np.zeros(actions.shape[:2])

        self.search(returns, previous=previous, warm=np.array([True, False]), num_candidates=9)
        np.testing.assert_array_equal(seen[0][0, 0, :-1], previous[0, 1:])
        assert not np.array_equal(seen[0][1, 0, :-1], previous[1, 1:])
        assert set(np.unique(seen[0])) == {0, 1, 2}

    @pytest.mark.parametrize("seed", range(5))
    def test_early_stop_equals_exhaustive_search(self, seed):
        """With a return that cannot be beaten, fewer candidates are scored and the plan is the same."""
        scored = {}

        def counting(key):
            def returns(environments, actions):
                scored[key] = scored.get(key, 0) + actions[..., 0].size
                # Environment 0: any sequence that begins with 1 is perfect; 1: a rare one; 2: none.
                needed = [1, 4, 13]
                hits = [(actions[row, :, :n] == 1).sum(1) / n for row, n in enumerate(np.take(needed, environments))]
                return np.array(hits)

            return returns

        plans = [
            self.search(counting(key), seed=seed, num_candidates=600, max_return=key, **cold(3, 12))
            for key in (None, 1.0)
        ]
        for field in ("actions", "returns", "best", "warm_start"):
            np.testing.assert_array_equal(getattr(plans[0], field), getattr(plans[1], field))
        assert plans[0].returns[0] == plans[0].returns[1] == 1.0 > plans[0].returns[2]
        assert scored[None] == 3 * 600 > scored[1.0]

    def test_nan_is_never_the_best(self):
        """All finite returns are negative; those of sequences that begin with 1 are not numbers."""

        def returns(environments, actions):
            broken = np.where(actions[..., 1] == 1, np.inf, np.nan)
            return np.where(actions[..., 0] == 1, broken, -1.0 - actions.sum(2))

        plan = self.search(returns, num_candidates=200, **cold(1, 3))
        np.testing.assert_array_equal(plan.actions, [[0, 0, 0]])
        assert plan.returns[0] == -1.0

    def test_the_first_look_may_find_nothing(self):
        """With an early stop only some are scored at first; that none of those has a number is no error yet."""
        looks = []

        def returns(environments, actions):
            looks.append(actions)
            return np.where(len(looks) == 1, np.nan, -actions.sum(2, dtype=float))

        plan = self.search(returns, num_candidates=500, max_return=1.0, **cold(1, 5))
        assert len(looks) > 1
        assert plan.returns[0] == -min(look.sum(2).min() for look in looks[1:])


class TestCrossEntropy:
    """The cross-entropy method for continuous actions."""

    @staticmethod
    def search(returns, *, previous, warm, bound=1.0, seed=0, **settings):
        high = np.full(previous.shape[2], bound)
        given = returns, np.random.default_rng(seed), previous, warm
        return cross_entropy_method(ContinuousSearch(*given, low=-high, high=high), **settings)

    @pytest.mark.parametrize("horizon", [1, 3, 6])
    @pytest.mark.parametrize("candidates", [200, 500])
    def test_cem_solves_linear_quadratic_control(self, horizon, candidates):
        """x' = x + a, return −Σ(x'² + a²/2): the plan is the least-squares solution, for several starts at once."""
        starts = np.array([0.8, -0.5, 0.0])

        def returns(environments, actions):
            positions = starts[environments][:, None, None] + np.cumsum(actions[..., 0], axis=2)
            return -(np.square(positions) + 0.5 * np.square(actions[..., 0])).sum(2)

        plan = self.search(returns, num_candidates=candidates, num_rounds=12, **cold(3, horizon, 1))
        cumulative = np.tril(np.ones((horizon, horizon)))
        design = np.concatenate([cumulative, np.sqrt(0.5) * np.eye(horizon)])
        for row, start in enumerate(starts):
            target = np.concatenate([np.full(horizon, -start), np.zeros(horizon)])
            optimum = np.linalg.lstsq(design, target, rcond=None)[0]
            np.testing.assert_allclose(plan.actions[row, :, 0], optimum, atol=0.03)
            best = -np.square(design @ optimum - target).sum()
            assert best - 0.01 < plan.returns[row] <= best + 1e-9

    def test_bounds(self):
        """The optimum beyond the bound is approached from within."""

        def returns(environments, actions):
            assert np.abs(actions).max() <= 0.5
            return actions.sum((2, 3))

        plan = self.search(returns, bound=0.5, num_rounds=12, **cold(1, 4, 2))
        assert plan.actions.min() > 0.4 and plan.actions.max() <= 0.5

    @pytest.mark.parametrize("execute", ["elite_mean", "best"])
    def test_the_rounds_are_the_specifications(self, execute):
        """From what was scored: elites, first round unsmoothed, then 0.1 old + 0.9 elite; what is executed."""
        rounds = []

        def returns(environments, actions):
            rounds.append((actions.copy(), -np.square(actions - 0.2).sum((2, 3)) + np.sin(9 * actions[..., 0, 0])))
            return rounds[-1][1]

        # A quarter of the candidates are elites, if nothing else is said.
        plan = self.search(returns, num_candidates=40, num_rounds=4, execute=execute, **cold(1, 2, 1))
        assert len(rounds) == 4 and rounds[0][0].shape == (1, 40, 2, 1)
        mean = None
        for candidates, scores in rounds:
            order = np.argsort(-scores[0])[:10]
            elites = candidates[0, order]
            mean = elites.mean(0) if mean is None else 0.1 * mean + 0.9 * elites.mean(0)
        np.testing.assert_allclose(plan.warm_start[0], mean)
        np.testing.assert_allclose(plan.actions[0], elites.mean(0) if execute == "elite_mean" else elites[0])
        np.testing.assert_array_equal(plan.best[0], elites[0])
        assert plan.returns[0] == rounds[-1][1].max()

    def test_starts_from_the_previous_plan(self):
        """Shifted by one, zeros at its end and where there is none; the deviation is one number from 0.3 to 0.6."""
        seen, previous = [], np.tile(np.array([0.9, 0.5, -0.5])[:, None], (2, 1, 1))

        def returns(environments, actions):
            seen.append(actions)
            return np.zeros(actions.shape[:2])

        self.search(
            returns, bound=100.0, num_candidates=20_000, num_rounds=1, previous=previous,
            warm=np.array([True, False]), initial_deviation=(0.003, 0.006),
        )  # fmt: skip
        sampled = seen[0][..., 0]
        np.testing.assert_allclose(sampled.mean(1), [[0.5, -0.5, 0], [0, 0, 0]], atol=0.02)
        deviations = sampled.std(1)
        assert deviations.min() > 0.29 and deviations.max() < 0.61
        np.testing.assert_allclose(deviations, np.tile(deviations[:, :1], 3), rtol=0.03)
        assert abs(deviations[0, 0] - deviations[1, 0]) > 0.01

    def test_nan_is_never_an_elite(self):
        """All finite returns are negative and lie where actions are negative; the rest are not numbers."""

        def returns(environments, actions):
            first = actions[..., 0, 0]
            return np.where(first > 0, np.where(first > 0.3, np.inf, np.nan), -1.0 + 0.1 * first)

        plan = self.search(returns, num_candidates=200, num_elites=20, **cold(1, 2, 1))
        assert plan.actions[0, 0, 0] < 0 and plan.best[0, 0, 0] < 0 and np.isfinite(plan.returns[0])

    def test_fewer_numbers_than_elites(self):
        """When fewer candidates than elites have a finite return, the others still do not become elites."""

        def returns(environments, actions):
            return np.where(actions[..., 0, 0] > -0.5, np.nan, -1.0)

        plan = self.search(returns, num_candidates=100, num_elites=50, num_rounds=1, **cold(1, 1, 1))
        assert plan.actions[0, 0, 0] < -0.5

    @pytest.mark.parametrize("only", [0.1, 0.5, 0.3, 1 / 3])
    def test_a_coordinate_of_one_value(self, only):
        """The mean of equal numbers may differ from them by rounding, on either side of the bounds."""
        drawn = []

        def normal(shape):
            drawn.append(shape)
            assert len(drawn) < 100, "draws again and again"
            return rng.standard_normal(shape)

        rng, low, high = np.random.default_rng(0), np.array([-1.0, only]), np.array([1.0, only])
        generator = SimpleNamespace(standard_normal=normal, uniform=rng.uniform)
        search = ContinuousSearch(lambda _, a: a.sum((2, 3)), generator, **cold(2, 3, 2), low=low, high=high)
        plan = cross_entropy_method(search)
        assert (plan.actions[..., 1] == only).all() and (plan.warm_start[..., 1] == only).all()

    def test_truncated_normal(self):
        """Against the distribution function of a truncated Gaussian, for a mean inside and one at the bound."""
        mean, deviation = np.array([[[0.2, 1.0]]]), np.array([[[0.5, 0.3]]])
        low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
        samples = truncated_normal(np.random.default_rng(0), mean, deviation, 20_000, low, high)[0, :, 0]
        assert np.abs(samples).max() <= 1
        for column, (centre, spread) in enumerate(((0.2, 0.5), (1.0, 0.3))):

            def below(x, centre=centre, spread=spread):
                return 0.5 * (1 + math.erf((x - centre) / (spread * 2**0.5)))

            for x in (-0.5, 0.0, 0.4, 0.9):
                expected = (below(x) - below(-1)) / (below(1) - below(-1))
                assert (samples[:, column] < x).mean() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("planner", ["random_shooting", "cem"])
def test_nothing_but_nan_is_an_error(planner):
    """It says which environment, and what to do."""

    def returns(environments, actions):
        return np.where(environments[:, None] == 1, np.nan, 0.0) + np.zeros(actions.shape[:2])

    with pytest.raises(errors.NonFiniteReturnError, match="environment 1"):
        if planner == "cem":
            TestCrossEntropy.search(returns, **cold(2, 2, 1))
        else:
            TestRandomShooting.search(returns, **cold(2, 2))


def test_the_largest_return():
    """No more than the largest reward of every step; what costs may be over at once; progress is not bounded."""

    def ends(states):
        return states[..., 0] > 0

    found = [
        PlanningObjective(lambda s, a, n: 0 * n[..., 0], *rest, max_reward=largest).largest_return(5)
        for largest, *rest in ((2.0,), (2.0, ends), (-2.0,), (-2.0, ends), (2.0, ends, ends), (None,))
    ]
    assert found == [10, 10, -10, 0, None, None]


def unpaid(task):
    """The same as `both`, but for the last step's reward."""
    return dataclasses.replace(both(task), pays_last_step=False)


def both(task):
    """An objective with a termination and a progress term, so that neither hides the other."""

    def reward(states, actions, next_states):
        return next_states[..., 0] - 0.5 * states[..., -1]

    def terminated(next_states):
        return next_states[..., 1] > 0.3

    return PlanningObjective(reward, terminated, progress=lambda states: 0.1 * states[..., 0] - states[..., 1])


class Risk(TerminationRisk):
    """Episodes may end beyond 0.05 and must beyond 0.3."""

    def probability(self, next_observations):
        return 0.4 * (next_observations[..., 1] > 0.05) + 0.6 * (next_observations[..., 1] > 0.3)


def risky(task):
    """An end that is a risk, without progress: rollouts that are surely over are dropped."""
    return PlanningObjective(both(task).reward, Risk())


def plain_returns(simulator, objective, start, sequences, propagation):
    """Score sequences (C, H) one by one, stepping the members' aggregate or each member through `step_members`."""
    members, scores = simulator.num_members, []
    middle = {"mean": np.mean, "median": np.median}[simulator.aggregate]
    for sequence in sequences:
        states = np.tile(start, (members, 1))
        total, alive = np.zeros(members), np.ones(members)
        best = None if objective.progress is None else np.asarray(objective.progress(states), float)
        for action in sequence:
            if propagation == "mean_state":
                after = simulator.step_members(states[:1], [action])[:, 0]
            else:
                after = np.array([simulator.step_members(states[[m]], [action])[m, 0] for m in range(members)])
            rewards = objective.reward(states, np.tile(action, (members, *[1] * np.ndim(action))), after)
            reached = after
            if propagation == "mean_state":
                reached, rewards = np.tile(middle(after, axis=0), (members, 1)), middle(rewards)
            before = alive
            if objective.terminated is not None:
                risk = getattr(objective.terminated, "probability", objective.terminated)
                alive = alive * (1 - risk(reached))
            total += (before if objective.pays_last_step else alive) * rewards
            if best is not None:
                best = np.maximum(best, objective.progress(reached))
            states = reached
        scores.append(middle(total + (0 if best is None else len(sequence) * best)))
    return np.array(scores)


@pytest.mark.parametrize("aggregate", ["mean", "median"])
@pytest.mark.parametrize("propagation", ["per_member", "mean_state"])
@pytest.mark.parametrize("candidates", [12, 300])  # members in one product, and one product a member
@pytest.mark.parametrize(
    ("name", "config", "objective"),
    [
        ("CartPole", SMALL, None),
        ("MountainCar", DEEP, None),
        ("HalfCheetah", DEEP, None),
        ("CartPole", DEEP, both),
        ("CartPole", DEEP, unpaid),
        ("CartPole", DEEP, risky),
    ],
)
def test_fast_rollouts_equal_a_plain_loop(name, config, objective, candidates, propagation, aggregate):
    """For two environments with an agent each; rollouts end at different steps."""
    ensemble, rng = random_ensemble(name, config, step_size=0.05), np.random.default_rng(0)
    task = ensemble.task
    objective = task.objective if objective is None else objective(task)
    starts = 0.05 * rng.normal(size=(2, task.observation_size))
    actions = random_actions(task, rng, 2, candidates, 8)
    simulator = ensemble.simulator(agents=[2, 0], aggregate=aggregate)
    fast = simulated_returns(simulator, starts, objective=objective, propagation=propagation)
    found = fast(np.array([1, 0]), actions)
    checked = [0, 1, candidates - 1]
    for row, (environment, agent) in enumerate([(1, 0), (0, 2)]):
        alone = ensemble.simulator(agent, aggregate=aggregate)
        expected = plain_returns(alone, objective, starts[environment], actions[row, checked], propagation)
        np.testing.assert_allclose(found[row, checked], expected, rtol=1e-4, atol=1e-4)
    assert len(np.unique(found.round(5))) > (2 if aggregate == "mean" else 1)  # medians of lengths are whole numbers


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("propagation", ["per_member", "mean_state"])
def test_the_median_plans_without_a_member_that_diverges(propagation, together):
    """One of three members gives no number, so that their mean has no return for any candidate."""
    walk = perfect_walk_ensemble(walk_task(), members=3)
    bias = walk.parameters["agent.bias"].copy()
    bias[1] = np.nan
    spoiled = dataclasses.replace(walk, parameters={**walk.parameters, "agent.bias": bias})
    actions, chosen = np.random.default_rng(0).integers(3, size=(1, 400, 5)), np.array([0])

    def scores(ensemble, aggregate):
        simulator, settings = ensemble.simulator(1, aggregate=aggregate), {"propagation": propagation}
        return simulated_returns(simulator, np.array([[3.0, 0.0]]), together=together, **settings)(chosen, actions)

    whole = scores(walk, "mean")
    np.testing.assert_allclose(scores(spoiled, "median"), whole)
    assert np.isnan(scores(spoiled, "mean")).all()
    agent = MPCAgent(spoiled.simulator(1, aggregate="median"), horizon=5, num_candidates=400, propagation=propagation)
    assert agent.plan(np.array([[3.0, 0.0]])).returns[0] == whole.max()


@pytest.mark.parametrize("pays", [lambda x: -1.0 - 100.0 * (x >= 5), lambda x: 1.0 * (x <= 0)])
def test_the_reward_of_the_last_step_counts(pays):
    """A cliff at 5 is not walked off to be spared the other steps; a goal at 0, the only thing that pays, is found."""
    task = dataclasses.replace(
        walk_task(),
        reward=lambda states, actions, reached: pays(reached[..., 0]),
        terminated=lambda reached: (reached[..., 0] <= 0) | (reached[..., 0] >= 5),
        planning_objective=None,
    )
    agent = MPCAgent(perfect_walk_ensemble(task).simulator(1), horizon=8, num_candidates=500, seed=0)
    plan = agent.plan(np.array([[3.0, 0.0]]))
    positions = 3 + np.cumsum(plan.actions[0] - 1)
    assert positions[: (positions <= 0).argmax() + 1].max() < 5 and (positions <= 0).any()
    assert plan.returns[0] == pytest.approx(-3.0 if pays(1.0) < 0 else 1.0)


def test_rewards_beside_nan_states_are_not_returns():
    """A model that gives NaN after action 1: such a rollout is worth nothing, and no plan begins with it."""
    ensemble = random_ensemble("CartPole", step_size=0.01)
    parameters = {name: np.array(array) for name, array in ensemble.parameters.items()}
    parameters["action.weight"][:, 1] = np.nan
    simulator = dataclasses.replace(ensemble, parameters=parameters).simulator(0)
    for candidates in (20, 300):
        actions = np.random.default_rng(0).integers(2, size=(1, candidates, 10))
        actions[0, 0] = 0
        for propagation in ("per_member", "mean_state"):
            scores = simulated_returns(simulator, np.zeros((1, 4)), propagation=propagation)(np.array([0]), actions)[0]
            np.testing.assert_array_equal(np.isfinite(scores), ~(actions[0] == 1).any(1))
    for horizon, candidates in ((5, 100), (8, 2000)):
        plan = MPCAgent(simulator, horizon=horizon, num_candidates=candidates).plan(np.zeros((1, 4)))
        np.testing.assert_array_equal(plan.actions, [[0] * horizon])


def test_what_no_plan_has_a_return_for_is_said():
    """The model, which steps to NaN, or the reward, which is NaN in a state that is none."""
    ensemble = random_ensemble("CartPole", step_size=0.01)
    broken = {**ensemble.parameters, "action.weight": ensemble.parameters["action.weight"] * np.nan}
    diverging = dataclasses.replace(ensemble, parameters=broken).simulator(0)
    unpaid = PlanningObjective(lambda states, actions, reached: reached[..., 0] * float("nan"))
    for simulator, objective, message in (
        (diverging, None, "finite number: the simulator diverges from this state"),
        (ensemble.simulator(0), unpaid, "finite number: the reward of a state within reach is nan; check the reward"),
    ):
        agent = MPCAgent(simulator, objective=objective, horizon=3, num_candidates=5)
        with pytest.raises(errors.NonFiniteReturnError, match=message):
            agent.predict(np.zeros(4))


@pytest.mark.parametrize("name", ["CartPole", "MountainCar"])
def test_true_rollouts_equal_a_plain_loop(name):
    """In duplicates of the system, which itself stays where it is."""
    task, rng = get_task(name), np.random.default_rng(0)
    objective = task.objective
    system = task.system(task.test_agents[:3])
    starts = system.reset(rng).copy()
    actions = rng.integers(task.action_size, size=(2, 6, 40))
    found = true_returns(system, task, objective)(np.array([2, 0]), actions)
    np.testing.assert_array_equal(system.observe(), starts)
    for row, environment in enumerate((2, 0)):
        for candidate in range(6):
            alone = task.system(task.test_agents[environment])
            alone.set_observations(starts[[environment]])
            total, alive, states = 0.0, True, alone.observe()
            best = -np.inf if objective.progress is None else objective.progress(states)[0]
            for action in actions[row, candidate]:
                before, states, running = states, alone.step([action]), alive
                if objective.terminated is not None:
                    alive = alive and not objective.terminated(states)[0]
                total += (running if objective.pays_last_step else alive) * objective.reward(before, [action], states)[
                    0
                ]
                best = best if objective.progress is None else max(best, objective.progress(states)[0])
            total += 0 if objective.progress is None else 40 * best
            assert found[row, candidate] == pytest.approx(total)


class TestMPCAgent:
    """Planning at every step."""

    def test_walks_home(self):
        """In a perfect simulator of three agents of different speed, each at its own place, planned for together."""
        task = walk_task()
        agent = MPCAgent(perfect_walk_ensemble(task).simulator(agents=[0, 1, 2]), horizon=4, num_candidates=300)
        observations, state = np.array([[2.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]), None
        actions, state = agent.predict(observations, state, np.ones(3, bool))
        assert actions.tolist() == [0, 2, 1] and state.shape == (3, 4)
        one, _ = agent.predict(observations[:3], state, np.zeros(3, bool))
        assert one.tolist() == [0, 2, 1]

    def test_one_observation_or_several(self):
        """A single observation gives a single action; the true system of an environment is planned in, not moved."""
        env = gymnasium.make("Heterogeneous-CartPole-v0")
        observation, _ = env.reset(seed=0)
        agent = MPCAgent(env, horizon=5, num_candidates=50)
        action, state = agent.predict(observation)
        assert np.shape(action) == () and state.shape == (1, 5)
        actions, _ = agent.predict(observation[None], state, np.array([False]))
        assert actions.shape == (1,)
        np.testing.assert_array_equal(np.float32(env.unwrapped.system.observe()[0]), observation)

    def test_continuous_actions(self, half_cheetah):
        """A float32 action within the bounds; both variants of propagation."""
        for propagation in ("per_member", "mean_state"):
            agent = MPCAgent(
                half_cheetah.simulator(1),
                propagation=propagation,
                horizon=3,
                num_candidates=20,
                num_elites=5,
                num_rounds=2,
            )
            action, state = agent.predict(np.zeros(18, np.float32))
            assert action.shape == (6,) and action.dtype == np.float32 and state.shape == (1, 3, 6)
            assert half_cheetah.task.action_space.contains(action)

    def test_the_plan_of_an_episode_that_is_over_is_forgotten(self, cart_pole):
        """The only candidate of an episode that goes on is the plan before, one step on."""
        agent = MPCAgent(cart_pole.simulator(0), horizon=40, num_candidates=1)
        observations, before = np.zeros((2, 4)), np.tile([0, 1], (2, 20))
        _, plan = agent.predict(observations, before, np.array([False, True]))
        np.testing.assert_array_equal(plan[0, :-1], before[0, 1:])
        assert not np.array_equal(plan[1, :-1], before[1, 1:])

    def test_all_members_start_from_their_mean_where_actions_are_continuous(self, half_cheetah, cart_pole):
        """As in the paper's code, 30 steps ahead; where they are discrete each goes its own way, for 50 steps."""
        for ensemble, horizon, usual, other in (
            (half_cheetah, 30, "mean_state", "per_member"),
            (cart_pole, 50, "per_member", "mean_state"),
        ):
            assert MPCAgent(ensemble.simulator(0)).horizon == horizon
            start, settings = np.full((1, ensemble.task.observation_size), 0.02), {"horizon": 8, "num_candidates": 20}
            objective = PlanningObjective(lambda states, actions, reached: reached[..., 1] ** 3)
            found, expected, wrong = (
                MPCAgent(ensemble.simulator(0), objective=objective, **settings, **given).plan(start).returns[0]
                for given in ({}, {"propagation": usual}, {"propagation": other})
            )
            assert found == expected != wrong

    def test_plans_begin_where_the_true_system_is(self):
        """Another observation, more of them than there are copies, or none yet: refused."""
        env = gymnasium.make("Heterogeneous-CartPole-v0")
        agent = MPCAgent(env, horizon=2, num_candidates=4)
        with pytest.raises(errors.EpisodeOverError, match="call reset"):
            agent.predict(np.zeros(4))
        observation, _ = env.reset(seed=0)
        agent.predict(observation)
        with pytest.raises(errors.InvalidStateError, match="plans in a true system begin in the state it is in"):
            agent.predict(observation + np.float32(0.01))
        with pytest.raises(errors.InvalidStateError, match="the true system has 1 copies, but 2 observations came"):
            agent.predict(np.stack([observation, observation]))

    def test_same_seed_same_plan(self, cart_pole):
        """And another seed, another plan."""
        objective, plans = PlanningObjective(lambda states, actions, next_states: next_states[..., 0]), []
        for seed in (4, 4, 5):
            agent = MPCAgent(cart_pole.simulator(3), seed=seed, objective=objective, horizon=20, num_candidates=30)
            plans.append(agent.plan(np.zeros((1, 4))).actions)
        np.testing.assert_array_equal(plans[0], plans[1])
        assert not np.array_equal(plans[0], plans[2])

    def test_true_mountain_car_reaches_the_papers_return(self):
        """Table 9, true environment with MPC: −54 for the first agent, −72 for the second, by the paper's planner."""
        ensemble = dataclasses.replace(
            random_ensemble("MountainCar", num_agents=2), covariates=np.array(get_task("MountainCar").test_agents[:2])
        )
        first, second = true_mpc_returns(ensemble, episodes=3)
        assert first.mean == pytest.approx(-54, abs=8) and second.mean == pytest.approx(-72, abs=11)

    def test_stable_baselines3s_evaluation(self):
        """`evaluate_policy` on the true CartPole: the full 200 steps, where a random policy gets some 20."""
        evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
        monitor = pytest.importorskip("stable_baselines3.common.monitor")
        env = monitor.Monitor(gymnasium.make("Heterogeneous-CartPole-v0"))
        env.reset(seed=0)
        mean, _ = evaluation.evaluate_policy(MPCAgent(env), env, n_eval_episodes=1)
        assert mean == 200

    def test_d3rlpys_evaluation(self, run_python):
        """`evaluate_qlearning_with_environment` too, which passes observations only."""
        pytest.importorskip("d3rlpy")
        code = """
import warnings
warnings.simplefilter("ignore")
import d3rlpy, gymnasium, persim_gym
env = gymnasium.make("persim_gym:Heterogeneous-CartPole-v0")
env.reset(seed=0)
print(d3rlpy.metrics.evaluate_qlearning_with_environment(persim_gym.MPCAgent(env), env, n_trials=1))
"""
        assert float(run_python(code).split()[-1]) == 200


@pytest.mark.usefixtures("global_generators_untouched")
def test_planning_touches_no_global_generator(cart_pole):
    """Only the agent's own."""
    MPCAgent(cart_pole.simulator(0), horizon=5, num_candidates=20).predict(np.zeros(4))


@pytest.mark.parametrize("name", ["CartPole", "MountainCar"])
def test_episodes_that_are_over_cost_no_search_and_change_no_plan(name):
    ensemble = random_ensemble(get_task(name))
    observations = np.linspace(-0.05, 0.05, 4 * ensemble.task.observation_size).reshape(4, -1)
    running = np.array([True, False, True, False])

    def plans(running):
        agent, state = MPCAgent(ensemble.simulator(0), num_candidates=50, horizon=12, seed=3), None
        found = []
        for step in range(3):
            actions, state = agent.predict(observations, state, np.full(4, step == 0), running=running)
            found.append((actions, state))
        return found

    for (every_action, every_plan), (actions, plan) in zip(plans(None), plans(running), strict=True):
        np.testing.assert_array_equal(actions[running], every_action[running])
        np.testing.assert_array_equal(plan[running], every_plan[running])
    scored = []

    def returns(environments, actions):
        scored.extend(environments.tolist())
        return np.zeros(actions.shape[:2])

    search = DiscreteSearch(returns, np.random.default_rng(0), **cold(4, 5), num_actions=2, running=running)
    random_shooting(search, num_candidates=6)
    assert scored == [0, 2]


@pytest.mark.parametrize("planner", ["cem", "icem", "mppi"])
def test_continuous_planners_leave_episodes_that_are_over(planner):
    """However far their states ran away; the others plan as if all went on, unless candidates are drawn again."""
    observations, running = np.zeros((3, 18)), np.array([True, False, True])
    settings = {"planner": planner, "horizon": 3, "num_candidates": 20, "num_rounds": 2}
    simulator = random_ensemble("HalfCheetah", step_size=0.01).simulator(0)
    every, _ = MPCAgent(simulator, **settings).predict(observations)
    observations[1] = np.inf
    actions, state = MPCAgent(simulator, **settings).predict(observations, running=running)
    assert planner == "cem" or np.allclose(actions[running], every[running], atol=1e-5)
    assert np.isfinite(state).all()
    actions, _ = MPCAgent(simulator, **settings).predict(observations, state, running=np.zeros(3, bool))
    assert actions.shape == (3, 6)


def test_true_systems_are_compared_where_episodes_go_on():
    task = walk_task()
    system = task.system(np.ones((3, 1)))
    shown = system.reset(np.random.default_rng(0)).copy()
    shown[1] = np.inf
    agent, running = MPCAgent(system, task=task, horizon=3, num_candidates=50), np.array([True, False, True])
    assert agent.predict(shown, running=running)[0][running].tolist() == [0, 0]
    shown[2] += 1
    with pytest.raises(errors.InvalidStateError, match=r"shows \[3.0, 0.0\], and the observation is \[4.0, 1.0\]"):
        agent.predict(shown, running=running)


@pytest.mark.parametrize("planner", [MPCAgent, ValueIterationAgent])
def test_environments_in_wrappers_that_planners_know_nothing_of(planner):
    """Their observations, actions and rewards are others than the model's: refused. Those that only watch are not."""
    wrappers, vector_wrappers = gymnasium.wrappers, gymnasium.wrappers.vector
    make, settings = partial(gymnasium.make, "PerSim-MountainCar-agent3-v0"), {}
    if planner is ValueIterationAgent:
        settings = {"points": 3}
    else:
        vector = gymnasium.make_vec("PerSim-MountainCar-v0", 2, vectorization_mode="vector_entry_point")
        planner(vector_wrappers.RecordEpisodeStatistics(vector))
        with pytest.raises(errors.InvalidArgumentError, match="VectorizeTransformReward|TransformReward"):
            planner(vector_wrappers.TransformReward(vector, lambda reward: -reward))
        with pytest.raises(errors.InvalidArgumentError, match="RescaleAction"):
            planner(
                wrappers.RescaleAction(gymnasium.make("PerSim-HalfCheetah-agent0-v0"), *np.float32([[-2] * 6, [2] * 6]))
            )
    planner(wrappers.Autoreset(wrappers.RecordEpisodeStatistics(make())), **settings)
    for wrap in (
        wrappers.NormalizeObservation, wrappers.NormalizeReward, partial(wrappers.TransformReward, func=np.negative),
        partial(wrappers.FrameStackObservation, stack_size=2), gymnasium.ActionWrapper,
    ):  # fmt: skip
        with pytest.raises(errors.InvalidArgumentError, match="the plan would know nothing of .*env.unwrapped"):
            planner(wrappers.TimeLimit(wrap(make()), 9), **settings)
    planner(wrappers.NormalizeObservation(make()).unwrapped, **settings)
