"""Environments in which the members' disagreement costs reward, or ends the episode."""

import dataclasses
from functools import partial

import gymnasium
import numpy as np
import pytest
from support import random_ensemble

import persim_gym
from persim_gym import errors
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv, caution

WEIGHTS = [1.0, 0.5, 0.0, 2.0]


@pytest.fixture(scope="module")
def ensemble():
    return random_ensemble("CartPole", num_agents=4, step_size=0.02)


@pytest.mark.parametrize("how", ["aggregate", "member"])
@pytest.mark.parametrize("penalty", [3.0, WEIGHTS])
def test_disagreement_costs_reward(ensemble, how, penalty):
    """λ times it, added up over the coordinates; nothing else changes."""
    plain, careful = (
        PersonalizedEnv(ensemble, 1, ensemble=how, disagreement_penalty=given) for given in (None, penalty)
    )
    np.testing.assert_array_equal(plain.reset(seed=0)[0], careful.reset(seed=0)[0])
    for _ in range(8):
        (state, reward, *ended, info), (other, less, *others, told) = (env.step(1) for env in (plain, careful))
        np.testing.assert_array_equal(state, other)
        assert ended == others and "penalty" not in info
        cost = float((np.broadcast_to(penalty, 4) * info["disagreement"]).sum())
        assert told["penalty"] == pytest.approx(cost) and cost > 1e-3
        assert isinstance(less, float) and less == pytest.approx(reward - cost)
        if any(ended):
            break


@pytest.mark.parametrize("coordinate", [0, 3])
def test_an_episode_ends_after_the_first_step_with_more(ensemble, coordinate):
    """In any coordinate; the step itself counts, with what is predicted, as a truncation."""
    plain = PersonalizedEnv(ensemble, 1)
    state, _ = plain.reset(seed=0)
    steps = [plain.step(1) for _ in range(6)]
    seen = np.array([step[4]["disagreement"] for step in steps])
    first = int(seen[:, coordinate].argmax())
    limit = np.full(4, np.inf)
    limit[coordinate] = np.nextafter(seen[first, coordinate], 0)
    careful = PersonalizedEnv(ensemble, 1, max_disagreement=limit)
    careful.reset(options={"state": state})
    for index in range(first + 1):
        observation, reward, terminated, truncated, info = careful.step(1)
        np.testing.assert_array_equal(observation, steps[index][0])
        assert (reward, terminated) == steps[index][1:3]
        assert truncated == (index == first) and info.get("unknown") == (True if truncated else None)
    with pytest.raises(errors.EpisodeOverError):
        careful.step(1)
    limit[coordinate] = seen[first, coordinate]
    careful = PersonalizedEnv(ensemble, 1, max_disagreement=limit)
    careful.reset(options={"state": state})
    assert not any(careful.step(1)[3] for _ in range(6))


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_vector_does_what_gymnasiums_own_does_of_single_ones(ensemble, mode):
    """Rewards, ends and infos, with an agent whose model diverges among them."""
    peer_mode = {}
    if mode == "same_step":
        if not hasattr(gymnasium.vector, "AutoresetMode"):
            pytest.skip("Gymnasium 1.0 resets in the next step only")
        peer_mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    weight = ensemble.parameters["agent.weight"].copy()
    weight[:, 1] = np.nan
    broken = dataclasses.replace(ensemble, parameters={**ensemble.parameters, "agent.weight": weight})
    spread = np.concatenate([broken.simulator(one).step(np.zeros((1, 4)), [0]).disagreement for one in (0, 2, 3)])
    settings = {"disagreement_penalty": WEIGHTS, "max_disagreement": np.sort(spread.max(axis=1))[1:].mean()}
    make = partial(PersonalizedEnv, broken, **settings)
    vector = PersonalizedVectorEnv(broken, 4, range(4), autoreset_mode=mode, **settings)
    peer = gymnasium.vector.SyncVectorEnv([partial(make, agent) for agent in range(4)], **peer_mode)
    unknown = 0
    for _ in range(6):
        vector.reset(seed=0, options={"state": np.zeros(4)})
        peer.reset(seed=0, options={"state": np.zeros(4)})
        for _ in range(2 if mode == "next_step" else 1):
            found, expected = (env.step(np.zeros(4, int)) for env in (vector, peer))
            for one, two in zip(found[1:4], expected[1:4], strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-5)
            told, peers = (info.get("final_info", info) for info in (found[4], expected[4]))
            assert found[4].keys() == expected[4].keys() and told.keys() == peers.keys()
            for name in ("unknown", "_unknown", "diverged", "_penalty"):
                np.testing.assert_array_equal(told.get(name), peers.get(name))
            if "penalty" in told:
                shown = told["_penalty"]
                np.testing.assert_allclose(told["penalty"][shown], peers["penalty"][shown], rtol=1e-5)
            unknown += int(told.get("unknown", np.zeros(1)).sum())
    assert unknown >= 6


def test_what_diverges_costs_nothing():
    """There is no disagreement to count; the reward stays a number."""
    ensemble = random_ensemble("CartPole")
    change_mean = np.array([0.0, np.nan, 0.0, 0.0])
    normalizer = dataclasses.replace(ensemble.normalizer, change_mean=change_mean)
    ensemble = dataclasses.replace(ensemble, normalizer=normalizer)
    env = PersonalizedEnv(ensemble, disagreement_penalty=1.0, max_disagreement=1e-9)
    env.reset(seed=0)
    _, reward, _, truncated, info = env.step(0)
    assert (reward, truncated, info["penalty"]) == (1.0, True, 0.0) and "unknown" not in info
    vector = PersonalizedVectorEnv(ensemble, 2, disagreement_penalty=1.0, max_disagreement=1e-9)
    vector.reset(seed=0)
    _, rewards, _, truncated, info = vector.step(np.zeros(2, int))
    assert (rewards == 1.0).all() and truncated.all() and "unknown" not in info and not info["penalty"].any()


@pytest.mark.parametrize("value", [np.nan, 1e30])
@pytest.mark.parametrize("settings", [{"aggregate": "median"}, {"ensemble": "member"}])
def test_one_member_that_diverges_is_not_for_free(value, settings):
    """The step is made, by the others: it costs as much as can be counted, or is unknown."""
    ensemble = random_ensemble("CartPole")
    spoiled = {name: array.copy() for name, array in ensemble.parameters.items()}
    spoiled["agent.bias"][0] = value
    ensemble = dataclasses.replace(ensemble, parameters=spoiled)
    for more in ({"disagreement_penalty": 2.0}, {"max_disagreement": 0.5}):
        env = PersonalizedEnv(ensemble, **settings, **more)
        vector = PersonalizedVectorEnv(ensemble, 2, **settings, **more)
        for seed in range(9):
            env.reset(seed=seed)
            _, reward, _, truncated, info = env.step(0)
            if not info.get("diverged"):
                break
        vector.reset(seed=0)
        _, rewards, _, cut, told = vector.step(np.zeros(2, int))
        made = ~told.get("diverged", np.zeros(2, bool))
        assert "diverged" not in info and made.any()
        if "disagreement_penalty" in more:
            assert reward == 1 - info["penalty"] and np.isfinite(rewards).all()
            assert info["penalty"] == pytest.approx(2 * 4 * caution.MOST, rel=1e-6)
            np.testing.assert_allclose(told["penalty"], np.where(made, info["penalty"], 0.0), rtol=1e-6)
        else:
            assert truncated and info["unknown"] and cut.all() and told["unknown"][made].all()


def test_planners_refuse_what_they_know_nothing_of(ensemble):
    for settings in ({"disagreement_penalty": 1.0}, {"max_disagreement": 0.1}):
        with pytest.raises(errors.InvalidArgumentError, match="know nothing of disagreement_penalty"):
            persim_gym.MPCAgent(PersonalizedEnv(ensemble, 1, **settings))
        with pytest.raises(errors.InvalidArgumentError, match="know nothing of disagreement_penalty"):
            persim_gym.ValueIterationAgent(PersonalizedEnv(ensemble, 1, **settings))
    persim_gym.MPCAgent(PersonalizedEnv(ensemble, 1))


def test_ids_take_both(cart_pole_log, ensemble, tmp_path):
    """A limit from the log itself: with the largest disagreement of its transitions none of them is unknown."""
    ensemble.save(tmp_path / "one.persim")
    persim_gym.register_ensemble(tmp_path / "one.persim", name="Careful")
    known = ensemble.simulator(2).step(cart_pole_log.observations, cart_pole_log.actions).disagreement
    settings = {"disagreement_penalty": 0.1, "max_disagreement": known.max(axis=0)}
    env = gymnasium.make("PerSim-Careful-agent2-v0", **settings)
    rows = cart_pole_log.num_transitions
    vector = gymnasium.make_vec(
        "PerSim-Careful-agent2-v0", num_envs=rows, vectorization_mode="vector_entry_point", **settings
    )
    vector.reset(options={"state": cart_pole_log.observations})
    info = vector.step(np.asarray(cart_pole_log.actions))[4]
    assert "unknown" not in info and info["_penalty"].all()
    np.testing.assert_allclose(info["penalty"], 0.1 * known.sum(axis=1), rtol=1e-6)
    env.reset(options={"state": cart_pole_log.observations[0]})
    assert env.step(cart_pole_log.actions[0])[4]["penalty"] == pytest.approx(info["penalty"][0], rel=1e-4)


def test_stable_baselines3_is_told(ensemble):
    pytest.importorskip("stable_baselines3")
    from persim_gym.interop.sb3 import to_sb3_vec_env

    env = to_sb3_vec_env(
        PersonalizedVectorEnv(ensemble, 2, disagreement_penalty=1.0, max_disagreement=1e-9, autoreset_mode="same_step")
    )
    env.reset()
    _, rewards, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    for reward, info in zip(rewards, infos, strict=True):
        assert info["unknown"] and info["TimeLimit.truncated"] and reward == pytest.approx(1 - info["penalty"])


@pytest.mark.parametrize("make", [PersonalizedEnv, PersonalizedVectorEnv])
@pytest.mark.parametrize(
    ("message", "settings"),
    [
        (
            "disagreement_penalty=-1 must be finite and at least 0: one number, or 4 of them",
            {"disagreement_penalty": -1},
        ),
        ("disagreement_penalty=inf must be finite", {"disagreement_penalty": np.inf}),
        ("disagreement_penalty='high' must be finite", {"disagreement_penalty": "high"}),
        (r"disagreement_penalty=\[1, 2\] must be .* or 4 of them", {"disagreement_penalty": [1, 2]}),
        (r"disagreement_penalty=\[\[1\], 2\] must be", {"disagreement_penalty": [[1], 2]}),
        ("max_disagreement=0 must be above 0: one number, or 4 of them", {"max_disagreement": 0}),
        ("max_disagreement=nan must be above 0", {"max_disagreement": np.nan}),
    ],
)
def test_what_is_refused(ensemble, make, message, settings):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        make(ensemble, **settings)
