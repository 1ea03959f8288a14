"""Runs a program as several processes of this machine that compute together, each on emulated devices of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run_processes(
    count: int,
    devices_each: int,
    program: str | Path,
    *args: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs COUNT joined processes, told by jax's variables, and returns what they said, in their order.

    Args:
        count: of processes.
        devices_each: emulated devices in each.
        program: a module's name, or the path of a script.
        *args: of the program; `{process_id}` and `{coordinator}` in them are filled in.
        env: further variables.
        timeout: seconds after which all are killed.

    Returns:
        return code, stdout and stderr of each; all are killed as soon as one has failed, or when the time is up.
    """
    coordinator = f"localhost:{free_port()}"
    start = [str(program)] if str(program).endswith(".py") else ["-m", str(program)]
    common = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(count),
    }
    with tempfile.TemporaryDirectory() as folder:  # files, since nobody reads a pipe before it is full
        outputs = [(Path(folder) / f"{i}.out", Path(folder) / f"{i}.err") for i in range(count)]
        running: list[subprocess.Popen[bytes]] = []
        try:
            for i, (out, err) in enumerate(outputs):
                filled = [arg.replace("{process_id}", str(i)).replace("{coordinator}", coordinator) for arg in args]
                with out.open("wb") as stdout, err.open("wb") as stderr:
                    variables = common | {"JAX_PROCESS_ID": str(i)} | dict(env or {})
                    command = [sys.executable, *start, *filled]
                    running.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=stdout, stderr=stderr))
            wait_for_all(running, timeout)
        finally:
            for process in running:
                process.kill()
                process.wait()
        return [
            subprocess.CompletedProcess(process.args, process.returncode, out.read_text(), err.read_text())
            for process, (out, err) in zip(running, outputs, strict=True)
        ]


def wait_for_all(running: list[subprocess.Popen[bytes]], timeout: float) -> None:
    """Returns when all have ended, one has failed (the others get a second to say why they do), or the time is up."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and any(process.poll() is None for process in running):
        if any(process.poll() for process in running):
            end = min(end, time.monotonic() + 1)
        time.sleep(0.05)


def train_together(
    count: int, devices_each: int, *args: str, env: Mapping[str, str] | None = None, timeout: float = 300.0
) -> list[subprocess.CompletedProcess[str]]:
    """`run_processes` of the training program, told by its flags."""
    flags = [
        "--config.distributed.coordinator={coordinator}",
        f"--config.distributed.num_processes={count}",
        "--config.distributed.process_id={process_id}",
    ]
    return run_processes(count, devices_each, "medvlsm_jax.train", *args, *flags, env=env, timeout=timeout)
