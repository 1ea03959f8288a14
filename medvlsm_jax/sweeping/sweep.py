"""All runs of a sweep, each in a process of its own: what has finished is skipped, what was broken off goes on."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from tqdm import tqdm

from medvlsm_jax.sweeping.children import FAILED, POLL, STOPPED, Child, Children
from medvlsm_jax.sweeping.runs import DONE, STARTED, is_done, read_run, try_lock, write_run
from medvlsm_jax.text import table

SKIPPED, WAITING = "skipped", "waiting"


class Outcome(NamedTuple):
    """What came of a run: done, skipped (it was done before), failed, stopped or waiting; seconds of this attempt."""

    status: str
    seconds: float = 0.0


Outcomes = Mapping[str, Outcome]


def run_sweep(
    configs: Sequence[ml_collections.ConfigDict], output: Path, children: Children, signals: Sequence[int]
) -> Outcomes:
    """Works on runs until each has ended, or a signal has come and those at work have saved.

    A run that another program is working on is waited for.

    Args:
        configs: of the runs.
        output: holds their folders.
        children: the processes to be.
        signals: those received; a signal handler may add to it meanwhile.

    Returns:
        Name -> what came of it.

    Raises:
        UserError: a run has finished with another config.
    """
    outcomes: dict[str, Outcome] = {}
    runs: list[Any] = list(configs)
    done = [config.name for config in runs if is_done(output / config.name, config)]  # before anything starts
    waiting = [config for config in runs if config.name not in done]
    with tqdm(total=len(runs), unit="run", disable=None) as bar:

        def tell(name: str, outcome: Outcome, reason: str = "") -> None:
            outcomes[name] = outcome
            tqdm.write(outcome_line(name, outcome, reason))
            bar.update()

        for name in done:
            tell(name, Outcome(SKIPPED))
        while children.running or (waiting and not signals):
            if signals:
                children.ask_to_stop()
            for config in [] if signals else list(waiting):
                if not children.free:
                    break
                if is_done(output / config.name, config):
                    tell(config.name, Outcome(SKIPPED))
                elif not begin(config, output / config.name, children):
                    continue
                waiting.remove(config)
            for child in children.ended():
                status = child.status()
                tell(child.folder.name, Outcome(status, child.seconds), child.reason() if status == FAILED else "")
                children.release(child)
            time.sleep(POLL)
    return {config.name: outcomes.get(config.name, Outcome(WAITING)) for config in runs}


def begin(config: ml_collections.ConfigDict, folder: Path, children: Children) -> Child | None:
    """Starts a run on a free share of the machine, unless another program is working on it."""
    if (lock := try_lock(folder)) is None:
        return None
    if is_done(folder, config):  # by another program, since that was asked last: the next look will tell
        lock.close()
        return None
    write_run(folder, config, STARTED)
    return children.start(folder, lock)


def outcome_line(name: str, outcome: Outcome, reason: str = "") -> str:
    """One line, and for a failure those that say why."""
    seconds = f" after {outcome.seconds:.0f} s" if outcome.seconds else ""
    return f"{name}: {outcome.status}{seconds}{f', {reason}' if reason else ''}"


def list_runs(configs: Sequence[ml_collections.ConfigDict], output: Path | None) -> str:
    """The names of the runs, with what their folders say of them."""
    runs: list[Any] = list(configs)
    status = {run.name: read_run(output / run.name).get("status", "") if output else "" for run in runs}
    return "\n".join([f"{name}  {text}".rstrip() for name, text in status.items()] + [f"{len(runs)} runs"])


def outcome_table(outcomes: Outcomes) -> str:
    """A line for each run, and how many came to what."""
    rows = [["run", "status", "seconds"]]
    rows += [[name, status, f"{seconds:.0f}" if seconds else "-"] for name, (status, seconds) in outcomes.items()]
    counts = Counter(outcome.status for outcome in outcomes.values())
    told = [f"{counts[status]} {status}" for status in (DONE, SKIPPED, FAILED, STOPPED, WAITING) if counts[status]]
    seconds = sum(outcome.seconds for outcome in outcomes.values())
    return f"{table(rows)}\n\n{', '.join(told) or 'no runs'}; {seconds:.0f} s of work"
