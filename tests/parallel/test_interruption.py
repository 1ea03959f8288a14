"""Signals: remembered while there is something to save, obeyed at once before, and told to all processes alike."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from medvlsm_jax.parallel import interruption as module
from medvlsm_jax.parallel.interruption import Interruption, catch_signals

STATUS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


@pytest.mark.parametrize("number", list(STATUS))
def test_a_signal_in_training_is_remembered_and_the_old_handlers_come_back(number, mesh_of):
    old = signal.getsignal(number)
    with catch_signals() as interruption:
        interruption.training_begins()
        assert not interruption.is_heard(mesh_of(1))
        os.kill(os.getpid(), number)
        assert interruption.is_heard(mesh_of(1))
        assert interruption.exit_status == STATUS[number]
        with pytest.raises(SystemExit) as ended:  # Ctrl-C after that ends the program at once
            os.kill(os.getpid(), signal.SIGINT)
        assert ended.value.code == 130
    assert signal.getsignal(number) is old


@pytest.mark.parametrize("number", list(STATUS))
def test_a_signal_before_the_training_ends_the_program(number):
    with pytest.raises(SystemExit) as ended, catch_signals():
        os.kill(os.getpid(), number)
    assert ended.value.code == STATUS[number]


def test_all_processes_get_the_same_answer_one_question_late(monkeypatch, mesh_of):
    asked: list[bool] = []

    def any_process(mesh, flag):
        asked.append(flag)
        return jnp.bool_(len(asked) == 2)  # at the second question another process has heard something

    monkeypatch.setattr(module, "any_process", any_process)
    monkeypatch.setattr(module, "jax", SimpleNamespace(process_count=lambda: 2))
    interruption = Interruption()
    assert [interruption.is_heard(mesh_of(1)) for _ in range(3)] == [False, False, True]
    interruption.received.append(signal.SIGTERM)
    interruption.is_heard(mesh_of(1))
    assert asked == [False, False, False, True]


@pytest.mark.parametrize("flag", [False, True])
def test_the_flag_of_a_process_reaches_every_device(flag, mesh_of):
    answer = module.any_process(mesh_of(2, 4), flag)
    assert answer.is_fully_replicated
    assert bool(answer) is flag


BUSY = """
import hashlib
from medvlsm_jax.parallel import interruption
interruption.PATIENCE = 0.2
with interruption.catch_signals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # Python does not get to run a handler, as in a compiler
"""


def test_a_signal_is_heard_while_python_is_busy():
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 75
        assert process.stderr.read() == "stopped: give the same command again\n"
