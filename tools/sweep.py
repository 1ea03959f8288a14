r"""Trains and scores the runs of a sweep, or searches for the best values of one run.

    python tools/sweep.py --sweep=configs/sweeps.py:individual,data_dir=DATA,checkpoints=checkpoints --list
    python tools/sweep.py --sweep=… --output=runs --report
    python tools/sweep.py --sweep=… --output=runs --index=0 --count=4     (on the first of four machines)
    python tools/sweep.py --sweep=… --output=runs --jobs=8                (on one of eight GPUs; or chips, or CPU cores)
    python tools/sweep.py --sweep=configs/sweeps.py:search,models=cris,data_dir=DATA --output=found --trials=20

Each run has a process of its own and a folder in OUTPUT: the training's workdir, its `evaluation/` and its `log.txt`.
The same command skips the runs that have finished and goes on with those that were broken off. SIGTERM and Ctrl-C let
those at work save. A run is on one machine; several share OUTPUT, or each has its own. Exit status: 0 all done, 1 some
have failed, 75 or 130 stopped (run it again), 2 an error.
"""

import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))

from medvlsm_jax.command_line import run_program
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import output_folder
from medvlsm_jax.parallel.interruption import EXIT_AGAIN, Interruption, catch_signals, leave
from medvlsm_jax.sweeping.children import FAILED, STOPPED, Children, end_with_parent
from medvlsm_jax.sweeping.devices import share_devices
from medvlsm_jax.sweeping.runs import perform
from medvlsm_jax.sweeping.sweep import list_runs, outcome_table, run_sweep

ROOT = Path(__file__).resolve().parents[1]


def load_sweep(text: str) -> tuple[dict[str, Any], list[Any]]:
    """The names that a sweep's file defines, and its runs, of `FILE:ARG`; raises UserError if it cannot be read."""
    path, _, arg = text.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--sweep={text}: {path} does not exist; give FILE:NAME as in configs/sweeps.py:individual")
    names = runpy.run_path(path)
    if "get_sweep" not in names:
        raise UserError(f"--sweep={text}: {path} has no function get_sweep(arg), as configs/sweeps.py has")
    return names, list(names["get_sweep"](arg))


def child_command(folder: Path) -> Sequence[str]:
    """This program, working on one run."""
    return [sys.executable, str(Path(__file__).resolve()), f"--output={folder.parent}", f"--run={folder.name}"]


def perform_one(folder: Path) -> None:
    """What a child does: the run of a folder, ending with its sweep."""
    end_with_parent()
    try:
        perform(folder)
    except SystemExit as stopped:
        leave(int(stopped.code or 0))


def sweep(runs: list[Any], output: Path, children: Children, interruption: Interruption, *, is_reported: bool) -> int:
    """Works on the runs; returns the exit status."""
    outcomes = run_sweep(runs, output, children, interruption.received)
    print(f"\n{outcome_table(outcomes)}\nwritten to {output}")
    statuses = [outcome.status for outcome in outcomes.values()]
    if interruption.received:
        print("stopped: the same command goes on", file=sys.stderr)
        return interruption.exit_status
    is_good = FAILED not in statuses
    if is_reported:
        command = [sys.executable, str(ROOT / "tools" / "report.py"), str(output), f"--output={output / 'report'}"]
        is_good = subprocess.run(command).returncode == 0 and is_good
    return (EXIT_AGAIN if STOPPED in statuses else 0) if is_good else 1


def find_best(
    names: dict[str, Any], runs: list[Any], trials: int, output: Path, children: Children, interruption: Interruption
) -> int:
    """Searches around the one run of a sweep and prints how to train the best; returns the exit status."""
    try:
        from medvlsm_jax.sweeping import search
    except ImportError as error:
        raise UserError("--trials needs optuna: pip install 'medvlsm-jax[search]'") from error
    if len(runs) != 1 or "suggest" not in names:
        raise UserError(
            f"--trials: the sweep has {len(runs)} runs; a search needs one (search,models=A,dataset=B) in a file that "
            "defines suggest(trial, config) as well"
        )
    study = search.search(runs[0], names["suggest"], trials, output, children, interruption.received)
    search.write_trials(study, output)
    if interruption.received:
        print("stopped: the same command goes on", file=sys.stderr)
        return interruption.exit_status
    best = search.best_config(study, runs[0], names["suggest"])
    recipe = runpy.run_path(str(ROOT / str(best.file)))["get_config"]()
    print(f"\nbest validation Dice {study.best_value:.4f}, all trials in {output / search.TRIALS}; to train it:")
    print(search.train_command(best, recipe, output / "best"))
    return 0


def check_flags(args: Any) -> Path | None:
    """The folder of --output, if it is given; raises UserError when flags make no sense, or not together."""
    if args.index >= args.count:
        raise UserError(f"--index={args.index}: with --count={args.count} it is 0 to {args.count - 1}")
    given = {"report": args.report, "index": args.index, "count": args.count > 1}
    idle = [f"--{name}" for name, is_given in given.items() if is_given]
    if args.trials and idle:
        raise UserError(
            f"--trials does nothing with {', '.join(idle)}: leave that out; machines share a search by one --output"
        )
    return output_folder("--output", args.output) if args.output is not None else None


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    for name in ("sweep", "output"):
        is_needed = not (args.run if name == "sweep" else args.list)
        if is_needed and not args[name].value:
            raise UserError(f"--{name} is missing: {args[name].help}")
    if args.run:
        perform_one(Path(args.output, args.run))
        return
    output = check_flags(args)
    names, runs = load_sweep(args.sweep)
    runs = runs[args.index :: args.count]
    if args.list or output is None:
        print(list_runs(runs, output))
        return
    with catch_signals() as interruption, Children(child_command, share_devices(args.jobs)) as children:
        interruption.training_begins()
        if args.trials:
            status = find_best(names, runs, args.trials, output, children, interruption)
        else:
            status = sweep(runs, output, children, interruption, is_reported=args.report)
    sys.exit(status)


if __name__ == "__main__":
    flags.DEFINE_string(
        "sweep", None, "Its runs, as FILE:NAME,FIELD=VALUE,…: configs/sweeps.py:grid,models=clipseg+unet"
    )
    flags.DEFINE_string("output", None, "Receives a folder for each run; what has finished there is skipped.")
    flags.DEFINE_integer("index", 0, "Which machine this is, from 0 on.", lower_bound=0)
    flags.DEFINE_integer("count", 1, "How many machines share the runs: each takes every COUNT-th.", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "Runs at a time; the machine's devices are shared out.", lower_bound=1)
    flags.DEFINE_bool("list", False, "Name the runs and end.")
    flags.DEFINE_bool("report", False, "Write OUTPUT/report at the end.")
    flags.DEFINE_integer("trials", 0, "Search around the one run of the sweep, with so many trials.", lower_bound=0)
    flags.DEFINE_string("run", None, "For this program itself: the one run in OUTPUT to work on.")
    run_program(main)
