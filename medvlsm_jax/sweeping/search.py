"""A search for the best values of a run's config, by optuna; each trial is a run in a process of its own.

The study lies in OUTPUT/study.journal, to which every program adds lines, so that several machines can share it and a
killed one can go on: SQLite is not safe on file systems that machines share. A trial's folder is OUTPUT/trial_NUMBER,
the workdir of its training. The value of a trial is its best mean validation Dice, 0 to 1.
"""

import copy
import fcntl
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import ml_collections
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.config import as_json
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import check_others
from medvlsm_jax.sweeping.children import FAILED, STOPPED, Child, Children
from medvlsm_jax.sweeping.runs import DONE, STARTED, changed_fields, training_config, try_lock, write_run

STUDY, NAME = "study.journal", "search"
OLD_STUDY = "study.db"  # SQLite, where searches were until their folders could be shared
TRIALS = "trials.csv"
FOLDER, BASE = "folder", "config"  # user attributes of a trial, of the study
SCORE = "val/dice"  # in metrics.jsonl, once an epoch
POLL = 1.0  # seconds between looks at the trials
# A trial is ended when its best Dice so far is below the median of what finished trials had after as many epochs
# (Golovin et al., Google Vizier, KDD 2017); not before the third epoch, and not before four trials have finished.
PRUNER = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)

Suggest = Callable[[Any, Any], None]  # of an optuna trial and a config, which it changes


def open_study(output: Path, base: ml_collections.ConfigDict) -> optuna.Study:
    """The study of a folder, new or continued; raises UserError when it is broken or was begun with another config."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / STUDY).exists() and not (output / OLD_STUDY).exists():
        check_others("--output", output, [TRIALS], "search")
    with locked(output):
        with reporting_broken(output / OLD_STUDY):
            take_over(output)
        with reporting_broken(output / STUDY):
            study = optuna.create_study(
                storage=open_journal(output / STUDY),
                study_name=NAME,
                direction="maximize",
                pruner=PRUNER,
                load_if_exists=True,
            )
            old = study.user_attrs.get(BASE)
            if old is None:
                study.set_user_attr(BASE, as_json(base))
    if changed := changed_fields(old or {}, as_json(base)):
        raise UserError(
            f"{output} holds a search of another config: {', '.join(changed)} differ. Give the old values, or choose "
            "another --output"
        )
    return study


def open_journal(path: Path) -> JournalStorage:
    """The study in a file, new or continued; raises ValueError when it is no such file.

    A power cut may leave half a line at its end, which is cut off: the next line would be written behind it.
    """
    lock = JournalFileOpenLock(str(path))  # an exclusive file, as NFS has it from version 3 on; kept 30 s by the dead
    storage = JournalFileBackend(str(path), lock_obj=lock)
    lock.acquire()
    try:
        with path.open("r+b") as file:
            content = file.read()
            if content and not content.startswith(b"{"):
                raise ValueError("it is no journal of optuna's")
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
    return JournalStorage(storage)


def take_over(output: Path) -> None:
    """Copies the trials of a search that was begun with SQLite, once; the old file is left as it is."""
    if (output / STUDY).exists() or not (output / OLD_STUDY).exists():
        return
    with atomic.replacing(output / STUDY) as temporary:
        old = RDBStorage(f"sqlite:///{(output / OLD_STUDY).absolute()}")
        try:
            optuna.copy_study(from_study_name=NAME, from_storage=old, to_storage=open_journal(temporary))
        finally:  # optuna leaves the database open
            old.remove_session()
            old.engine.dispose()


@contextmanager
def reporting_broken(path: Path) -> Iterator[None]:
    """Makes one line of whatever optuna, SQLite or json say against a study's file."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}): if it is broken, put back a copy or choose another --output"
        ) from error


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Holds the lock of a search.

    Programs that share it take and give back trials one after another, so that whoever has the lock knows: a running
    trial whose folder is not locked has no process.
    """
    with (output / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- Trials ----------------------------------------------------------------------------------------------------------


def folder_name(trial: Trial | FrozenTrial) -> str:
    """The folder of a trial; one that takes up a killed one has that one's."""
    return trial.user_attrs.get(FOLDER, f"trial_{trial.number:04d}")


def next_trial(study: optuna.Study, output: Path, trials: int) -> tuple[Trial, IO[str]] | None:
    """A trial and the lock of its folder: one that was broken off, or a new one while there are fewer than `trials`."""
    with locked(output):
        give_up_killed(study, output)
        known = study.get_trials(deepcopy=False)
        is_queued = any(trial.state is TrialState.WAITING for trial in known)
        if not is_queued and len({folder_name(trial) for trial in known}) >= trials:
            return None
        trial = study.ask()
        lock = try_lock(output / folder_name(trial))
        assert lock is not None  # all who lock a trial's folder hold the search's lock
        return trial, lock


def give_up_killed(study: optuna.Study, output: Path) -> None:
    """Trials whose process is gone fail, and others with their values and folders take their place."""
    known = study.get_trials(deepcopy=False)
    queued = {folder_name(trial) for trial in known if trial.state is TrialState.WAITING}
    for trial in known:
        name = folder_name(trial)
        if trial.state is not TrialState.RUNNING or (lock := try_lock(output / name)) is None:
            continue
        if name not in queued:
            study.enqueue_trial(trial.params, user_attrs={FOLDER: name})
        study.tell(trial.number, state=TrialState.FAIL)
        lock.close()


def retry_failed(study: optuna.Study, output: Path) -> None:
    """Trials whose last attempt has failed come again, with their values and folders: their cause may be mended."""
    with locked(output):
        last = {folder_name(trial): trial for trial in study.get_trials(deepcopy=False)}
        for name, trial in last.items():
            if trial.state is TrialState.FAIL:
                study.enqueue_trial(trial.params, user_attrs={FOLDER: name})


class Attempt:
    """A trial with the process that trains it."""

    def __init__(self, trial: Trial, child: Child):
        self.trial, self.child = trial, child
        self.is_pruned = False
        self.reported = 0  # epochs

    def follow(self) -> list[float]:
        """Tells optuna the validation Dice of new epochs, and stops what it finds hopeless; returns all epochs'."""
        scores = read_scores(self.child.folder)
        for epoch in range(self.reported, len(scores)):
            self.trial.report(scores[epoch], epoch)
        if len(scores) > self.reported and not self.child.is_asked and self.trial.should_prune():
            self.is_pruned = True
            self.child.ask_to_stop()
        self.reported = max(self.reported, len(scores))
        return scores

    def finish(self, study: optuna.Study) -> str:
        """Tells optuna what came of it; one that was stopped stays for the next search to take up."""
        scores, status = self.follow(), self.child.status()
        if status == DONE and scores:
            study.tell(self.trial, max(scores))
            return f"best validation Dice {max(scores):.4f}"
        if self.is_pruned and status == STOPPED:
            study.tell(self.trial, state=TrialState.PRUNED)
            return f"pruned after {len(scores)} epochs, best validation Dice {max(scores):.4f}"
        if status == STOPPED:
            return STOPPED
        study.tell(self.trial, state=TrialState.FAIL)
        return f"{FAILED}, {self.child.reason() if status == FAILED else 'the dataset has no validation split'}"


def read_scores(folder: Path) -> list[float]:
    """The validation Dice of each epoch so far."""
    log = folder / "metrics.jsonl"
    lines = log.read_text("utf-8").split("\n")[:-1] if log.exists() else []
    return [json.loads(line)["value"] for line in lines if f'"{SCORE}"' in line]


# --- Search ----------------------------------------------------------------------------------------------------------


def search(
    base: ml_collections.ConfigDict,
    suggest: Suggest,
    trials: int,
    output: Path,
    children: Children,
    signals: Sequence[int],
) -> optuna.Study:
    """Trains until there are so many trials, or a signal has come and those at work have saved.

    Trials that failed in an earlier call are tried once more. One that still has a process of another program, or of
    one that was killed and lets it save, is waited for, since it may have to be taken up.

    Args:
        base: the config that `suggest` changes.
        suggest: chooses a trial's values.
        trials: how many, with those of earlier calls and of other programs.
        output: of the study.
        children: the processes to be.
        signals: those received; a signal handler may add to it meanwhile.

    Raises:
        UserError: the study is broken, or was begun with another config.
    """
    study = open_study(output, base)
    retry_failed(study, output)
    attempts: dict[Child, Attempt] = {}
    with tqdm(total=trials, unit="trial", disable=None) as bar:
        while True:
            if signals:
                children.ask_to_stop()
            while children.free and not signals and (found := next_trial(study, output, trials)):
                attempt = begin(*found, base, suggest, output, children)
                attempts[attempt.child] = attempt
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if not children.running and (signals or not running):
                return study
            for child in children.running:
                attempts[child].follow()
            for child in children.ended():
                with locked(output):
                    told = attempts.pop(child).finish(study)
                    children.release(child)
                tqdm.write(f"{child.folder.name}: {told}")
            bar.update(count_finished(study) - bar.n)
            time.sleep(POLL)


def begin(
    trial: Trial, lock: IO[str], base: ml_collections.ConfigDict, suggest: Suggest, output: Path, children: Children
) -> Attempt:
    """Starts the training of a trial."""
    config: Any = copy.deepcopy(base)
    suggest(trial, config)
    config.name = folder_name(trial)
    config.evaluation.datasets = ""  # the test split is not what a search chooses by
    write_run(output / config.name, config, STARTED)
    return Attempt(trial, children.start(output / config.name, lock))


def count_finished(study: optuna.Study) -> int:
    """How many trials were trained to their end, or as long as they were worth it."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


# --- What was found --------------------------------------------------------------------------------------------------


def write_trials(study: optuna.Study, output: Path) -> None:
    """Writes trials.csv: number, folder, state, best validation Dice, epochs and the values of each trial.

    Of one that was killed and taken up again, the last attempt stands for all.
    """
    trials = {folder_name(trial): trial for trial in study.get_trials(deepcopy=False)}.values()
    names = sorted({name for trial in trials for name in trial.params})
    rows: list[list[object]] = [["trial", "folder", "state", "val_dice", "epochs", *names]]
    for trial in trials:
        dice = max(trial.intermediate_values.values(), default="")
        values = [trial.params.get(name, "") for name in names]
        rows.append([trial.number, folder_name(trial), trial.state.name, dice, len(trial.intermediate_values), *values])
    atomic.write_csv(output / TRIALS, rows)


def best_config(study: optuna.Study, base: ml_collections.ConfigDict, suggest: Suggest) -> ml_collections.ConfigDict:
    """The training config of the best trial; raises UserError when no trial has been trained to its end."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise UserError("no trial has been trained to its end: their logs are OUTPUT/trial_…/log.txt")
    config = copy.deepcopy(base)
    suggest(optuna.trial.FixedTrial(study.best_params), config)
    return config


def train_command(config: Any, recipe: ml_collections.ConfigDict, workdir: Path) -> str:
    """The command that trains a run's config.

    Args:
        config: of the run.
        recipe: what its config file gives by itself.
        workdir: of the training.
    """
    changed = changed_fields(as_json(recipe), as_json(training_config(config)), ignored=())
    items = [f"{name}={new}" for name, (_, new) in changed.items()]
    return shlex.join(
        ["python", "-m", "medvlsm_jax.train", f"--config={config.file}:{','.join(items)}", f"--workdir={workdir}"]
    )
