"""Two processes that evaluate together: one table, one voice, one end; their mesh is in another order than they."""

import json

import pytest
from evaluations import assert_same, numbers, write_rectangles
from processes import ROOT, run_processes

from medvlsm_jax.evaluate import evaluate


@pytest.fixture
def data_dir(sample, tmp_path):
    """Two datasets; of one the images have findings."""
    write_rectangles(tmp_path / "data")
    (tmp_path / "data" / "sample").symlink_to(sample / "sample")
    return tmp_path / "data"


def test_two_processes_with_workers_are_one(run, options, data_dir, tmp_path):
    options.data_dir = str(data_dir)
    sets = ["sample", "rectangles"]
    evaluate(options, run, sets, ["p6"], tmp_path / "one", probe=True, curves=True, save_masks=True)
    flags = [f"--checkpoint={run}", f"--config.data_dir={data_dir}", f"--dataset={','.join(sets)}", "--prompt=p6"]
    flags += ["--config.batch_size=8", "--config.data.num_workers=1", "--probe", "--curves", "--save_masks"]
    processes = run_processes(
        2, 1, ROOT / "tests" / "joined_evaluation.py", str(tmp_path / "full"), *flags, f"--output={tmp_path / 'two'}"
    )
    for process in processes:
        assert process.returncode == 0, process.stderr

    assert_same(tmp_path / "one", tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*")}
    assert {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")} == files
    for name in ("probe.json", "curves.json"):
        ours, theirs = (json.loads((tmp_path / folder / name).read_text()) for folder in ("one", "two"))
        assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-5)

    first, second = processes  # tables and findings come once
    assert "has an alpha channel" in first.stdout
    assert "written to" in first.stdout
    assert [line for line in second.stdout.splitlines() if not line.startswith("[Gloo]")] == []
    # A full disk of the first process, before that, ended both.
    assert "ended: --output" in first.stderr
    assert "cannot be written (No space left on device)" in first.stderr
    assert "ended: another process of this evaluation cannot go on" in second.stderr
