"""Files over several starts, writers that fail, hang or are slow, and what the console shows."""

import json
import math
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from medvlsm_jax.errors import UserError
from medvlsm_jax.logs.console import Progress
from medvlsm_jax.logs.writers import (
    BackgroundWriter,
    CsvWriter,
    JsonlWriter,
    LineWriter,
    TensorBoardWriter,
    Writers,
    make_writers,
)

PICTURE = np.zeros((2, 2, 3), np.uint8)
KINDS = [JsonlWriter, CsvWriter]


# --- Files ------------------------------------------------------------------------------------------------------------


def write(kind: type[LineWriter], path: Path, first_step: int, rows: dict[int, float]) -> None:
    writer = kind(path, first_step)
    for step, value in rows.items():
        writer.scalars(step, {"loss": value})
    writer.close()


def read(kind: type[LineWriter], path: Path) -> dict[int, float]:
    lines = path.read_text().splitlines()
    if kind is JsonlWriter:
        return {row["step"]: row["value"] for row in map(json.loads, lines)}
    assert lines[0] == "step,name,value"
    return {int(step): float(value) for step, _, value in (line.split(",") for line in lines[1:])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_continued_run_replaces_the_lines_beyond_its_first_step(tmp_path, kind):
    write(kind, tmp_path / "metrics", 0, {1: 0.5, 2: 0.4, 3: 0.3})
    write(kind, tmp_path / "metrics", 2, {3: 0.25, 4: 0.2})
    assert read(kind, tmp_path / "metrics") == {1: 0.5, 2: 0.4, 3: 0.25, 4: 0.2}


BROKEN_JSON = [b'{"step": 2, "na', b"null\n", b'{"step": "two"}\n', b"[2]\n", b"\n", b"\xc3\n"]
BROKEN_CSV = [b"2", b"2,loss,0.1", b"two,loss,0.1\n", b"\n", b"\xc3\n"]


@pytest.mark.parametrize(
    ("kind", "broken"), [(JsonlWriter, line) for line in BROKEN_JSON] + [(CsvWriter, line) for line in BROKEN_CSV]
)
def test_a_line_that_a_killed_run_left_broken_is_dropped(tmp_path, kind, broken):
    write(kind, tmp_path / "metrics", 0, {1: 0.5})
    with (tmp_path / "metrics").open("ab") as file:
        file.write(broken)
    write(kind, tmp_path / "metrics", 2, {3: 0.25})
    assert read(kind, tmp_path / "metrics") == {1: 0.5, 3: 0.25}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_in_the_file_after_each_call_and_come_back_exactly(tmp_path, kind):
    writer = kind(tmp_path / "metrics", 0)
    writer.scalars(1, {"loss": 1 / 3})
    assert read(kind, tmp_path / "metrics") == {1: 1 / 3}
    writer.close()


def test_what_is_not_finite_is_null_for_strict_readers_of_json_and_is_kept_by_a_continued_run(tmp_path):
    path = tmp_path / "metrics"
    write(JsonlWriter, path, 0, {1: math.nan, 2: math.inf, 3: -math.inf})
    write(JsonlWriter, path, 3, {})
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [(row["step"], row["value"]) for row in rows] == [(1, None), (2, None), (3, None)]


def test_csv_keeps_what_is_not_finite_and_names_with_commas(tmp_path):
    writer = CsvWriter(tmp_path / "metrics.csv", 0)
    writer.scalars(1, {"a,b": math.nan, "c": -math.inf})
    writer.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ['1,"a,b",nan', "1,c,-inf"]


@pytest.mark.parametrize("first_step", [0, 3])
def test_tensorboard_is_told_to_hide_what_lies_beyond_the_first_step(tmp_path, first_step):
    writer = TensorBoardWriter(tmp_path, first_step)
    writer.scalars(first_step + 1, {"loss": 0.5})
    writer.close()
    (path,) = tmp_path.iterdir()
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])  # then a checksum of 4 bytes, the event, and another checksum
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [first_step + 1]
    assert [event.step for event in events if event.summary.value] == [first_step + 1]


# --- Writers that fail, hang or are slow ------------------------------------------------------------------------------


class Recorder:
    """Remembers, or fails in one method."""

    def __init__(self, failing: str = ""):
        self.failing, self.calls = failing, []
        if failing == "making":
            raise OSError("no space\nleft")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise OSError("no space\nleft")

    def scalars(self, step, values) -> None:
        self._call("scalars")

    def picture(self, step, name, image) -> None:
        self._call("picture")

    def close(self) -> None:
        self._call("close")


def use(writers: Writers) -> None:
    for step in range(2):
        writers.scalars(step, {"loss": 1.0})
        writers.picture(step, "overlay", PICTURE)
    writers.close()


ALL_CALLS = ["scalars", "picture", "scalars", "picture", "close"]


@pytest.mark.parametrize("failing", ["scalars", "picture", "close"])
def test_a_writer_that_fails_is_reported_once_and_the_others_go_on(capsys, failing):
    broken, sound = Recorder(failing), Recorder()
    use(Writers([broken, sound]))
    assert sound.calls == ALL_CALLS
    assert broken.calls.count(failing) == 1
    assert capsys.readouterr().err == "warning: Recorder failed and is left out: no space left\n"


@pytest.mark.parametrize("failing", ["making", "scalars", "picture", "close"])
def test_a_writer_that_fails_in_the_background_is_reported_once_too(capsys, failing):
    sound = Recorder()
    use(Writers([BackgroundWriter(Recorder, failing), sound]))
    assert sound.calls == ALL_CALLS
    assert capsys.readouterr().err == "warning: Recorder failed and is left out: no space left\n"


def test_an_error_in_the_background_is_not_kept_until_the_end():
    writer = BackgroundWriter(Recorder, "making")
    writer.thread.join(600)
    with pytest.raises(OSError, match="no space"):
        writer.scalars(1, {"loss": 1.0})


@pytest.fixture
def hangs():
    """Makes a recorder, but only when the test ends or calls `release`."""
    event, recorder = threading.Event(), Recorder()

    def hanging() -> Recorder:
        event.wait(60)
        return recorder

    hanging.recorder, hanging.release = recorder, event.set
    yield hanging
    event.set()


def test_a_background_writer_gets_every_call_in_order_once_it_is_ready(hangs):
    writers = Writers([BackgroundWriter(hangs)])
    threading.Timer(0.2, hangs.release).start()
    use(writers)
    assert hangs.recorder.calls == ALL_CALLS


def test_the_end_waits_for_all_that_hang_together_and_then_gives_up(capsys, hangs):
    sound = Recorder()
    start = time.monotonic()
    use(Writers([BackgroundWriter(hangs, patience=1.0), BackgroundWriter(hangs, patience=1.0), sound]))
    assert 1.0 <= time.monotonic() - start < 1.9
    assert sound.calls == ALL_CALLS
    line = "warning: hanging failed and is left out: it is still busy 1 s after the end of the run\n"
    assert capsys.readouterr().err == 2 * line


def test_a_writer_that_is_too_slow_loses_calls_and_that_is_said_once(capsys, hangs):
    writer = BackgroundWriter(hangs, size=2)
    for step in range(9):
        writer.scalars(step, {"loss": 1.0})
    hangs.release()
    writer.close()
    assert hangs.recorder.calls == ["scalars", "scalars", "close"]
    assert capsys.readouterr().err == "warning: hanging is too slow: some numbers and pictures are missing there\n"


# --- The writers of a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path) -> Callable[..., Writers]:
    def make(names: str, is_first_process: bool = True) -> Writers:
        return make_writers(names, tmp_path, 0, project="tests", config={}, is_first_process=is_first_process)

    return make


@pytest.mark.parametrize(
    ("names", "files"),
    [
        ("", {"metrics.jsonl"}),
        ("csv", {"metrics.jsonl", "metrics.csv"}),
        ("csv+tensorboard+csv", {"metrics.jsonl", "metrics.csv", "tensorboard"}),
    ],
)
def test_metrics_jsonl_is_always_written_and_the_others_by_name(tmp_path, make, names, files):
    writers = make(names)
    assert len(writers.writers) == len(files)
    use(writers)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert read(JsonlWriter, tmp_path / "metrics.jsonl") == {0: 1.0, 1: 1.0}
    if "csv" in names:
        assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n0,loss,1.0\n1,loss,1.0\n"


@pytest.mark.parametrize("is_first_process", [True, False])
def test_an_unknown_name_is_an_error_on_every_process(tmp_path, make, is_first_process):
    with pytest.raises(UserError, match="unknown writer 'cvs'; join some of csv, tensorboard, wandb, mlflow by"):
        make("csv+cvs", is_first_process)
    assert not list(tmp_path.iterdir())


def test_other_processes_write_nothing(tmp_path, make):
    use(make("csv+tensorboard", is_first_process=False))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_made_is_reported_and_the_others_go_on(tmp_path, make, capsys):
    (tmp_path / "metrics.csv").mkdir()
    use(make("csv"))
    assert read(JsonlWriter, tmp_path / "metrics.jsonl") == {0: 1.0, 1: 1.0}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: csv failed and is left out: ")
    assert str(tmp_path / "metrics.csv") in line


def test_lines_of_a_checkpoints_step_that_came_after_the_checkpoint_are_dropped(tmp_path):
    options = {"project": "tests", "config": {}, "is_first_process": True}
    writers = make_writers("csv", tmp_path, 0, **options)
    writers.scalars(1, {"train/loss": 0.5})
    positions, files = writers.positions(), [tmp_path / name for name in ("metrics.jsonl", "metrics.csv")]
    before = [path.read_bytes() for path in files]
    assert positions == {path.name: len(content) for path, content in zip(files, before, strict=True)}
    writers.scalars(1, {"val/dice": 0.8})
    writers.close()
    writers = make_writers("csv", tmp_path, 1, positions=positions, **options)
    assert [path.read_bytes() for path in files] == before
    assert writers.positions() == positions
    writers.close()


def test_other_processes_have_no_positions(make):
    assert make("csv", is_first_process=False).positions() == {}


# --- Console ----------------------------------------------------------------------------------------------------------

LOGGED = {
    "train/loss": 0.123456,
    "train/grad_norm": 7.0,
    "train/learning_rate": 0.001,
    "train/images_per_second": 16.0,
    "train/input_wait": 0.0321,
    "train/mfu": 0.4512,
}


def test_a_line_shows_the_few_numbers_that_one_watches_and_the_remaining_time(capsys):
    bar = Progress(total_steps=110, first_step=5, batch_size=32)
    bar.show(10, LOGGED)
    bar.show(20, {"train/loss": 2.0, "train/images_per_second": math.nan})
    bar.line("epoch 1/2", {"val/dice": 0.5})
    bar.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 10: loss 0.1235, learning rate 0.001, input wait 3.2%, MFU 45.1%, 16.0 images/s, 03:20 left",
        "step 20: loss 2",
        "epoch 1/2: val/dice 0.5000",
    ]


def test_a_terminal_has_a_bar_instead_of_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Progress(total_steps=4, first_step=1, batch_size=8)
    bar.advance()
    bar.show(2, LOGGED)
    bar.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "16/32" in captured.err
    assert "loss 0.1235, learning rate 0.001, input wait 3.2%, MFU 45.1%" in captured.err


@pytest.mark.parametrize("on_terminal", [True, False])
def test_other_processes_show_nothing(capsys, monkeypatch, on_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    bar = Progress(total_steps=4, first_step=0, batch_size=8, is_shown=False)
    bar.advance()
    bar.show(1, LOGGED)
    bar.close()
    assert capsys.readouterr() == ("", "")
