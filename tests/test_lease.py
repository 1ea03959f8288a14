"""A folder has one program that writes to it, and whoever is gone hinders nobody."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import ROOT, child_environment

from medvlsm_jax import lease
from medvlsm_jax.errors import UserError
from medvlsm_jax.lease import FILE, Holder, Lease, LeaseFile, find_birth, find_machine, holding, take, this_program

# The package itself imports jax, which takes seconds.
HOLD = """
import signal, socket, sys, time, types
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
package = sys.modules["medvlsm_jax"] = types.ModuleType("medvlsm_jax")
package.__path__ = ["medvlsm_jax"]
from medvlsm_jax import lease
from medvlsm_jax.errors import UserError
folder, host, seconds, start, duration = sys.argv[1:]
socket.gethostname = lambda: host or "here"
lease.DURATION = float(duration)
time.sleep(max(0, float(start) - time.time()))
try:
    with lease.holding("--output", Path(folder)):
        print("held", flush=True)
        time.sleep(float(seconds))
except UserError as error:
    print(error, flush=True)
"""


def start(
    folder: Path, host: str = "", seconds: float = 300, at: float = 0, duration: float = 30
) -> subprocess.Popen[str]:
    """A program that holds a folder; its first line says whether it does."""
    command = [sys.executable, "-c", HOLD, str(folder), host, str(seconds), str(at), str(duration)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=child_environment(), text=True, **pipes)


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs, which end with the test."""
    started: list[subprocess.Popen[str]] = []

    def hold(*args: object, **options: object) -> subprocess.Popen[str]:
        started.append(start(*args, **options))
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def taken(folder: Path) -> bool:
    try:
        with holding("--output", folder):
            return True
    except UserError:
        return False


def written(folder: Path, **values: object) -> bytes:
    """A lease of a program that never was."""
    content = Holder("1", "train.py", "elsewhere", "", 1, 1, "then", 0.4, **values).to_bytes()
    (folder / FILE).write_bytes(content)
    return content


# --- One machine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch) -> None:
    """This host is that of the programs that are started."""
    monkeypatch.setattr("socket.gethostname", lambda: "here")


def test_a_folder_that_is_held_is_refused_in_one_line_that_says_by_whom(tmp_path, hold, here):
    process = hold(tmp_path / "out")
    assert said(process) == "held"
    begun = time.monotonic()
    with pytest.raises(UserError) as refused, holding("--output", tmp_path / "out"):
        pass
    assert time.monotonic() - begun < 1
    told = str(refused.value)
    assert told.startswith(f"--output={tmp_path / 'out'} is in use by -c (process {process.pid} on here) since 20")
    assert told.endswith(": wait for its end, stop it, or choose another folder")
    assert "\n" not in told


def test_it_goes_on_at_once_when_the_holder_was_killed(tmp_path, hold, here):
    process = hold(tmp_path)
    assert said(process) == "held"
    process.kill()  # and not waited for: a zombie does not write either
    begun = time.monotonic()
    while not taken(tmp_path):
        assert time.monotonic() - begun < 5
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_folder_back(tmp_path, hold, number):
    process = hold(tmp_path / "out")
    assert said(process) == "held"
    process.send_signal(number)
    process.wait(30)
    assert not (tmp_path / "out").exists()
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)


def test_an_exception_gives_it_back_and_a_folder_made_for_nothing_goes(tmp_path):
    def fail() -> None:
        with holding("--output", tmp_path / "deep" / "out"):
            assert (tmp_path / "deep" / "out" / FILE).exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "deep").exists()
    with holding("--output", tmp_path / "out"):
        (tmp_path / "out" / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_who_holds_a_folder_may_hold_it_again_but_a_thread_may_not(tmp_path):
    found: list[bool] = []
    with holding("--workdir", tmp_path):
        with holding("--output", tmp_path):
            pass
        assert (tmp_path / FILE).exists()
        thread = threading.Thread(target=lambda: found.append(taken(tmp_path)))
        thread.start()
        thread.join()
    assert found == [False]


def test_a_process_id_that_was_given_again_is_no_holder(tmp_path):
    old = this_program(30.0)
    reused = Holder(old.id, old.program, old.host, old.machine, old.pid, old.born - 1, old.since, 30.0)
    (tmp_path / FILE).write_bytes(reused.to_bytes())
    assert taken(tmp_path)


def test_a_forked_copy_neither_renews_nor_gives_back(tmp_path):
    store = LeaseFile(tmp_path)
    holder = this_program(30.0)
    assert take(store, holder, print) is None
    copy = Lease(store, Holder(**json.loads(holder.to_bytes()) | {"pid": os.getppid()}), print)  # as if this were it
    copy.release()
    assert (tmp_path / FILE).exists()
    copy.is_released.set()


def test_of_two_that_start_at_the_same_moment_one_has_it(tmp_path):
    for i in range(50):
        folder, answers = tmp_path / str(i), []
        if i % 2:  # each would take over what another has left
            folder.mkdir()
            left = this_program(30.0)
            left = Holder(left.id, left.program, left.host, left.machine, 1 << 22, 1, left.since, 30.0)
            (folder / FILE).write_bytes(left.to_bytes())
        gate = threading.Barrier(2)

        def start_at_once(folder: Path = folder, gate: threading.Barrier = gate, answers: list = answers) -> None:
            store, holder = LeaseFile(folder), this_program(30.0)
            folder.mkdir(exist_ok=True)
            gate.wait()
            answers.append(take(store, holder, print))

        threads = [threading.Thread(target=start_at_once) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(answer is None for answer in answers) == 1, i


# --- Several machines -------------------------------------------------------------------------------------------------


def test_a_holder_on_another_host_is_seen_to_be_alive(tmp_path, hold):
    assert said(hold(tmp_path, host="a", duration=0.6)) == "held"
    second = hold(tmp_path, host="b")
    assert "is in use by -c (process" in said(second)


def test_one_that_was_killed_on_another_host_is_waited_for_and_taken_over(tmp_path, hold):
    first = hold(tmp_path, host="a", duration=1.0)
    assert said(first) == "held"
    first.kill()
    second = hold(tmp_path, host="b")
    assert said(second) == "held"
    second.kill()
    assert second.stderr.read().startswith(f"waiting up to 1 s for --output={tmp_path}: its last user, -c (process ")


def test_clocks_of_other_hosts_are_not_believed(tmp_path):
    written(tmp_path)
    os.utime(tmp_path / FILE, (0, 0))
    begun = time.monotonic()
    assert taken(tmp_path)
    assert time.monotonic() - begun >= 0.4


def test_half_a_lease_is_waited_for(tmp_path):
    (tmp_path / FILE).touch()
    with holding("--output", tmp_path, duration=0.3):
        pass


def test_a_holder_that_was_suspended_for_long_learns_that_it_has_lost_the_folder(tmp_path):
    lost: list[Holder] = []
    store, holder = LeaseFile(tmp_path), this_program(0.3)
    assert take(store, holder, print) is None
    other = written(tmp_path)
    mine = Lease(store, holder, lost.append)
    mine.thread.join(10)
    assert [one.program for one in lost] == ["train.py"]
    mine.release()
    assert store.read() == other


def test_a_lease_that_was_removed_by_hand_is_made_again(tmp_path):
    with holding("--output", tmp_path, duration=0.2):
        (tmp_path / FILE).unlink()
        end = time.monotonic() + 10
        while not (tmp_path / FILE).exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / FILE).exists()


def test_where_files_cannot_be_locked_a_takeover_is_looked_at_again(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store, old, mine = LeaseFile(tmp_path), written(tmp_path), this_program(30.0).to_bytes()
    monkeypatch.setattr(lease.time, "sleep", lambda _: None)
    assert store.replace(old, mine)
    monkeypatch.setattr(lease.time, "sleep", lambda _: written(tmp_path, renewals=9))
    assert not store.replace(mine, old)


# --- Where it cannot be written ---------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch):
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(lease.os, "open", read_only)
        message = f"--output={tmp_path / 'out'} cannot be written (Read-only file system): choose another folder"
        with pytest.raises(UserError) as refused, holding("--output", tmp_path / "out"):
            pass
        assert str(refused.value) == message
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="cannot be written"), holding("--workdir", Path("/proc/nothing/run")):
        pass


@pytest.mark.skipif(not find_machine(), reason="needs /proc")
def test_a_process_is_known_by_its_start():
    assert find_birth(os.getpid()) == find_birth(os.getpid()) > 0
    assert find_birth(1 << 22) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_half_of_a_lease(tmp_path, monkeypatch):
    opened = os.open

    def full(path: object, flags: int, *mode: int) -> int:
        os.close(opened(path, flags, *mode))
        return opened("/dev/full", os.O_WRONLY)

    with monkeypatch.context() as patch:
        patch.setattr(lease.os, "open", full)
        message = "cannot be written .No space left on device.: choose another folder"
        with pytest.raises(UserError, match=message), holding("--output", tmp_path):
            pass
    assert not (tmp_path / FILE).exists()
