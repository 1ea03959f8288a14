"""How a program starts: which processes compute together, on which GPUs, and where compiled programs are kept."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import secrets
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from medvlsm_jax.errors import UserError

TIMEOUT = 300.0  # seconds that all processes have to find each other; jax's default
CACHE_FOLDER = "jax_compilation_cache_dir"  # of jax.config
FIELDS = {  # of config.distributed: unset, the variable that stands for it, what it may be
    "coordinator": ("", "JAX_COORDINATOR_ADDRESS", r".+:\d+", "HOST:PORT of process 0"),
    "num_processes": (0, "JAX_NUM_PROCESSES", r"0*[1-9]\d*", "a number from 1 on"),
    "process_id": (-1, "JAX_PROCESS_ID", r"\d+", "a number from 0 on"),
    "local_device_ids": ("", "JAX_LOCAL_DEVICE_IDS", r"\d+(,\d+)*", "numbers with commas between"),
}
# XLA: "Guarantees run-to-run determinism on GPU." No kernel is chosen by timing it, and none adds in a random order.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# How many processes an MPI launcher started, which this one is, and the same among those of this host.
MPI = (
    [f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")],  # Open MPI
    [f"MV2_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")],  # MVAPICH
    ["PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"],  # MPICH, Intel MPI
)
SLURM = [f"SLURM_{name}" for name in ("JOB_ID", "STEP_NODELIST", "STEP_TASKS_PER_NODE", "NODEID", "PROCID", "LOCALID")]


@dataclasses.dataclass(frozen=True)
class Processes:
    """What jax is told of the processes that compute together; it finds by itself what is None.

    Attributes:
        coordinator: HOST:PORT of process 0, which the others can reach.
        num_processes: how many there are.
        process_id: which of them this one is.
        local_device_ids: which of the GPUs that this process sees it takes; none: all of them.
        method: where jax looks for what is None, one of its names; None tries them in turn.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] = ()
    method: str | None = None


def start_jax(config: ml_collections.ConfigDict) -> None:
    """Prepares jax as the config says; comes before any computation, and may come again.

    `config.deterministic` concerns GPUs: TPUs and CPUs run a program to the same bits without it. Everywhere that holds
    for the same number of devices of the same kind.

    Args:
        config: its fields `deterministic`, `distributed` and `compilation_cache`.

    Raises:
        UserError: a field is wrong, the processes cannot be joined, or the cache's folder cannot be used.
    """
    if config.deterministic and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if not jax.distributed.is_initialized() and (processes := find_processes(config.distributed, os.environ)):
        join_processes(processes)
    use_compilation_cache(str(config.compilation_cache))


# --- Which processes there are ---------------------------------------------------------------------------------------


def find_processes(fields: Any, environ: Mapping[str, str]) -> Processes | None:
    """The processes that the config names, else the environment; None where this one is alone.

    Args:
        fields: `config.distributed`; each stands above JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID or
            JAX_LOCAL_DEVICE_IDS, and these above what a launcher tells. `num_processes=1` joins nothing.
        environ: of this process.

    Raises:
        UserError: some fields are missing or wrong, or GPUs cannot be shared evenly.
    """
    given = explicit_fields(fields, environ)
    if given.get("num_processes") == 1:
        return None
    gpus = given.get("local_device_ids", ())
    found = from_mpi(environ, gpus) or from_slurm(environ, gpus) or from_tpu(environ) or from_kubernetes(environ)
    if not found and not given:
        return None
    processes = dataclasses.replace(found or Processes(), **given)
    missing = [name for name in FIELDS if getattr(processes, name) is None]
    if missing and not found:
        raise UserError(
            f"config.distributed has {', '.join(given)}, but no {' and no '.join(missing)}, and no launcher tells: "
            "give all three of coordinator, num_processes and process_id, or none"
        )
    count, index = processes.num_processes, processes.process_id
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(f"config.distributed.process_id={index} is not between 0 and num_processes={count} less one")
    return processes


def explicit_fields(fields: Any, environ: Mapping[str, str]) -> dict[str, Any]:
    """What `config.distributed` or jax's own variables give; raises UserError when it is no address or number."""
    given: dict[str, Any] = {}
    for name, (unset, variable, pattern, meaning) in FIELDS.items():
        is_set = fields[name] != unset
        text = str(fields[name]) if is_set else environ.get(variable, "")
        if text and not re.fullmatch(pattern, text):
            raise UserError(f"{f'config.distributed.{name}' if is_set else variable}={text!r} should be {meaning}")
        if text and name != "coordinator":
            numbers = tuple(int(number) for number in text.split(","))
            given[name] = numbers if name == "local_device_ids" else numbers[0]
        elif text:
            given[name] = text
    return given


def from_mpi(environ: Mapping[str, str], gpus: tuple[int, ...] = ()) -> Processes | None:
    """Several processes of mpirun, which may itself run within SLURM."""
    for names in MPI:
        if all(name in environ for name in names):
            size, rank, local_size, local_rank = (int(environ[name]) for name in names)
            # jax reads the launcher's address where Open MPI tells it (up to version 4); mpi4py asks process 0.
            method = "ompi" if "OMPI_MCA_orte_hnp_uri" in environ else "mpi4py"
            if size > 1:
                return Processes(None, size, rank, gpus or share_gpus(environ, local_rank, local_size), method)
    return None


def from_slurm(environ: Mapping[str, str], gpus: tuple[int, ...] = ()) -> Processes | None:
    """Several tasks of an srun; a shell of salloc or the script of sbatch is no such step, or one of one task.

    SLURM_NTASKS cannot tell: it may be the job's, also in a step of one task.
    """
    count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if count < 2 or not all(name in environ for name in SLURM):
        return None
    tasks: list[int] = []  # on each node; "2(x3),1" stands for 2, 2, 2, 1
    for item in environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        number, _, repeats = item.partition("(x")
        tasks += [int(number)] * int(repeats.rstrip(")") or 1)
    gpus = gpus or share_gpus(environ, int(environ["SLURM_LOCALID"]), tasks[int(environ["SLURM_NODEID"])])
    return Processes(None, count, int(environ["SLURM_PROCID"]), gpus, "slurm")


def from_tpu(environ: Mapping[str, str]) -> Processes | None:
    """One process on each host of a TPU slice, or of several slices."""
    # GKE tells the hosts in the environment, Compute Engine in the machine's metadata. jax sets TPU_ML_PLATFORM when it
    # is imported where TPU chips are. One host needs no joining, and two runs can then share its chips.
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    slices = environ.get("MEGASCALE_NUM_SLICES")
    method = "gketpu"
    if not hosts and "TPU_ML_PLATFORM" in environ and "TPU_SKIP_MDS_QUERY" not in environ:
        hosts, method = read_metadata(environ, "worker-network-endpoints"), "gcetpu"
        stated = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", read_metadata(environ, "tpu-env"))
        slices = slices or (stated and stated[1])
    num_hosts = len(hosts.split(",")) * int(slices or 1) if hosts else 1
    return Processes(method=method) if num_hosts > 1 else None


def from_kubernetes(environ: Mapping[str, str]) -> Processes | None:
    """The pods of an indexed job; jax asks the cluster how many, which takes its extra `jax[k8s]`."""
    names = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
    is_job = all(name in environ for name in names) and "TPU_WORKER_HOSTNAMES" not in environ
    return Processes() if is_job and importlib.util.find_spec("kubernetes") else None


def read_metadata(environ: Mapping[str, str], key: str) -> str:
    """An attribute of this virtual machine of Google's; empty when nothing answers."""
    host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def share_gpus(environ: Mapping[str, str], rank: int, count: int) -> tuple[int, ...]:
    """Which of the GPUs that it sees a process takes; none stands for all of them.

    jax by itself takes one, by the process's number on its host (jax#16788, maxtext#865).

    Args:
        environ: of this process.
        rank: which it is among the processes of this host.
        count: how many these are.

    Raises:
        UserError: they cannot share the GPUs evenly.
    """
    visible, allocated = visible_gpus(environ), slurm_count(environ, "SLURM_GPUS_ON_NODE")
    per_task = slurm_count(environ, "SLURM_GPUS_PER_TASK")
    visible = allocated if visible is None else visible
    if count == 1 or visible == 0 or (visible is not None and visible == per_task):
        return ()
    if visible is None:  # nothing is known: one for each, as jax has it; without effect where there are no GPUs
        return (rank,)
    # Was each process given its own (--gpu-bind, a wrapper), or do all see all? SLURM_STEP_GPUS cannot tell: it follows
    # CUDA_VISIBLE_DEVICES.
    if visible < (count if allocated is None else allocated):
        if allocated is None or visible * count <= allocated:
            return ()
    elif visible % count == 0:
        share = visible // count
        return tuple(range(rank * share, (rank + 1) * share))
    raise UserError(
        f"{count} processes of this host see {visible} GPUs each, of {allocated or visible}, and cannot "
        "share them evenly: start a number that divides them (with srun --gpu-bind=none), or give "
        "config.distributed.local_device_ids"
    )


def visible_gpus(environ: Mapping[str, str]) -> int | None:
    """How many GPUs this process may see; None when nothing says so."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in environ:
            return sum(item.strip() not in ("", "-1", "NoDevFiles") for item in environ[name].split(","))
    return None


def slurm_count(environ: Mapping[str, str], name: str) -> int | None:
    """A count of SLURM's, which may follow a kind (`a100:4`); None where there is none."""
    found = re.fullmatch(r"(?:.*:)?(\d+)", environ.get(name, ""))
    return int(found[1]) if found else None


# --- Joining them ----------------------------------------------------------------------------------------------------


def join_processes(processes: Processes) -> None:
    """Connects to the other processes; raises UserError, or ends the program, when that fails."""
    if processes.method == "mpi4py" and not processes.coordinator and not importlib.util.find_spec("mpi4py"):
        raise UserError(
            "mpirun started several processes, but this MPI does not tell where process 0 is: pip install mpi4py, or "
            "give config.distributed.coordinator=HOST:PORT"
        )
    if processes.process_id == 0 and processes.coordinator:
        check_port(processes.coordinator)
    # jax's preemption service would take SIGTERM for itself: until a program listens, and in one that does not
    # (evaluate), the signal would be lost. Our programs listen themselves, to SLURM's and the keyboard's signals too.
    jax.config.update("jax_enable_preemption_service", False)
    who = f"process {'?' if processes.process_id is None else processes.process_id} of {processes.num_processes or '?'}"
    where = processes.coordinator or f"what the environment tells (jax's {processes.method or 'k8s'})"
    advice = "see that all run, that process 0's host and port can be reached and that no proxy stands between"
    try:
        with exit_after(TIMEOUT, f"{who} did not find the others by {where} within {TIMEOUT:.0f} s: {advice}"):
            jax.distributed.initialize(
                processes.coordinator,
                processes.num_processes,
                processes.process_id,
                list(processes.local_device_ids),
                cluster_detection_method=processes.method,
                initialization_timeout=int(TIMEOUT) + 60,
            )
    except Exception as error:  # jax, requests, kubernetes, mpi4py: each raises its own kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{who} cannot join the others by {where}: {reason}") from error


@contextlib.contextmanager
def exit_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the program with an error's line and status 2 when the block takes longer.

    No exception can: jax waits outside Python, and when its own time is up it aborts the program with a stack trace.
    """

    def leave() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_port(address: str) -> None:
    """Raises UserError when another program listens at process 0's port, on which jax would crash."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", int(address.rpartition(":")[2])))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"coordinator {address}: process 0 cannot listen there ({error}): choose another port"
            ) from error


# --- Compiled programs -----------------------------------------------------------------------------------------------


def use_compilation_cache(choice: str) -> None:
    """Keeps compiled programs for the next start.

    Process 0 alone writes them. A folder that only it sees would be worse than none: XLA's processes on GPUs compile
    together, and the others would wait for one that read the program from its disk.

    Args:
        choice: a folder, or a bucket (`gs://…`); `none`; or `auto`, the user's cache folder, on accelerators and where
            all processes see it. With the last two, what JAX_COMPILATION_CACHE_DIR chose stays.

    Raises:
        UserError: not all processes can use the folder.
    """
    is_auto = choice == "auto"
    if choice == "none" or (is_auto and (getattr(jax.config, CACHE_FOLDER) or jax.default_backend() == "cpu")):
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = str((home / "medvlsm_jax" / "compiled").expanduser()) if is_auto else choice
    if "://" not in folder and not is_shared(Path(folder)):
        if is_auto:
            return
        raise UserError(
            f"config.compilation_cache={folder}: process 0 cannot write there, or not all processes see what it "
            "writes: choose a folder that all hosts share, or none"
        )
    if getattr(jax.config, CACHE_FOLDER) != folder:
        jax.config.update(CACHE_FOLDER, folder)
        compilation_cache.reset_cache()  # jax looks at the setting once


def is_shared(folder: Path) -> bool:
    """Whether process 0 can write into a folder and all see what it wrote; makes the folder."""
    token = multihost_utils.broadcast_one_to_all(np.int32(secrets.randbelow(1 << 31)))
    mark = folder / f".shared-{int(token)}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            mark.touch()
    multihost_utils.sync_global_devices("compilation cache")
    seen = multihost_utils.process_allgather(np.array(os.path.exists(mark)))
    with contextlib.suppress(OSError):
        mark.unlink()
    return bool(np.all(seen))
