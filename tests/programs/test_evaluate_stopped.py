"""An evaluation that was stopped goes on, and ends in the same files. Its scores are drawn, but for one real kill."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from evaluations import assert_same
from processes import child_environment

from medvlsm_jax import evaluate as evaluation
from medvlsm_jax.evaluate import evaluate
from medvlsm_jax.evaluation.cases import CaseLog
from medvlsm_jax.scoring import outputs

STEPS = {  # what is killed, and which call of it
    "at once": (CaseLog, "append", 0),
    "between batches": (CaseLog, "append", 1),
    "in the last batch": (CaseLog, "append", 2),
    "before the pictures": (evaluation, "draw_cases", 0),
    "before the tables": (outputs, "write_tables", 0),
    "while curves are made": (outputs, "summarise_curves", 0),
    "when the tables are written": (CaseLog, "finish", 0),
    "before the end is noted": (outputs, "describe_run", 0),
}


@pytest.fixture
def start(drawn, options):
    """An evaluation with tables, curves and pictures."""
    options.batch_size = 4

    def start(folder: Path) -> Path:
        evaluate(options, drawn, ["sample"], ["p6", "p0"], folder, curves=True, num_pictures=1)
        return folder

    return start


@pytest.fixture(scope="module")
def kept() -> list[Path]:
    """The folder of an evaluation that nothing stopped."""
    return []


@pytest.fixture
def whole(kept, start, tmp_path_factory) -> Path:
    kept += [] if kept else [start(tmp_path_factory.mktemp("whole"))]
    return kept[0]


@pytest.mark.parametrize("step", STEPS)
def test_an_evaluation_that_was_killed_ends_in_the_same_tables(start, whole, tmp_path, monkeypatch, step):
    owner, name, call = STEPS[step]
    calls = iter(range(99))
    function = getattr(owner, name)

    def killed(*args: object, **more: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
        assert not (tmp_path / "evaluation.json").exists()
    start(tmp_path)
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")} == files
    for file in files:
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file


def test_an_evaluation_whose_process_was_killed_goes_on(untrained, options, sample, tmp_path):
    # The child kills itself when its second batch is to be written, half of whose line is there.
    program = """
import os, signal, sys
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.evaluation.cases import CaseLog
append, calls = CaseLog.append, []
def killed(self, rows, counts):
    calls.append(rows)
    if len(calls) == 2:
        with (self.folder / "unfinished.csv").open("a") as file:
            file.write("sample,p6,")
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, rows, counts)
CaseLog.append = killed
config, (data_dir, checkpoint, output) = default_config(), sys.argv[1:]
config.data_dir, config.batch_size = data_dir, 4
evaluate(config, checkpoint, ["sample"], ["p6"], output, num_pictures=1)
"""
    command = [sys.executable, "-c", program, str(sample), str(untrained), str(tmp_path / "killed")]
    finished = subprocess.run(command, env=child_environment(2), capture_output=True, text=True, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert (tmp_path / "killed" / "unfinished.csv").read_text().endswith("sample,p6,")
    options.batch_size = 4
    for name in ("killed", "whole"):
        evaluate(options, untrained, ["sample"], ["p6"], tmp_path / name, num_pictures=1)
    assert_same(tmp_path / "killed", tmp_path / "whole")
    files = [
        {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in ("killed", "whole")
    ]
    assert files[0] == files[1]


def test_a_stopped_evaluation_repeats_no_batch(drawn, options, tmp_path, monkeypatch):
    scored: list[int] = []
    append = CaseLog.append

    def watched(self: CaseLog, rows: list, counts: object) -> None:
        scored.append(len(rows))
        if len(scored) == 2:
            raise KeyboardInterrupt
        append(self, rows, counts)

    monkeypatch.setattr(CaseLog, "append", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options, drawn, ["sample"], ["p6"], tmp_path)
    count = evaluate(options, drawn, ["sample"], ["p6"], tmp_path)["sample"]["p6"]["n"]
    assert scored[0] + sum(scored[2:]) == count


def test_another_evaluation_that_is_killed_leaves_no_mixture(drawn, options, tmp_path, monkeypatch):
    first = evaluate(options, drawn, ["sample"], ["p6"], tmp_path, probe=True, tolerance=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "describe_run", lambda *_: 1 / 0)  # just before the end is noted
        with pytest.raises(ZeroDivisionError):
            evaluate(options, drawn, ["sample"], ["p6"], tmp_path, tolerance=8.0, num_pictures=1)
    assert {path.name for path in tmp_path.rglob("*.jpg")} == {"best_0.jpg", "median_0.jpg", "worst_0.jpg"}
    assert not (tmp_path / "probe.json").exists()
    assert evaluate(options, drawn, ["sample"], ["p6"], tmp_path, probe=True, tolerance=1.0) == first


def test_a_finished_evaluation_is_not_repeated_unless_something_changed(drawn, options, tmp_path, capsys):
    model = Path(shutil.copytree(drawn, tmp_path / "model"))
    first = evaluate(options, model, ["sample"], ["p6"], tmp_path / "out")
    before = (tmp_path / "out" / "cases.csv").stat().st_mtime_ns
    assert evaluate(options, model, ["sample"], ["p6"], tmp_path / "out") == first
    assert "holds this evaluation already" in capsys.readouterr().out
    assert (tmp_path / "out" / "cases.csv").stat().st_mtime_ns == before
    (array,) = [path for path in (model / "arrays").rglob("*") if path.is_file()][:1]
    array.touch()
    evaluate(options, model, ["sample"], ["p6"], tmp_path / "out")
    assert (tmp_path / "out" / "cases.csv").stat().st_mtime_ns > before
