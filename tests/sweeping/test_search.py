"""The search for the best values of a run: what is tried, stopped, taken up again and found."""

import csv
import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sweep as program

from configs import clipseg, sweeps, unet
from configs.sweeps import get_sweep
from medvlsm_jax.config import as_json
from medvlsm_jax.errors import UserError
from medvlsm_jax.sweeping.children import Children
from medvlsm_jax.sweeping.devices import Share
from medvlsm_jax.sweeping.runs import read_run, training_config

optuna = pytest.importorskip("optuna")

from optuna.storages.journal import JournalFileOpenLock  # noqa: E402

from medvlsm_jax.sweeping import search  # noqa: E402

# It pretends: the validation Dice rises to the learning rate, over twelve epochs, or goes on to do so.
PRETEND = """
import json, os, sys, time
folder = sys.argv[1]
with open(folder + "/run.json") as file:
    run = json.load(file)
rate = run["config"]["learning_rate"]
with open(folder + "/metrics.jsonl", "a+") as file:
    file.seek(0)
    first = len(file.readlines()) // 2
    for epoch in range(first, 12):
        time.sleep(0.01 if rate > 0.25 else 0.1)
        for name, value in (("train/loss", 1.0), ("val/dice", rate * (epoch + 1) / 12)):
            file.write(json.dumps({"step": epoch + 1, "name": name, "value": value}) + "\\n")
        file.flush()
        if rate > 0.95:
            print("the loss is not finite", flush=True)
            sys.exit(2)
run["status"] = "done"
with open(folder + "/.new", "w") as file:
    json.dump(run, file)
os.replace(folder + "/.new", folder + "/run.json")
"""


def suggest(trial: Any, config: Any) -> None:
    config.learning_rate = trial.suggest_float("learning_rate", 0.1, 1.0)
    config.loss = trial.suggest_categorical("loss", ["dice", "dice_bce"])


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(search, "POLL", 0.02)


@pytest.fixture
def base() -> Any:
    (config,) = get_sweep("search,models=clipseg_tiny,dataset=sample,data_dir=D,num_epochs=12")
    return config


def command(folder: Path) -> list[str]:
    return [sys.executable, "-S", "-c", PRETEND, str(folder)]


def run_search(base: Any, output: Path, trials: int, signals: list[int] | None = None) -> Any:
    with Children(command, [Share()]) as children:
        return search.search(base, suggest, trials, output, children, [] if signals is None else signals)


def enqueue(base: Any, output: Path, *rates: float) -> Any:
    """A study whose first trials have these learning rates."""
    study = search.open_study(output, base)
    for rate in rates:
        study.enqueue_trial({"learning_rate": rate, "loss": "dice_bce"})
    return study


def states(study: Any) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def test_trials_are_trained_hopeless_ones_stopped_and_failed_ones_left(base, tmp_path, capsys):
    enqueue(base, tmp_path, 0.6, 0.97, 0.9, 0.7, 0.8, 0.2)
    study = run_search(base, tmp_path, 6)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE", "PRUNED"]
    assert study.best_value == pytest.approx(0.9)
    pruned = study.get_trials()[5].intermediate_values
    assert sorted(pruned) == list(range(len(pruned)))
    assert 3 <= len(pruned) < 12
    told = capsys.readouterr().out
    assert "trial_0001: failed, exit status 2" in told
    assert "\n    the loss is not finite\n" in told
    assert "trial_0002: best validation Dice 0.9000" in told
    assert f"trial_0005: pruned after {len(pruned)} epochs" in told

    config = read_run(tmp_path / "trial_0002")["config"]
    assert (config["learning_rate"], config["loss"], config["num_epochs"]) == (0.9, "dice_bce", 12)
    assert config["evaluation"]["datasets"] == ""  # nothing is chosen by the test split

    search.write_trials(study, tmp_path)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == states(study)
    assert (rows[2]["folder"], float(rows[2]["val_dice"]), rows[2]["epochs"]) == (
        "trial_0002",
        pytest.approx(0.9),
        "12",
    )
    assert float(rows[4]["learning_rate"]) == 0.8


def test_a_search_goes_on_until_it_has_as_many_trials_as_were_asked_for(base, tmp_path):
    enqueue(base, tmp_path, 0.5)
    assert states(run_search(base, tmp_path, 1)) == ["COMPLETE"]
    assert states(run_search(base, tmp_path, 1)) == ["COMPLETE"]
    study = enqueue(base, tmp_path, 0.6)
    assert states(run_search(base, tmp_path, 2)) == ["COMPLETE", "COMPLETE"]
    assert [trial.params["learning_rate"] for trial in study.get_trials()] == [0.5, 0.6]


def test_a_killed_trial_fails_and_another_goes_on_in_its_folder(base, tmp_path):
    study = enqueue(base, tmp_path, 0.5)
    found = search.next_trial(study, tmp_path, 2)
    assert found is not None
    trial, lock = found
    suggest(trial, base.copy_and_resolve_references())
    half = [{"step": i + 1, "name": name, "value": 0.5 * (i + 1) / 12} for i in range(6) for name in ("x", "val/dice")]
    (tmp_path / "trial_0000" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in half))

    search.give_up_killed(study, tmp_path)  # it is at work: its folder is locked
    assert states(study) == ["RUNNING"]
    lock.close()
    enqueue(base, tmp_path, 0.4)
    study = run_search(base, tmp_path, 2)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    trials = {search.folder_name(trial): trial for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])}
    assert trials["trial_0000"].params == {"learning_rate": 0.5, "loss": "dice_bce"}
    assert trials["trial_0000"].value == pytest.approx(0.5)
    assert len((tmp_path / "trial_0000" / "metrics.jsonl").read_text().splitlines()) == 24
    search.write_trials(study, tmp_path)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert sorted((row["folder"], row["state"]) for row in rows) == [
        ("trial_0000", "COMPLETE"),
        ("trial_0001", "COMPLETE"),
    ]
    assert set(trials) == {"trial_0000", "trial_0001"}


def test_a_trial_whose_process_outlives_its_program_is_waited_for_and_taken_up(base, tmp_path):
    study = enqueue(base, tmp_path, 0.5)
    found = search.next_trial(study, tmp_path, 1)
    assert found is not None
    trial, lock = found
    suggest(trial, base.copy_and_resolve_references())
    saving = [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]
    with subprocess.Popen(saving, pass_fds=[lock.fileno()]) as child:
        lock.close()  # as if the program had been killed
        study = run_search(base, tmp_path, 1)
        assert child.poll() == 0
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.best_params["learning_rate"] == 0.5


def test_a_failed_trial_is_tried_again_by_the_next_search(base, tmp_path):
    enqueue(base, tmp_path, 0.5)
    for _ in range(2):  # each once
        with Children(lambda folder: [sys.executable, "-S", "-c", "import sys; sys.exit(2)"], [Share()]) as children:
            study = search.search(base, suggest, 1, tmp_path, children, [])
    assert states(study) == ["FAIL", "FAIL"]
    study = run_search(base, tmp_path, 1)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE"]
    assert states(run_search(base, tmp_path, 1)) == ["FAIL", "FAIL", "COMPLETE"]
    assert [path.name for path in tmp_path.glob("trial_*")] == ["trial_0000"]
    assert study.best_params["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.journal", None),
        ("study.journal", "no journal" * 99),
        ("study.journal", '{"op_code": 0}\n' * 2),
        ("study.journal", "{half\n" * 2),
        ("study.db", "no database" * 99),
    ],
)
def test_a_broken_study_is_named_in_one_line(base, tmp_path, name, content):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=rf"^.*{name} cannot be read \(.*\): if it is broken, put back a copy .*$"):
        search.open_study(tmp_path, base)
    assert not list(tmp_path.glob(".*"))


def test_a_study_is_a_journal_with_an_exclusive_lock_file_as_machines_can_share_it(base, tmp_path, monkeypatch):
    locks: list[str] = []
    acquire = JournalFileOpenLock.acquire
    monkeypatch.setattr(JournalFileOpenLock, "acquire", lambda self: locks.append(self._lock_file) or acquire(self))
    enqueue(base, tmp_path, 0.5)
    assert set(locks) == {str(tmp_path / "study.journal.lock")}
    lines = (tmp_path / "study.journal").read_text().splitlines()
    assert len(locks) >= len(lines) >= 3
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert not list(tmp_path.glob("*.db"))


def test_half_a_line_that_a_power_cut_left_is_cut_off(base, tmp_path):
    enqueue(base, tmp_path, 0.5)
    whole = (tmp_path / "study.journal").read_text()
    (tmp_path / "study.journal").write_text(whole + '{"op_code": 4, "wor')
    study = enqueue(base, tmp_path, 0.6)
    assert [trial.system_attrs["fixed_params"]["learning_rate"] for trial in study.get_trials()] == [0.5, 0.6]
    assert (tmp_path / "study.journal").read_text().startswith(whole)


def test_a_search_that_was_begun_with_sqlite_goes_on(base, tmp_path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    old = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    old.set_user_attr("config", as_json(base))
    for rate in (0.4, 0.6, 0.5):
        old.enqueue_trial({"learning_rate": rate, "loss": "dice_bce"})
    finished, killed = old.ask(), old.ask()
    for trial in (finished, killed):
        suggest(trial, base.copy_and_resolve_references())
    finished.report(0.4, 0)
    old.tell(finished, 0.4)
    storage.remove_session()
    storage.engine.dispose()
    content = (tmp_path / "study.db").read_bytes()

    study = run_search(base, tmp_path, 3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.get_trials()[0].intermediate_values == {0: 0.4}
    trials = {search.folder_name(trial): trial for trial in study.get_trials()}
    assert {name: trial.params["learning_rate"] for name, trial in trials.items()} == {
        "trial_0000": 0.4,
        "trial_0001": 0.6,
        "trial_0002": 0.5,
    }
    assert (tmp_path / "study.db").read_bytes() == content
    base.dataset = "isic"
    with pytest.raises(UserError, match="holds a search of another config: dataset differ"):
        search.open_study(tmp_path, base)


def test_a_trial_that_was_killed_while_it_was_given_up_comes_once(base, tmp_path):
    study = enqueue(base, tmp_path, 0.5)
    found = search.next_trial(study, tmp_path, 1)
    assert found is not None
    found[1].close()
    study.enqueue_trial({}, user_attrs={"folder": "trial_0000"})  # and the program was killed here
    search.give_up_killed(study, tmp_path)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_signal_stops_the_search_and_the_same_search_goes_on(base, tmp_path):
    enqueue(base, tmp_path, 0.2)  # a slow one
    signals: list[int] = []
    log = tmp_path / "trial_0000" / "metrics.jsonl"

    def stop() -> None:
        while not (log.exists() and log.read_text()):
            time.sleep(0.01)
        signals.append(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    study = run_search(base, tmp_path, 1, signals)
    thread.join()
    assert states(study) == ["RUNNING"]
    text = log.read_text()
    run = tmp_path / "trial_0000" / "run.json"
    assert json.loads(run.read_text())["status"] == "started"
    log.write_text(text + "".join('{"step": 12, "name": "val/dice", "value": 0.2}\n' * (24 - len(text.splitlines()))))
    study = run_search(base, tmp_path, 1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert log.read_text().startswith(text)


def test_programs_share_a_study_and_take_each_trial_once(base, tmp_path):
    enqueue(base, tmp_path, *[0.3 + i / 20 for i in range(6)])
    threads = [threading.Thread(target=run_search, args=(base, tmp_path, 6)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = search.open_study(tmp_path, base)
    assert states(study).count("COMPLETE") + states(study).count("PRUNED") == 6 == len(study.get_trials())
    assert sorted(path.name for path in tmp_path.glob("trial_*")) == [f"trial_{i:04d}" for i in range(6)]


def test_a_study_of_another_config_is_an_error_that_names_the_fields(base, tmp_path):
    search.open_study(tmp_path, base)
    base.data_dir = "elsewhere"
    search.open_study(tmp_path, base)
    base.dataset, base.num_epochs = "isic", 3
    with pytest.raises(UserError, match=r"holds a search of another config: dataset, num_epochs differ"):
        search.open_study(tmp_path, base)


def test_the_best_config_is_told_as_the_command_that_trains_it(base, tmp_path):
    enqueue(base, tmp_path, 0.5)
    study = run_search(base, tmp_path, 1)
    best = search.best_config(study, base, suggest)
    command = shlex.split(search.train_command(best, clipseg.get_config(), tmp_path))
    assert command[:3] == ["python", "-m", "medvlsm_jax.train"]
    assert command[4] == f"--workdir={tmp_path}"
    file, _, text = command[3].removeprefix("--config=").partition(":")
    assert file == "configs/clipseg.py"
    assert "learning_rate=0.5" in text
    assert as_json(clipseg.get_config(text)) == as_json(training_config(best))


def test_without_a_trained_trial_there_is_no_best(base, tmp_path):
    with pytest.raises(UserError, match="no trial has been trained to its end"):
        search.best_config(search.open_study(tmp_path, base), base, suggest)


@pytest.mark.parametrize("file", [clipseg, unet])
def test_the_packages_search_varies_fields_around_the_recipe(file):
    recipe = file.get_config()
    study = optuna.create_study()
    for _ in range(5):
        config = file.get_config()
        sweeps.suggest(study.ask(), config)
        changed = {name for name in config if config[name] != recipe[name]}
        assert {"learning_rate", "weight_decay"} <= changed
        assert changed <= {"learning_rate", "weight_decay", "batch_size", "loss", "schedule"}
        assert recipe.learning_rate / 30 <= config.learning_rate <= recipe.learning_rate * 10


def test_a_search_needs_one_run(base):
    names = {"suggest": suggest}
    for runs, known in (([base, base], names), ([], names), ([base], {})):
        with pytest.raises(UserError, match=f"the sweep has {len(runs)} runs; a search needs one"):
            program.find_best(known, runs, 3, Path("none"), Children(command, []), program.Interruption())


def test_a_search_without_optuna_says_what_to_install(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "medvlsm_jax.sweeping.search", None)
    monkeypatch.delattr("medvlsm_jax.sweeping.search", raising=False)
    with pytest.raises(UserError, match=r"pip install 'medvlsm-jax\[search\]'"):
        program.find_best({}, [base], 3, Path("none"), Children(command, []), program.Interruption())
