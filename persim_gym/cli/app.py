"""The command line: each command parses, calls the library, and prints."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from persim_gym import files, storage
from persim_gym.cli import ensembles, logs
from persim_gym.cli.arguments import (
    RECORDS,
    SYNTHETIC,
    Device,
    Epochs,
    Model,
    OwnTask,
    Quiet,
    Seed,
    agents_of,
    check_output,
    policy_of,
    refuse_options,
    task_of,
)
from persim_gym.cli.console import console, print_written
from persim_gym.errors import InvalidArgumentError, PerSimError
from persim_gym.evaluation.records import to_records
from persim_gym.terminal import table

app = typer.Typer(
    help="Personalized simulators from one logged trajectory of each of many agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, command in {
    "collect": logs.collect, "import": logs.import_table, "split": logs.split, "export": logs.export,
    "train": ensembles.train, "personalize": ensembles.personalize, "update": ensembles.update,
    "calibrate": ensembles.calibrate, "install": ensembles.install, "models": ensembles.models,
}.items():  # fmt: skip
    app.command(name)(command)

_Records = dict[str, Any]
_INTERRUPTED = 130
"""Exit status after Ctrl-C, which Typer turns into it."""
_WHICH_AGENTS = 'Labels, "anna,ben", or indices, "0-4,7"; numbers are labels where labels are numbers.'
_FOR_TRUE_SYSTEMS = ("policy", "episodes", "mpc_episodes", "value_iteration_episodes", "seed")
Aggregate = Annotated[str, typer.Option(help="mean or median over the members; MPC plans by their mean return.")]


@app.command()
def evaluate(
    context: typer.Context,
    model: Model,
    agents: Annotated[
        str | None,
        typer.Option(
            help=f"{_WHICH_AGENTS} Default: those like the task's test agents; without any, or with --log, all."
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Measure errors along this log of its agents, not in their true systems.")
    ] = None,
    horizon: Annotated[int, typer.Option(help="With --log: steps that a prediction runs freely.", min=1)] = 50,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="With --log: also how often the intervals of forecasts cover it.")
    ] = False,
    policy: Annotated[str, typer.Option(help='Test policy: "test" (shipped), "random", or a policy file.')] = "test",
    episodes: Annotated[int, typer.Option(help="Episodes an agent for the prediction error.", min=1)] = 200,
    mpc_episodes: Annotated[int, typer.Option(help="MPC episodes per agent; 0 for none.", min=0)] = 20,
    value_iteration_episodes: Annotated[
        int,
        typer.Option(help="Episodes an agent for value iteration; only for discrete actions.", min=0),
    ] = 0,
    aggregate: Aggregate = "mean",
    task: OwnTask = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="File to write the records to.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Measure prediction error and the returns of planners in the agents' true systems, or errors along a log."""
    from persim_gym import load

    if json_path is not None:
        check_output(json_path, RECORDS, model, log, policy)
    if log is None:
        refuse_options(context, ("horizon", "intervals"), "is for --log, which is not given")
    else:
        refuse_options(context, _FOR_TRUE_SYSTEMS, "is for true systems, not for --log")
    ensemble = load(model, task=task_of(task))
    if value_iteration_episodes and not ensemble.task.discrete:
        refuse_options(context, ("value_iteration_episodes",), f"needs discrete actions, not {ensemble.task.name}'s")
    chosen = agents_of(agents, ensemble.agent_labels)
    common: dict[str, Any] = {"device": device, "progress": not quiet}
    if log is not None:
        common |= {"horizon": horizon, "aggregate": aggregate}
        parts = _measured_along(log, ensemble, chosen, intervals=intervals, **common)
    elif ensemble.task.make_system is None:
        raise InvalidArgumentError(
            f"task {ensemble.task.name} has no true system to measure in; give --log, a log of its agents that "
            "training has not seen"
        )
    else:
        common |= {"agents": chosen, "seed": seed}
        parts = itertools.chain(
            _predictions_measured(ensemble, policy, episodes=episodes, aggregate=aggregate, **common),
            _planners_measured(ensemble, mpc_episodes, value_iteration_episodes, aggregate=aggregate, **common),
        )
    measured: dict[str, Any] = {}
    for part in parts:
        measured |= part
        if json_path is not None:  # at once: the next part may take an hour, or fail
            _write_records(json_path, ensemble, measured)


@app.command()
def generate(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write.")],
    agents: Annotated[str | None, typer.Option(help=f"{_WHICH_AGENTS} Default: the first five.")] = None,
    episodes: Annotated[int, typer.Option(help="Episodes an agent.", min=1)] = 5,
    policy: Annotated[str, typer.Option(help="plan, mpc, value_iteration, random, test, or a policy file.")] = "plan",
    task: OwnTask = None,
    starts: Annotated[str, typer.Option(help="First states: log, spread (of the log, far apart) or task.")] = "log",
    max_disagreement: Annotated[float | None, typer.Option(help="Cut an episode where members differ by more.")] = None,
    aggregate: Aggregate = "mean",
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Write synthetic trajectories of some agents, made in their simulators."""
    from persim_gym import generate as generate_log
    from persim_gym import load
    from persim_gym.data.labels import AgentIndex
    from persim_gym.generation import POLICIES

    check_output(out, SYNTHETIC, model, policy)
    ensemble = load(model, task=task_of(task))
    chosen = agents_of(agents, ensemble.agent_labels)
    log = generate_log(
        ensemble,
        [AgentIndex(agent) for agent in range(min(5, ensemble.num_agents))] if chosen is None else chosen,
        episodes,
        policy if policy in POLICIES else policy_of(policy, ensemble.task, seed),
        starts=starts,
        max_disagreement=max_disagreement,
        aggregate=aggregate,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    log.save(out)
    print_written(log, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the model, the table and the picture.")] = Path(
        "demo-output"
    ),
    agents: Annotated[int, typer.Option(help="Number of agents.", min=5)] = 500,
    epochs: Epochs = None,
    episodes: Annotated[int, typer.Option(help="Episodes an agent for the returns.", min=1)] = 2,
    candidates: Annotated[int, typer.Option(help="Action sequences that MPC scores at every step.", min=1)] = 1000,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Run everything on CartPole in a few minutes: collect, train, evaluate, draw."""
    from persim_gym.cli.demo import run_demo

    files.check_target(out / "demo.json")
    run_demo(
        out,
        num_agents=agents,
        epochs=epochs,
        episodes=episodes,
        num_candidates=candidates,
        seed=seed,
        console=console,
        progress=not quiet,
    )


def main() -> None:
    """Run the command line; an error of the user's is one line on the error stream and exit status 1.

    Modules in the current folder are found, for tasks of a user's own are imported from there.
    """
    sys.path.insert(0, "")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without the line of code that warns
    try:
        app()
    except (PerSimError, OSError) as error:
        Console(stderr=True).print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        goes_on = "; the same command goes on from half a minute ago or less" if sys.argv[1:2] == ["train"] else ""
        Console(stderr=True).print(f"interrupted{goes_on}")
        sys.exit(_INTERRUPTED)


def _measured_along(
    log: Path, ensemble: Any, agents: Sequence[int | str] | None, *, intervals: bool = False, **settings: Any
) -> Iterator[_Records]:
    """Print errors along a log, or a log of some agents, and how often intervals cover it, and give each for JSON."""
    from persim_gym import Trajectories, interval_coverage, log_error
    from persim_gym.data.reprs import synthetic_note
    from persim_gym.evaluation.log_errors import mean_over_agents

    along = Trajectories.load(log)
    along = along if agents is None else along.select(agents)
    rows = log_error(ensemble, along, **settings)
    title = f"errors along {log}{synthetic_note(along.provenance)}, up to {settings['horizon']} steps"
    _print_rows(title, [*rows, mean_over_agents(rows)])
    yield {"log": str(log), "log_error": to_records(rows)}
    if intervals:
        covered = interval_coverage(ensemble, along, device=settings["device"])
        _print_rows("coverage of intervals", covered)
        yield {"interval_coverage": to_records(covered)}


def _predictions_measured(ensemble: Any, policy: str, **settings: Any) -> Iterator[_Records]:
    """Print the errors of predictions in the true systems, and give them for JSON."""
    from persim_gym import prediction_error
    from persim_gym.evaluation.prediction import HORIZON

    acting = policy_of(policy, ensemble.task, settings["seed"])
    if not isinstance(acting, str):
        acting = acting.act  # the published errors are those of a policy that draws on from agent to agent
    errors = prediction_error(ensemble, policy=acting, **settings)
    _print_rows(f"prediction error, {HORIZON} steps", errors)
    yield {"test_policy": policy, "seed": settings["seed"], "prediction_error": to_records(errors)}


def _planners_measured(
    ensemble: Any, mpc_episodes: int, value_iteration_episodes: int, **settings: Any
) -> Iterator[_Records]:
    """Print the returns of those planners that any episodes are asked of, and give each planner's for JSON."""
    from persim_gym import mpc_returns, value_iteration_returns

    planners = {
        "mpc_returns": (mpc_returns, mpc_episodes),
        "value_iteration_returns": (value_iteration_returns, value_iteration_episodes),
    }
    for name, (measure, episodes) in planners.items():
        if episodes:
            rows = measure(ensemble, episodes=episodes, **settings)
            _print_rows(f"true system, {rows[0].policy}", rows)
            yield {name: to_records(rows)}


def _write_records(path: Path, ensemble: Any, measured: dict[str, Any]) -> None:
    """Write what was measured, and of what, as JSON."""
    records = {
        "command": " ".join(["persim-gym", *sys.argv[1:]]), "provenance": dict(ensemble.provenance), **measured
    }  # fmt: skip
    files.write_text(path, storage.to_json(records, indent=2) + "\n")


def _print_rows(title: str, rows: Sequence[Any]) -> None:
    records = to_records(rows)
    columns = [name.replace("_", " ") for name in records[0]]
    console.print(table(title, columns, [[_cell(value) for value in record.values()] for record in records]))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(f"{number:g}" for number in value)
    return str(value)
