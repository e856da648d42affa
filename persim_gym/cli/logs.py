"""Commands about logs: record one, make one from a table, hold a part out, write a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from persim_gym.cli.arguments import COLLECTED, IMPORTED, PART, TABLE, Seed, check_output, number_or_text, task_of
from persim_gym.cli.console import print_written
from persim_gym.errors import InvalidArgumentError

Log = Annotated[Path, typer.Argument(help="Trajectories written by `collect`, `import` or Trajectories.save.")]
Out = Annotated[Path, typer.Option(help="File to write.")]


def collect(
    task: Annotated[str, typer.Argument(help="MountainCar, CartPole or HalfCheetah.")],
    out: Out,
    policy: Annotated[str, typer.Option(help="random, pure, pure-eps-20 or pure-eps-40.")] = "random",
    agents: Annotated[int, typer.Option(help="Number of agents.", min=1)] = 500,
    seed: Seed = 0,
) -> None:
    """Record one trajectory of each of many heterogeneous agents in their true systems."""
    from persim_gym import collect as collect_log

    check_output(out, COLLECTED)
    _write(collect_log(task, policy=policy, num_agents=agents, seed=seed), out)


def import_table(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file with one row a step.")],
    out: Out,
    observation: Annotated[list[str], typer.Option(help="Column of the state before the action; once for each.")],
    action: Annotated[list[str], typer.Option(help="Column of the action; once for each coordinate.")],
    agent: Annotated[str, typer.Option(help="Column of who acted.")] = "agent",
    single_agent: Annotated[
        str | None, typer.Option(help="Label of the only agent, for a table without such a column.")
    ] = None,
    episode: Annotated[str | None, typer.Option(help="Column that tells an agent's episodes apart.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of numbers or times; by it the rows are checked.")] = None,
    time_step: Annotated[str, typer.Option(help='Difference of --time from row to row: a number, or "12h".')] = "1",
    gaps: Annotated[str, typer.Option(help='Where a step is missing: "error", or "split" into episodes.')] = "error",
    reward: Annotated[str | None, typer.Option(help="Column of the reward; zero without it.")] = None,
    next_observation: Annotated[
        list[str] | None,
        typer.Option(help="Column of the state after the action; once for each. Without them it is the next row's."),
    ] = None,
    terminated: Annotated[str | None, typer.Option(help="Column, whether the row reached a terminal state.")] = None,
    truncated: Annotated[str | None, typer.Option(help="Column, whether the episode was cut after the row.")] = None,
    covariate: Annotated[list[str] | None, typer.Option(help="Column of a known property; once for each.")] = None,
    task: Annotated[
        str | None, typer.Option(help='Name of what it is a log of, or "module:attribute" for a task of your own.')
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="The single action is a quantity. Several are, and so is a task's.")
    ] = False,
) -> None:
    """Make a log from a table with one row a step."""
    from persim_gym.interop import from_dataframe
    from persim_gym.tasks import Task, get_task, task_names

    check_output(out, IMPORTED, table)
    own = task_of(task)
    known = get_task(own) if isinstance(own, Task) or own in task_names() else None
    quantities = continuous or len(action) > 1 or (known is not None and not known.discrete)
    log = from_dataframe(
        table,
        observations=observation,
        action=action if quantities else action[0],
        agent=agent,
        single_agent=single_agent,
        episode=episode,
        time=time,
        time_step=number_or_text(time_step),
        gaps=gaps,
        reward=reward,
        next_observations=next_observation or None,
        terminated=terminated,
        truncated=truncated,
        covariates=covariate or (),
        task=own,
    )
    _write(log, out)


def split(
    data: Log,
    kept: Annotated[Path, typer.Option(help="File to write the log to learn from to.")],
    held_out: Annotated[Path, typer.Option(help="File to write what is held out to.")],
    fraction: Annotated[float, typer.Option(help="Part to hold out, above 0 and below 1.")] = 0.2,
    by: Annotated[
        str, typer.Option(help='"time": each agent\'s last transitions; "episode": its last episodes; "agent": agents.')
    ] = "time",
    seed: Seed = 0,
) -> None:
    """Hold out a part of a log, to measure on it what was learned from the rest."""
    from persim_gym import Trajectories

    if kept.resolve() == held_out.resolve():
        raise InvalidArgumentError(f"--kept and --held-out are both {kept}: give two files to write to")
    for path in (kept, held_out):
        check_output(path, PART, data)
    parts = Trajectories.load(data).split(fraction, by=by, seed=seed)
    for part, path in zip(parts, (kept, held_out), strict=True):
        _write(part, path)


def export(
    data: Log,
    out: Annotated[Path, typer.Option(help="File to write, suffix .csv, .csv.gz or .parquet.")],
    task: Annotated[
        str | None, typer.Option(help='"module:attribute" of a task of your own, whose observations have names.')
    ] = None,
) -> None:
    """Write a log, such as one that `generate` made, as a table with one row a step."""
    from persim_gym import Trajectories
    from persim_gym.interop import to_dataframe
    from persim_gym.interop.table_files import write_table
    from persim_gym.tasks import get_task

    check_output(out, TABLE, data)
    log = Trajectories.load(data)
    names = None if task is None else get_task(task_of(task)).observation_names
    write_table(to_dataframe(log, observation_names=names), out)
    print_written(log, out)


def _write(log: Any, out: Path) -> None:
    log.save(out)
    print_written(log, out)
