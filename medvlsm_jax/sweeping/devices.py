"""How several runs at a time share the devices of one machine."""

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from medvlsm_jax.errors import UserError

TPU_PORT = 8476  # of the first run; libtpu's own default
GPU_MEMORY = 0.9  # of a GPU, for all its runs together; jax's default for one is 0.75


@dataclasses.dataclass(frozen=True)
class Share:
    """What one run has of the machine.

    Attributes:
        environment: variables of its process.
        cores: the CPU cores that it may use; none stands for all.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def share_devices(jobs: int, environ: Mapping[str, str] = os.environ) -> list[Share]:
    """Equal shares for as many runs at a time; a single run has the whole machine.

    Args:
        jobs: runs at a time.
        environ: of this process.

    Raises:
        UserError: there are more runs than TPU chips or CPU cores.
    """
    if jobs == 1:
        return [Share()]
    is_cpu = environ.get("JAX_PLATFORMS", "").startswith("cpu")
    if not is_cpu and (gpus := list_gpus(environ)):
        return share_gpus(gpus, jobs)
    if not is_cpu and (chips := list_tpu_chips(environ)):
        return share_tpu(chips, jobs)
    return share_cores(usable_cores(), jobs)


def share_gpus(gpus: Sequence[str], jobs: int) -> list[Share]:
    """As many GPUs for each run, or as many runs on each GPU, and then a part of its memory for each."""
    if jobs <= len(gpus):
        each = len(gpus) // jobs
        return [Share({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])}) for i in range(jobs)]
    fraction = f"{GPU_MEMORY / -(-jobs // len(gpus)):.3f}"
    return [
        Share({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction})
        for i in range(jobs)
    ]


def share_tpu(chips: Sequence[str], jobs: int) -> list[Share]:
    """One chip for each run, which then looks for no other host of a slice."""
    if jobs > len(chips):
        raise UserError(f"--jobs={jobs}: this machine has {len(chips)} TPU chips, and each run needs one")
    alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [Share(alone | {"TPU_VISIBLE_CHIPS": chips[i], "TPU_PROCESS_PORT": str(TPU_PORT + i)}) for i in range(jobs)]


def share_cores(cores: Sequence[int], jobs: int) -> list[Share]:
    """As many CPU cores for each run."""
    if jobs > len(cores):
        raise UserError(f"--jobs={jobs}: this machine has {len(cores)} CPU cores, and each run needs one")
    each = len(cores) // jobs
    return [Share(cores=frozenset(cores[i * each : (i + 1) * each])) for i in range(jobs)]


def usable_cores() -> list[int]:
    """The CPU cores that this process may use; all of the machine where the system does not tell (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(process: int, cores: frozenset[int]) -> None:
    """Keeps a process on some cores, where the system can do that (Linux) and the process has not ended yet."""
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process, cores)


def list_gpus(environ: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        names = [name.strip() for name in environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return [name for name in names if name not in ("", "-1", "NoDevFiles")]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in answer.splitlines() if line.startswith("GPU "))]


def list_tpu_chips(environ: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The TPU chips of this machine, as TPU_VISIBLE_CHIPS names them."""
    if chips := environ.get("TPU_VISIBLE_CHIPS"):
        return chips.split(",")
    if "TPU_ML_PLATFORM" not in environ:  # which jax sets when it is imported where TPU chips and libtpu are
        return []
    found = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    return [str(i) for i in range(len(found))]
