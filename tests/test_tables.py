"""Tables that people have: terminal states, wrong columns, words and marks among numbers, rows to be found again."""

import warnings

import numpy as np
import pytest
from gymnasium import spaces

import persim_gym
from persim_gym import Trajectories, errors
from persim_gym.interop import from_dataframe, to_dataframe

pandas = pytest.importorskip("pandas")

TASK = persim_gym.Task(
    name="Ward", observation_space=spaces.Box(0, 50, (1,)), action_space=spaces.Discrete(2), max_episode_steps=9
)


@pytest.fixture
def table():
    """Six rows of a, six of b."""
    return pandas.DataFrame(
        {
            "agent": ["a"] * 6 + ["b"] * 6,
            "step": [*range(6)] * 2,
            "x": np.arange(12.0),
            "y": np.arange(12.0) ** 2,
            "action": [0, 1] * 6,
            "done": False,
        }
    )


def test_the_last_row_is_the_terminal_state(table):
    """With and without a column of episodes, in tables and in arrays; the marked row leads there."""
    table.loc[4, "done"] = True
    log = from_dataframe(table, observations=["x"], terminated="done")
    assert log.episode_starts.tolist() == [0, 5] and np.flatnonzero(log.terminated).tolist() == [4]
    assert log.next_observations[4].tolist() == [5.0] and np.flatnonzero(log.truncated).tolist() == [9]
    arrays = Trajectories.from_arrays(
        agents=table.agent, observations=table[["x"]], actions=table.action, terminated=table.done
    )
    np.testing.assert_array_equal(arrays.terminated, log.terminated)
    table["episode"] = [0, 0, 0, 1, 1, 1] * 2
    table["done"] = [False, True, False, False, True, False] + [False] * 6
    log = from_dataframe(table, observations=["x"], terminated="done", episode="episode", truncated="done")
    assert np.flatnonzero(log.terminated).tolist() == [1, 3] and log.episode_starts.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("gaps", ["error", "split"])
def test_a_wrong_time_step_is_told_with_the_commonest(gaps):
    """As numbers and as times; what the message gives reads the table."""
    table = pandas.DataFrame({"agent": "a", "clock": [0, 5, 10, 20, 25], "x": np.arange(5.0), "action": 0})
    for clock, wrong in ((table.clock, 1), (pandas.to_timedelta(table.clock, unit="min"), pandas.Timedelta("1min"))):
        table["clock"] = clock
        with pytest.raises(errors.InvalidDataError, match="no two rows are time_step=.* of 'clock' apart") as refusal:
            from_dataframe(table, observations=["x"], time="clock", time_step=wrong, gaps=gaps)
        step = eval(str(refusal.value).split("commonest difference is time_step=")[1].split(": give")[0])
        log = from_dataframe(table, observations=["x"], time="clock", time_step=step, gaps="split")
        assert log.episode_lengths.tolist() == [2, 1]
    table["clock"], table["after"] = [0, 5, 10, 14, 20], table.x + 1
    if gaps == "split":  # every row has its successor
        apart = {"time": "clock", "time_step": 1, "gaps": gaps, "next_observations": ["after"]}
        assert from_dataframe(table, observations=["x"], **apart).num_episodes == 5
    with pytest.raises(errors.InvalidDataError, match="from 10 to 14 in row 3: .* less than .* is 5: round the times"):
        from_dataframe(table, observations=["x"], time="clock", time_step=5, gaps=gaps)


def test_rows_that_are_left_out_leave_gaps(table):
    """The message says how no transition goes across them."""
    table.loc[3, "x"] = np.nan
    with pytest.raises(
        errors.InvalidDataError, match="no value in row 3 .* leave the rows out and give time= and gaps="
    ):
        from_dataframe(table, observations=["x"])
    log = from_dataframe(table.dropna(), observations=["x"], time="step", gaps="split")
    assert np.all(log.next_observations - log.observations == 1)


@pytest.mark.parametrize("kind", ["float64", "Float64"])
def test_the_last_row_of_an_episode_may_lack_what_follows_its_state(table, kind):
    """Action, reward and flags, also of rows between gaps; no other row, and none where all rows are kept."""
    table["score"], table["cut"], table["dose"] = table.x + 1, False, 0.5
    table.loc[4, "done"] = True
    roles = {"observations": ["x"], "terminated": "done", "truncated": "cut", "reward": "score"}
    told = from_dataframe(table, **roles)
    lacking = ["action", "dose", "score", "done", "cut"]
    table[lacking] = table[lacking].astype(float).astype(kind)
    table.loc[[5, 11], lacking] = None
    for action in ("action", ["dose"]):
        log = from_dataframe(table, **roles, action=action)
        for name in ("observations", "next_observations", "rewards", "terminated", "truncated", "episode_starts"):
            np.testing.assert_array_equal(getattr(log, name), getattr(told, name))
    assert log.actions.tolist() == [[0.5]] * 10
    for column in lacking:
        broken = table.copy()
        broken.loc[2, column] = None
        action = ["dose"] if column == "dose" else "action"
        with pytest.raises(
            errors.InvalidDataError, match=rf"{column}' has no value in row 2 .*only the last row of an"
        ):
            from_dataframe(broken, **roles, action=action)
        gapped = broken.drop(index=[1, 3])
        assert len(from_dataframe(gapped, **roles, action=action, time="step", gaps="split")) == 6
    with pytest.raises(errors.InvalidDataError, match="'done' has no value in row 5 .* the gaps$"):
        from_dataframe(table, **roles, next_observations=["y"])
    table["done"] = pandas.Series([*told.terminated[:5].tolist(), None, *[False] * 5, None], dtype=object)
    assert np.flatnonzero(from_dataframe(table, **roles).terminated).tolist() == [4]


def test_a_part_of_our_own_table_with_gaps(table):
    """What the message advises can be done: its next observations are kept, so that every row counts."""
    frame = to_dataframe(from_dataframe(table, observations=["x"]))
    part = frame[frame.step != 2]
    with pytest.raises(errors.InvalidDataError, match="steps are missing .* gaps='split'"):
        from_dataframe(part)
    log = from_dataframe(part, gaps="split")
    assert log.episode_lengths.tolist() == [2, 2, 2, 2] and np.all(log.next_observations - log.observations == 1)


def test_several_episodes_with_terminal_states_need_their_column():
    """Without it the terminal state would begin the next visit, and lead to its second row."""
    table = pandas.DataFrame({"agent": "a", "x": [1.0, 2, 3, 99] * 2, "action": 0, "done": [0, 0, 1, 0] * 2})
    for end, unclear in ((2, 1), (3, 1)):  # the row before the terminal state, or that state's own
        table["done"] = [row % 4 == end for row in range(8)]
        with pytest.raises(
            errors.InvalidDataError, match=rf"row {end} is terminated, but .* \({unclear} such.* episode="
        ):
            from_dataframe(table, observations=["x"], terminated="done")
        with pytest.raises(errors.InvalidDataError, match=rf"row {end} is terminated, but .* episode_starts="):
            Trajectories.from_arrays(
                agents=table.agent, observations=table[["x"]], actions=table.action, terminated=table.done
            )
    table["visit"] = [0] * 4 + [1] * 4
    table["done"] = [0, 0, 1, 0, 0, 0, 0, 1]
    with pytest.warns(RuntimeWarning, match="1 row .* these episodes end without a terminal transition"):
        log = from_dataframe(table, observations=["x"], terminated="done", episode="visit")
    assert log.next_observations[log.terminated].tolist() == [[99]] and len(log) == 6


def test_a_gap_after_the_terminal_state_begins_an_episode():
    """Without a column of episodes; a gap before that state loses it."""
    table = pandas.DataFrame({"agent": "a", "t": [0, 1, 2, 10, 11, 12, 13], "x": np.arange(7.0), "action": 0})
    roles = {"observations": ["x"], "time": "t", "gaps": "split", "terminated": "done"}
    table["done"] = table.t == 1
    log = from_dataframe(table, **roles)
    assert log.episode_starts.tolist() == [0, 2] and log.observations[:, 0].tolist() == [0, 1, 3, 4, 5]
    assert log.next_observations[log.terminated].tolist() == [[2]] and np.flatnonzero(log.truncated).tolist() == [4]
    table["done"] = table.t == 2
    with pytest.warns(RuntimeWarning, match="terminated is true in 1 row "):
        assert from_dataframe(table, **roles).episode_starts.tolist() == [0, 2]
    with pytest.raises(errors.InvalidDataError, match="row 2 is terminated, but"):
        from_dataframe(table, **{**roles, "gaps": "error"})
    table["done"] = False
    with pytest.raises(errors.InvalidDataError, match="no two rows are time_step=0.5"):  # not: all are episodes
        from_dataframe(table, **roles, time_step=0.5)


def test_times_in_a_file(tmp_path):
    """As text in the form of ISO 8601, also with zones; labels stay as they are written."""
    hours = ["2023-05-22 08:00:00", "2023-05-22 20:00:00", "2023-05-23 20:00:00", "2023-05-24 10:00:00+02:00"]
    table = pandas.DataFrame({"agent": "0324", "when": hours, "x": np.arange(4.0), "action": 0})
    table.to_csv(tmp_path / "visits.csv", index=False)
    roles = {"observations": ["x"], "time": "when", "gaps": "split"}
    for given in (tmp_path / "visits.csv", table):
        for step in ("12h", pandas.Timedelta("12h")):
            log = from_dataframe(given, **roles, time_step=step)
            assert log.agent_labels == ("0324",) and log.observations[:, 0].tolist() == [0, 2]
    with pytest.raises(errors.InvalidDataError, match="'2023-05-22 08:00:00'; give numbers or, with time_step='1h'"):
        from_dataframe(table, **roles)
    table.loc[2, "when"] = "23.5.2023"
    with pytest.raises(
        errors.InvalidDataError, match=r"'23.5.2023' in row 2, which is no time such as .* \(1 such rows"
    ):
        from_dataframe(table, **roles, time_step="12h")
    with pytest.raises(errors.InvalidArgumentError, match="time_step='a while' must be above 0"):
        from_dataframe(table, **roles, time_step="a while")


@pytest.mark.parametrize("time", [None, "step"])
def test_the_advised_sort_keeps_the_order_of_time(time):
    """Of a log of all machines, step by step: the message's own call, run, gives the true transitions."""
    machines, steps = 30, 40
    table = pandas.DataFrame(
        {"agent": np.tile(np.arange(machines), steps), "step": np.repeat(np.arange(steps), machines)}
    )
    table["x"], table["action"] = table.step * 1.0, 0
    with pytest.raises(errors.InvalidDataError, match="goes on with agent '0' after rows of others") as refusal:
        from_dataframe(table, observations=["x"], time=time)
    advice = str(refusal.value).split("sort them first, ")[1]
    assert ("'step'" in advice) == (time is not None)
    log = from_dataframe(eval(advice, {"table": table}), observations=["x"], time=time)
    assert np.all(log.next_observations - log.observations == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observations": ["x", "y", "x"]}, "'x' is given twice"),
        ({"observations": ["x"], "action": ["y", "y"]}, "'y' is given twice"),
        ({"observations": ["x", "action"]}, "'action' is an action and an observation"),
        ({"observations": ["x", "y"], "action": ["y"]}, "'y' is an action and an observation"),
        ({"observations": ["x"], "single_agent": "me"}, "'agent' holds 2 agents, which single_agent='me' would join"),
    ],
)
def test_columns_that_have_two_roles(table, arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        from_dataframe(table, **arguments)
    one = table.assign(agent="a", step=range(12))
    assert from_dataframe(one, observations=["x"], single_agent="me", time="step").agent_labels == ("me",)


def test_a_single_row_between_episodes_is_still_refused(table):
    table.loc[[2, 3], "done"] = True
    with pytest.raises(errors.InvalidDataError, match=r"the episode at row 3 has a single row .*\(1 such episodes\)"):
        from_dataframe(table, observations=["x"], terminated="done")


def test_a_table_of_single_rows():
    """Splitting at gaps leaves none of them out silently, when there is nothing else."""
    table = pandas.DataFrame({"agent": ["x", "y"], "time": [0, 0], "state": [0.0, 1.0], "action": [0, 1]})
    with pytest.raises(errors.InvalidDataError, match="every row is an episode of its own"):
        from_dataframe(table, observations=["state"], time="time", gaps="split")


def test_the_coordinates_of_a_task_in_another_order():
    """Their names are the task's; columns of other names are the user's own."""
    frame = to_dataframe(persim_gym.collect("CartPole", num_agents=3, seed=0))
    names = ["position", "velocity", "angle", "angular velocity"]
    swapped = [names[2], names[1], names[0], names[3]]
    roles = {"agent": "agent", "episode": "episode", "reward": "reward", "terminated": "terminated", "task": "CartPole"}
    for given in (names, swapped):
        roles["next_observations"] = [f"next {name}" for name in given]
        if given is names:
            assert from_dataframe(frame, observations=given, **roles).num_agents == 3
            continue
        with pytest.raises(errors.InvalidDataError, match=r"in another order: give observations=\['position', "):
            from_dataframe(frame, observations=given, **roles)


def test_rows_and_columns_in_messages_are_the_tables(table):
    """Although the last row of each episode is dropped."""
    table.loc[8, "x"] = 99
    with pytest.raises(errors.InvalidDataError, match="the table holds x = 99 in row 8"):
        from_dataframe(table, observations=["x"], task=TASK)
    table.loc[8, ["x", "action"]] = [8, 7]
    with pytest.raises(errors.InvalidDataError, match="action 7 in row 8"):
        from_dataframe(table, observations=["x"], task=TASK)
    kept = table.drop(index=[1, 3]).reset_index(drop=True)  # rows between gaps are dropped, too
    with pytest.raises(errors.InvalidDataError, match="action 7 in row 6"):
        from_dataframe(kept, observations=["x"], task=TASK, time="step", gaps="split")


def test_wrong_columns_after_the_action(table):
    following = table.groupby("agent")[["x", "y"]].shift(-1)
    table["next x"], table["next y"] = following.x, following.y
    table["same"] = table.x
    whole, names = table.dropna(), ["next x", "next y"]
    assert len(from_dataframe(whole, observations=["x", "y"], next_observations=names)) == 10
    with pytest.raises(errors.InvalidDataError, match="'next y', given as 'x' after the action, is what 'y' is in the"):
        from_dataframe(whole, observations=["x", "y"], next_observations=names[::-1])
    with pytest.raises(errors.InvalidDataError, match="are the observations themselves"):
        from_dataframe(whole, observations=["x", "y"], next_observations=["x", "y"])
    with pytest.warns(RuntimeWarning, match="nothing ever changes"):
        from_dataframe(whole, observations=["x"], next_observations=["same"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("x", ["150.0", "-", *"0123456789"], r"'-' in row 1, .* \(1 such rows\): correct them .* errors='coerce'"),
        ("x", [f"{number},5" for number in range(12)], r"decimal=','"),
        ("action", ["low", "high"] * 6, r"the same in every table: pandas.Categorical\(table\['action'\], categories="),
        ("done", ["no", "yes"] * 6, r"'done' holds 'no' in row 0; .*\.map\(\{'no': False"),
    ],
)
def test_words_among_numbers(table, column, values, message):
    """Measurements are never advised to become ranks, nor actions numbers that another table gives others."""
    table[column] = values
    with pytest.raises(errors.InvalidDataError, match=message):
        from_dataframe(table, observations=["x"], terminated="done")


def test_truth_values_kept_as_objects(table):
    """As a merge leaves them."""
    table["done"] = pandas.Series([False] * 4 + [True] + [False] * 7, dtype=object)
    assert from_dataframe(table, observations=["x"], terminated="done").terminated.sum() == 1


@pytest.mark.parametrize("role", ["agent", "episode", "time", "reward", "terminated", "truncated"])
def test_lists_where_one_column_is_wanted(table, role):
    with pytest.raises(errors.InvalidArgumentError, match=rf"{role}=\['x'\] must be the name of one column"):
        from_dataframe(table, observations=["x"], **{role: ["x"]})


@pytest.mark.parametrize("names", [(0, 1, 2), (0, "x", ("a", "u"))], ids=["numbers", "a tuple"])
def test_names_of_columns_that_are_no_text(names):
    """As of tables without a header; a tuple of several columns is a list."""
    agent, state, action = names
    frame = pandas.DataFrame([["p", 0.1, 1], ["p", 0.2, 0], ["p", 0.3, 1]])
    frame.columns = pandas.Index(names, tupleize_cols=False)
    log = from_dataframe(frame, agent=agent, observations=[state], action=action)
    assert log.discrete and log.actions.tolist() == [1, 0]
    assert from_dataframe(frame, agent=agent, observations=[state], action=[action]).actions.tolist() == [[1], [0]]
    assert from_dataframe(frame, agent=agent, observations=[state], action=(action,)).actions.shape == (2, 1)


def test_levels_of_columns():
    columns = pandas.MultiIndex.from_tuples([("a", "x"), ("a", "u")])
    frame = pandas.DataFrame([[0.1, 1], [0.2, 0], [0.3, 1]], columns=columns)
    log = from_dataframe(frame, single_agent="p", observations=[("a", "x")], action=("a", "u"))
    assert log.discrete and log.actions.tolist() == [1, 0]


def test_no_columns_at_all(table):
    with pytest.raises(errors.InvalidArgumentError, match=r"action=\[\] must be a column"):
        from_dataframe(table, observations=["x"], action=[])


def test_files_of_other_dialects(tmp_path, table):
    """Semicolons, decimal commas, other encodings: the message has the call that reads them."""
    table.to_csv(tmp_path / "semicolons.csv", sep=";", index=False)
    table.assign(x=table.x + 0.5).to_csv(tmp_path / "commas.csv", sep=";", decimal=",", index=False)
    (tmp_path / "latin.csv").write_bytes("agent,größe,action\na,1,0\na,2,1\n".encode("latin-1"))
    for name in ("semicolons", "commas", "latin"):
        with pytest.raises(
            errors.InvalidDataError, match=r"read_csv\(path, sep=';', decimal=',', encoding='latin-1'\)"
        ):
            from_dataframe(tmp_path / f"{name}.csv", observations=["x"])
    with pytest.raises(errors.FileFormatError, match=r"latin.csv is a table: make a log of it, .*from_dataframe"):
        Trajectories.load(tmp_path / "latin.csv")


def test_states_that_do_not_follow_each_other_are_told(table):
    """Shifted the wrong way, of rows that do not belong together, or across an episode's end; rounding is not told."""
    states = ["x", "y"]
    following = table.groupby("agent")[states].shift(-1)
    before = table.groupby("agent")[states].shift(1)
    table["next x"], table["next y"] = following.x * (1 + 1e-7), following.y
    table["old x"], table["old y"] = before.x, before.y
    whole, names = table.dropna(subset=["next x"]).reset_index(drop=True), ["next x", "next y"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_dataframe(whole, observations=states, next_observations=names)
    wrong = table.dropna(subset=["old x"]).reset_index(drop=True)
    with pytest.warns(RuntimeWarning, match=r"but what the row before has: shift them the other way, shift\(-1\)"):
        from_dataframe(wrong, observations=states, next_observations=["old x", "old y"])
    whole.loc[1, "next y"] = -77.0
    with pytest.warns(RuntimeWarning, match=r"in row 1 \(1 of \d+ such rows\): if an episode ends there, name its col"):
        from_dataframe(whole, observations=states, next_observations=names)


def test_what_to_do_about_missing_values_depends_on_the_column(table):
    table["age"], table["note"] = 40.0, np.nan
    table.loc[table.agent == table.agent[0], "age"] = np.nan
    with pytest.raises(errors.InvalidDataError, match="'age' has no value in row 0 .*fill it in for this agent in all"):
        from_dataframe(table, observations=["x"], covariates=["age"])
    with pytest.raises(errors.InvalidDataError, match="column 'note' has no value in any row: leave it out"):
        from_dataframe(table, observations=["x"], reward="note")


def test_an_agent_who_comes_back_may_begin_another_episode(table):
    """Sorting by time would mix the two, and the advice does not begin with it."""
    twice = pandas.concat([table[table.agent == "a"]] * 2, ignore_index=True)
    with pytest.raises(errors.InvalidDataError, match="out of order; if another episode begins there, .* episode="):
        from_dataframe(twice, observations=["x"], time="step")
    with pytest.raises(errors.InvalidDataError, match="same time; if another episode begins there, name .* episode="):
        from_dataframe(twice.sort_values("step", kind="stable"), observations=["x"], time="step")
    twice["visit"] = [0] * 6 + [1] * 6
    assert from_dataframe(twice, observations=["x"], time="step", episode="visit").num_episodes == 2
    twice.loc[8, "step"] = 0
    with pytest.raises(errors.InvalidDataError, match="out of order; sort them first"):
        from_dataframe(twice, observations=["x"], time="step", episode="visit")


@pytest.mark.parametrize(("column", "value"), [("x", np.inf), ("y", 1e39), ("age", -np.inf)])
def test_infinite_numbers_are_in_the_tables_row(table, column, value):
    """Also below rows that a gap leaves out, and for a property of an agent."""
    table["age"] = 40.0
    table.loc[0, "step"] = -5
    table.loc[7, column] = value
    with pytest.raises(errors.InvalidDataError, match=rf"column '{column}' holds .* in row 7 \(1 such rows\)"):
        from_dataframe(table, observations=["x", "y"], time="step", gaps="split", covariates=["age"])


def test_covariates_named_like_a_column_of_ours(table):
    """They come back by their own names, and so do observations."""
    named = table.rename(columns={"x": "step", "step": "hour"}).assign(reward=40.0)
    log = from_dataframe(named, observations=["step"], covariates=["reward"])
    frame = to_dataframe(log)
    assert {"observation step", "covariate reward", "next observation step"} <= set(frame)
    again = from_dataframe(frame)
    assert (again.observation_names, again.covariate_names) == (("step",), ("reward",))
    assert Trajectories.concatenate([log, again]).observation_names == ("step",)


def test_columns_of_several_levels():
    """Any column may be named by a tuple; the name of a whole level is no column."""
    columns = pandas.MultiIndex.from_tuples([("id", "patient"), ("v", "glucose"), ("v", "dose")])
    frame = pandas.DataFrame([["p", 1.0, 0], ["p", 2.0, 1], ["p", 3.0, 1]], columns=columns)
    roles = {"observations": [("v", "glucose")], "action": ("v", "dose")}
    log = from_dataframe(frame, agent=("id", "patient"), **roles)
    assert log.agent_labels == ("p",) and log.actions.tolist() == [0, 1]
    for wrong in ({**roles, "agent": "id"}, {**roles, "agent": ("id", "patient"), "observations": ["v"]}):
        with pytest.raises(errors.InvalidDataError, match="the table has no column '(id|v)'"):
            from_dataframe(frame, **wrong)
