"""Programs that tests start: in this process, as a child, or as several that compute together on emulated devices."""

import contextlib
import io
import logging
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]

DEVICES = "--xla_force_host_platform_device_count"
# Halve the time that most tests take, which is XLA's compiling. XLA ends a process that names a flag it does not know.
# The first jaxlib without each, as far as is known: 0.10.2, 0.11.0, 0.11.2, 0.12.0 and 0.12.0.1 were looked at.
QUICK = {"--xla_cpu_use_fusion_emitters=false": (0, 11, 1), "--xla_cpu_parallel_codegen_split_count=1": (0, 13)}


# --- XLA's flags ------------------------------------------------------------------------------------------------------


def with_devices(given: str, count: int) -> str:
    """XLA_FLAGS with so many emulated devices, whatever number was given."""
    return " ".join([*(flag for flag in given.split() if flag.partition("=")[0] != DEVICES), f"{DEVICES}={count}"])


def with_quick_compiler(given: str, jaxlib: str) -> str:
    """XLA_FLAGS with those that shorten compiling, as far as this jaxlib knows them and nothing else is given."""
    names = {flag.partition("=")[0] for flag in given.split()}
    release = tuple(int(number) for number in jaxlib.split(".")[:3])
    quick = [flag for flag, end in QUICK.items() if (0, 10) <= release < end and flag.partition("=")[0] not in names]
    return " ".join([*given.split(), *quick])


def suite_flags(environ: Mapping[str, str]) -> str:
    """XLA_FLAGS of the tests: the caller's, eight devices, and a quick compiler unless MEDVLSM_TEST_XLA=default.

    Nor where libtpu is installed: the XLA in it ends a process that names a flag of another one's.
    """
    given = with_devices(environ.get("XLA_FLAGS", ""), 8)
    is_default = environ.get("MEDVLSM_TEST_XLA") == "default" or find_spec("libtpu") is not None
    return given if is_default else with_quick_compiler(given, version("jaxlib"))


def child_environment(devices: int = 1) -> dict[str, str]:
    """The variables of a child that computes on so many emulated devices, and as these tests do in all else."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": with_devices(os.environ.get("XLA_FLAGS", ""), devices),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


# --- Programs in this process -----------------------------------------------------------------------------------------


def run_here(program: str | Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a script as if from the command line, in this process; what it imports has been imported before.

    Its flags are defined and parsed afresh, and forgotten afterwards. What C++ says is not in stderr.

    Args:
        program: the script's path, absolute or below the repository.
        *args: its flags.

    Returns:
        return code, stdout and stderr.
    """
    from absl import flags
    from absl import logging as absl_logging
    from absl.testing import flagsaver

    path, out, err = str(ROOT / program), io.StringIO(), io.StringIO()
    verbosity, was_parsed = absl_logging.get_verbosity(), flags.FLAGS.is_parsed()
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", [path, *args]),
        mock.patch.object(threading, "Timer"),  # an error would end this process within a minute
        mock.patch.object(logging.root, "handlers", [*logging.root.handlers]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(ROOT),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does for a program
        flags.FLAGS.unparse_flags()
        code = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            absl_logging.set_verbosity(verbosity)
            if not was_parsed:
                flags.FLAGS.unparse_flags()
    return subprocess.CompletedProcess([path, *args], code, out.getvalue(), err.getvalue())


# --- Joined processes -------------------------------------------------------------------------------------------------


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
    timeout: float = 600.0,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs COUNT joined processes, told by jax's variables, and returns what they said, in their order.

    Args:
        count: of processes.
        devices_each: emulated devices in each.
        program: a module's name, or the path of a script.
        *args: of the program; `{process_id}` and `{coordinator}` in them are filled in.
        env: further variables.
        timeout: seconds after which all are killed; long, for a machine may be busy.

    Returns:
        return code, stdout and stderr of each; all are killed as soon as one has failed, or when the time is up.
    """
    coordinator = f"localhost:{free_port()}"
    start = [str(program)] if str(program).endswith(".py") else ["-m", str(program)]
    joined = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(count)}
    common = child_environment(devices_each) | joined
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
