"""iCEM and MPPI: near-optimal plans where the optimum is known, and each round against the papers' rules."""

import numpy as np
import pytest
from support import random_ensemble

from persim_gym import MPCAgent, errors
from persim_gym.planning import ContinuousSearch, improved_cross_entropy_method, path_integral_control, settings
from persim_gym.planning.icem import colored_noise
from persim_gym.planning.mppi import smoothed
from persim_gym.tasks import PlanningObjective

SEARCHES = {"icem": improved_cross_entropy_method, "mppi": path_integral_control}


def search(
    planner, returns, *, environments=1, horizon=1, size=1, bound=1.0, seed=0, previous=None, warm=None, **settings
):
    """Plan, by default without a previous plan."""
    previous = np.zeros((environments, horizon, size)) if previous is None else previous
    warm = np.zeros(environments, bool) if warm is None else warm
    given, high = (returns, np.random.default_rng(seed), previous, warm), np.full(size, bound)
    return SEARCHES[planner](ContinuousSearch(*given, low=-high, high=high), **settings)


@pytest.mark.parametrize("planner", SEARCHES)
@pytest.mark.parametrize("horizon", [1, 3, 6])
def test_icem_and_mppi_solve_linear_quadratic_control(planner, horizon):
    """x' = x + a, return −Σ(x'² + a²/2): the plan is the least-squares solution, for several starts at once."""
    starts = np.array([0.8, -0.5, 0.0])

    def returns(environments, actions):
        positions = starts[environments][:, None, None] + np.cumsum(actions[..., 0], axis=2)
        return -(np.square(positions) + 0.5 * np.square(actions[..., 0])).sum(2)

    plan = search(planner, returns, environments=3, horizon=horizon, num_rounds=12, num_candidates=500)
    cumulative = np.tril(np.ones((horizon, horizon)))
    design = np.concatenate([cumulative, np.sqrt(0.5) * np.eye(horizon)])
    for row, start in enumerate(starts):
        target = np.concatenate([np.full(horizon, -start), np.zeros(horizon)])
        optimum = np.linalg.lstsq(design, target, rcond=None)[0]
        best = -np.square(design @ optimum - target).sum()
        executed = -np.square(design @ plan.actions[row, :, 0] - target).sum()
        assert best - 0.03 < executed and plan.returns[row] <= best + 1e-9
        np.testing.assert_allclose(plan.actions[row, :, 0], optimum, atol=0.15)


@pytest.mark.parametrize("planner", SEARCHES)
def test_a_pendulum_swings_up(planner):
    """A weak motor must swing a pendulum to and fro before it stands: pushing one way only never gets it up."""

    def heights(actions):
        angle, speed, total = np.full(actions.shape[:2], np.pi), np.zeros(actions.shape[:2]), 0.0
        for step in range(actions.shape[2]):
            speed = speed + 0.1 * (5.0 * np.sin(angle) + 2.5 * actions[:, :, step, 0])
            angle = angle + 0.1 * speed
            total = np.maximum(total, np.cos(angle)) if step else np.cos(angle)
        return total

    one_way = max(heights(np.full((1, 1, 40, 1), push))[0, 0] for push in (-1.0, 1.0))
    slow = {"noise_exponent": 2.0} if planner == "icem" else {"noise_smoothing": 0.9}
    plan = search(planner, lambda _, actions: heights(actions), horizon=40, num_candidates=200, num_rounds=8, **slow)
    assert plan.returns[0] > 0.9 > one_way + 0.3
    assert heights(plan.best[None])[0, 0] == plan.returns[0]


@pytest.mark.parametrize("planner", SEARCHES)
def test_bounds_and_seeds(planner):
    """Actions stay within the bounds, up to them; same seed, same plan."""

    def returns(environments, actions):
        assert np.abs(actions).max() <= 0.5
        return actions.sum((2, 3))

    plans = [search(planner, returns, size=2, bound=0.5, horizon=4, num_rounds=12, seed=s).actions for s in (0, 0, 1)]
    assert plans[0].min() > 0.3
    np.testing.assert_array_equal(plans[0], plans[1])
    assert not np.array_equal(plans[0], plans[2])


@pytest.mark.parametrize("planner", SEARCHES)
def test_nan_is_never_chosen(planner):
    """What is not a number counts for nothing, though all that is one is negative."""

    def returns(environments, actions):
        return np.where(actions[..., 0, 0] > 0, np.nan, -3.0 - actions[..., 0, 0])

    plan = search(planner, returns, num_candidates=60)
    assert plan.best[0, 0, 0] <= 0 and plan.actions[0, 0, 0] <= 0 and np.isfinite(plan.returns[0])
    with pytest.raises(errors.NonFiniteReturnError, match="environment 1"):
        search(
            planner,
            lambda environments, actions: (
                np.where(environments[:, None] == 1, np.nan, 0.0) + np.zeros(actions.shape[:2])
            ),
            environments=2,
        )


@pytest.mark.parametrize(
    ("planner", "message", "settings"),
    [
        ("icem", "smoothing=5 must be at least 0 and below 1", {"smoothing": 5}),
        ("icem", "num_elites=9 must be at most num_candidates=4", {"num_elites": 9, "num_candidates": 4}),
        ("icem", "num_elites=0 must be a whole number", {"num_elites": 0}),
        ("mppi", "num_candidates=1.5 must be a whole number", {"num_candidates": 1.5}),
    ],
)
def test_search_settings_out_of_range(planner, message, settings):
    """A planner that is called by itself refuses them, too, before it scores anything."""
    with pytest.raises(errors.InvalidArgumentError, match=message):
        search(planner, lambda environments, actions: pytest.fail("scored"), **settings)


def test_an_agent_checks_settings_once(monkeypatch):
    """When it is made, and not again at each step."""
    simulator = random_ensemble("HalfCheetah").simulator(0)
    agents = [MPCAgent(simulator, planner=name, horizon=2, num_candidates=20) for name in ("cem", "icem", "mppi")]
    monkeypatch.setattr(settings, "_checked", lambda *_: pytest.fail("checked again"))
    for agent in agents:
        assert agent.predict(np.zeros(18))[0].shape == (6,)


class TestImprovedCrossEntropy:
    """What the paper adds to the cross-entropy method, from what was scored."""

    @staticmethod
    def recorded(**settings):
        """Return the plan and each round's candidates and scores."""
        rounds = []

        def returns(environments, actions):
            scores = -np.square(actions - 0.2).sum((2, 3)) + np.sin(9 * actions[..., 0, 0])
            rounds.append((actions.copy(), scores))
            return scores

        settings = {"horizon": 3, "num_candidates": 40, "num_elites": 8, "num_rounds": 4, **settings}
        return search("icem", returns, **settings), rounds

    def test_each_round_has_fewer_candidates_and_keeps_elites(self):
        """Fewer and fewer candidates; kept elites compete again; the mean in the last round; the best is executed."""
        plan, rounds = self.recorded(decay=1.5, kept_fraction=0.5)
        assert [len(actions[0]) for actions, _ in rounds] == [40, 26 + 4, 17 + 4, 16 + 4 + 1]
        mean, elites = np.zeros((3, 1)), None
        for index, (actions, scores) in enumerate(rounds):
            if index:
                np.testing.assert_array_equal(actions[0, len(actions[0]) - 4 - (index == 3) :][:4], elites[:4])
            if index == 3:
                np.testing.assert_allclose(actions[0, -1], mean)
            elites = actions[0, np.argsort(-scores[0], kind="stable")[:8]]
            mean = 0.1 * mean + 0.9 * elites.mean(0)
        np.testing.assert_array_equal(plan.actions[0], elites[0])
        assert plan.returns[0] == max(scores.max() for _, scores in rounds)
        np.testing.assert_allclose(plan.warm_start[0, 0], mean)
        np.testing.assert_array_equal(plan.warm_start[0, 1:], elites[:4])

    def test_memory(self):
        """The next plan starts from the mean and tries the kept elites, both one step on; only where it is warm."""
        previous = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 1))
        _, rounds = self.recorded(
            environments=2, previous=previous, warm=np.array([False, True]), num_candidates=2000, initial_deviation=0.01
        )
        first = rounds[0][0]
        np.testing.assert_array_equal(first[1, :2, :2], previous[1, 1:, 1:])
        np.testing.assert_array_equal(first[1, :2, 2], previous[1, 1:, 2])
        np.testing.assert_allclose(first[1, 2:].mean(0)[:2], previous[1, 0, 1:], atol=0.01)
        np.testing.assert_allclose(first[0].mean(0), 0.0, atol=0.01)

    @pytest.mark.parametrize("exponent", [0.0, 0.25, 2.0])
    @pytest.mark.parametrize("length", [1, 2, 30, 31])
    def test_colored_noise(self, exponent, length):
        """Unit variance at every step, independent rows, and power that falls as f^−β."""
        noise = colored_noise(np.random.default_rng(0), exponent, (20_000, length))
        np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.03)
        np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=0.03)
        if length >= 30:
            power = (np.abs(np.fft.rfft(noise)) ** 2).mean(0)[1:15]
            slope = np.polyfit(np.log(np.arange(1, 15)), np.log(power), 1)[0]
            assert slope == pytest.approx(-exponent, abs=0.03)


class TestPathIntegral:
    """MPPI's weighted mean."""

    def test_each_round_plans_the_weighted_mean(self):
        """Each round's plan is the mean weighted by exp(return / temperature), returns in standard deviations."""
        rounds = []

        def returns(environments, actions):
            scores = -np.square(actions - 0.3).sum((2, 3))
            rounds.append((actions[0].copy(), scores[0]))
            return scores

        plan = search("mppi", returns, horizon=2, num_candidates=300, num_rounds=3, temperature=0.5)
        for index, (actions, scores) in enumerate(rounds):
            weights = np.exp(scores / (0.5 * scores.std()))
            mean = (weights[:, None, None] * actions).sum(0) / weights.sum()
            if index < 2:  # the next round is drawn around it
                np.testing.assert_allclose(rounds[index + 1][0].mean(0), mean, atol=0.1)
        np.testing.assert_allclose(plan.actions[0], mean)
        np.testing.assert_array_equal(plan.actions, plan.warm_start)

    def test_noise(self):
        """Of unit variance at every step, each correlated with the one before."""
        noise = smoothed(np.random.default_rng(0).standard_normal((1, 40_000, 5, 1)), 0.6)[0, :, :, 0]
        np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.02)
        for step in range(4):
            assert np.corrcoef(noise[:, step], noise[:, step + 1])[0, 1] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("planner", ["cem", "icem", "mppi"])
def test_in_the_agent(planner):
    """By name, for two environments, over several steps; what a call returns the next one takes."""
    simulator = random_ensemble("HalfCheetah", step_size=0.01).simulator(0)
    agent = MPCAgent(simulator, planner=planner, horizon=4, num_candidates=20, num_rounds=2)
    state = None
    for step in range(3):
        actions, state = agent.predict(np.zeros((2, 18), np.float32), state, np.array([step == 0, step < 2]))
        assert actions.shape == (2, 6) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    with pytest.raises(errors.InvalidArgumentError, match="pass what predict returned"):
        agent.predict(np.zeros((2, 18)), state[:1])


def test_a_quarter_of_the_rollouts():
    """iCEM's default scores at most a quarter of what the cross-entropy method's does, both over two steps."""
    simulator, scored = random_ensemble("HalfCheetah").simulator(0), {}
    for planner in ("cem", "icem"):

        def counting(states, actions, next_states, planner=planner):
            scored[planner] = scored.get(planner, 0) + next_states.shape[-2]
            return next_states[..., 0]

        agent = MPCAgent(simulator, planner=planner, horizon=2, objective=PlanningObjective(counting))
        agent.predict(np.zeros(18))
    assert scored["cem"] == 2 * 1200 and scored["icem"] <= 2 * 300
