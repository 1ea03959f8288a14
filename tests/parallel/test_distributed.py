"""Which processes compute together in which environment, on which GPUs; and that joined ones do."""

import http.server
import importlib.machinery
import importlib.util
import os
import socket
import threading
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from processes import free_port, run_processes

from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel import distributed
from medvlsm_jax.parallel.distributed import Processes, check_port, find_processes, share_gpus, start_jax


def step(**changes: str) -> dict[str, str]:
    """What srun tells the fourth of eight tasks on two nodes; by default all see the four GPUs of their node."""
    names = {
        "JOB_ID": "77",
        "NTASKS": "8",
        "STEP_NODELIST": "gpu[07-08]",
        "STEP_NUM_TASKS": "8",
        "STEP_TASKS_PER_NODE": "4(x2)",
        "NODEID": "0",
        "PROCID": "3",
        "LOCALID": "3",
        "GPUS_ON_NODE": "4",
    }
    environ = {f"SLURM_{name}": value for name, value in names.items()} | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    return {name: value for name, value in (environ | changes).items() if value}


def open_mpi(**changes: str) -> dict[str, str]:
    """What mpirun tells the second of four processes, two on each host."""
    values = {"SIZE": "4", "RANK": "1", "LOCAL_SIZE": "2", "LOCAL_RANK": "1"}
    return {f"OMPI_COMM_WORLD_{name}": value for name, value in values.items()} | changes


FOURTH = {"num_processes": 8, "process_id": 3, "method": "slurm"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        # SLURM: one process on each GPU; one on each node; an srun of two tasks on nodes of three and one.
        (step(), Processes(**FOURTH, local_device_ids=(3,))),
        (step(SLURM_STEP_TASKS_PER_NODE="1(x8)", SLURM_NODEID="3", SLURM_LOCALID="0"), Processes(**FOURTH)),
        (
            step(SLURM_STEP_TASKS_PER_NODE="4,2(x2)", SLURM_NODEID="1", SLURM_LOCALID="1"),
            Processes(**FOURTH, local_device_ids=(2, 3)),
        ),
        # The script of sbatch and a shell of salloc; an interactive step, which keeps the job's number of tasks.
        (step(SLURM_STEP_NODELIST="", SLURM_STEP_NUM_TASKS="", SLURM_STEP_TASKS_PER_NODE=""), None),
        (step(SLURM_STEP_NUM_TASKS="1", SLURM_STEP_TASKS_PER_NODE="1", SLURM_PROCID="0", SLURM_LOCALID="0"), None),
        # MPI, by itself and started within a step of SLURM (whose own numbers are then the daemons').
        (open_mpi(OMPI_MCA_orte_hnp_uri="1.0;tcp://10.0.0.1:5"), Processes(None, 4, 1, (1,), "ompi")),
        (open_mpi(CUDA_VISIBLE_DEVICES="0,1,2,3"), Processes(None, 4, 1, (2, 3), "mpi4py")),
        (step() | open_mpi(), Processes(None, 4, 1, (2, 3), "mpi4py")),
        (open_mpi(OMPI_COMM_WORLD_SIZE="1"), None),
        (
            {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"},
            Processes(None, 2, 1, (), "mpi4py"),
        ),
        (step(PMI_SIZE="8", PMI_RANK="3"), Processes(**FOURTH, local_device_ids=(3,))),  # srun --mpi=pmi2
        # TPUs.
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Processes(method="gketpu")),
        ({"TPU_PROCESS_ADDRESSES": "a:1,a:2", "TPU_WORKER_HOSTNAMES": "a"}, Processes(method="gketpu")),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Processes(method="gketpu")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, None),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        # An indexed job without the package that asks the cluster for its size.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, None),
        # jax's own variables, and together with a launcher.
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            Processes("a:1", 2, 0),
        ),
        (step(JAX_COORDINATOR_ADDRESS="a:1"), Processes("a:1", **FOURTH, local_device_ids=(3,))),
        (step(JAX_NUM_PROCESSES="1"), None),
    ],
)
def test_processes_are_found_in_the_environment(environ, expected):
    assert find_processes(base_config().distributed, environ) == expected


@pytest.mark.parametrize(
    ("gpus", "rank", "count", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, 0, 1, ()),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, 1, 4, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_GPUS_ON_NODE": "4"}, 1, 2, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5e8a,GPU-77c1"}, 1, 2, (1,)),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2,3"}, 0, 2, (0, 1)),
        ({"SLURM_GPUS_ON_NODE": "8"}, 3, 4, (6, 7)),
        # --gpus-per-task: each sees its own, from 0 on (cgroups) or under the node's numbers.
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "1"}, 3, 4, ()),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "a100:2"}, 1, 2, ()),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_TASK": "2"}, 1, 2, ()),
        # … but with --gpu-bind=none all see all.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "2"}, 1, 2, (2, 3)),
        # --gpu-bind=single:1, and a wrapper that sets CUDA_VISIBLE_DEVICES=$SLURM_LOCALID.
        ({"CUDA_VISIBLE_DEVICES": "3", "SLURM_GPUS_ON_NODE": "4"}, 3, 4, ()),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 3, 4, ()),
        # No GPU; nothing known.
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, 4, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 1, 4, ()),
        ({"SLURM_GPUS_ON_NODE": "0"}, 1, 4, ()),
        ({}, 1, 4, (1,)),
        ({}, 0, 1, ()),
    ],
)
def test_processes_of_a_host_take_their_own_gpus_or_share_them(gpus, rank, count, expected):
    assert share_gpus(gpus, rank, count) == expected


@pytest.mark.parametrize(
    ("gpus", "count", "message"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 2, "2 processes of this host see 3 GPUs each, of 3, and cannot share"),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "1"}, 4, "4 processes of this host see 1 GPUs each, of 1"),
        # --gpu-bind=closest: two tasks see the same two.
        (
            {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "4"},
            4,
            "4 processes of this host see 2 GPUs each, of 4",
        ),
    ],
)
def test_gpus_that_cannot_be_shared_evenly_are_refused(gpus, count, message):
    with pytest.raises(UserError, match=message):
        share_gpus(gpus, 1, count)


def test_chosen_gpus_are_not_shared_out():
    config = base_config().distributed
    config.local_device_ids = "1,2"
    environ = step(CUDA_VISIBLE_DEVICES="0,1,2", SLURM_GPUS_ON_NODE="3")
    assert find_processes(config, environ) == Processes(**FOURTH, local_device_ids=(1, 2))


def test_the_config_stands_above_the_environment():
    config = base_config().distributed
    config.update({"coordinator": "[::1]:1234", "num_processes": 3, "process_id": 2, "local_device_ids": "0"})
    environ = step(JAX_COORDINATOR_ADDRESS="b:1", JAX_NUM_PROCESSES="1")
    assert find_processes(config, environ) == Processes("[::1]:1234", 3, 2, (0,), "slurm")
    config.num_processes = 1
    assert find_processes(config, environ) is None


@pytest.mark.parametrize(
    ("fields", "environ", "message"),
    [
        ({"coordinator": "a:1"}, {}, "has coordinator, but no num_processes and no process_id"),
        ({"num_processes": 2, "process_id": 0}, {}, "has num_processes, process_id, but no coordinator"),
        ({"local_device_ids": "0"}, {}, "has local_device_ids, but no coordinator"),
        ({"coordinator": "a"}, {}, r"config.distributed.coordinator='a' should be HOST:PORT"),
        ({"process_id": -2}, {}, r"config.distributed.process_id='-2' should be a number from 0 on"),
        ({"local_device_ids": "0,x"}, {}, r"config.distributed.local_device_ids='0,x' should be numbers with commas"),
        ({}, {"JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES='two' should be a number from 1 on"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, {}, r"process_id=2 is not between 0 and num_pro"),
    ],
)
def test_half_given_or_wrong_fields_are_refused(fields, environ, message):
    config = base_config().distributed
    config.update(fields)
    with pytest.raises(UserError, match=message):
        find_processes(config, environ)


@pytest.mark.parametrize(
    ("hosts", "slices", "expected"),
    [
        ("10.0.0.1,10.0.0.2", "1", Processes(method="gcetpu")),
        ("10.0.0.1", "2", Processes(method="gcetpu")),
        ("10.0.0.1", "1", None),
    ],
)
def test_a_tpu_machine_asks_its_metadata_for_the_hosts(monkeypatch, hosts, slices, expected):
    answers = {"worker-network-endpoints": hosts, "tpu-env": f"ZONE: 'x'\nMEGASCALE_NUM_SLICES: '{slices}'\n"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_asked_well = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if is_asked_well else 403)
            self.end_headers()
            self.wfile.write(answers[self.path.rpartition("/")[2]].encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    monkeypatch.setenv("http_proxy", "http://localhost:9")
    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": f"localhost:{server.server_port}"}
        assert find_processes(base_config().distributed, environ) == expected
        server.shutdown()


def test_a_tpu_machine_without_metadata_is_alone():
    environ = {"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": f"localhost:{free_port()}"}
    assert find_processes(base_config().distributed, environ) is None


def test_an_indexed_job_is_joined_where_jax_can_ask_the_cluster(monkeypatch):
    found = importlib.machinery.ModuleSpec("kubernetes", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "kubernetes" else None)
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    assert find_processes(base_config().distributed, environ) == Processes()
    assert find_processes(base_config().distributed, environ | {"TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_mpi_that_does_not_tell_its_address_names_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install mpi4py, or give config.distributed.coordinator=HOST:PORT"):
        distributed.join_processes(Processes(None, 2, 0, (), "mpi4py"))


def test_a_port_in_use_is_refused():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        with pytest.raises(UserError, match=r"process 0 cannot listen there .*: choose another port"):
            check_port(f"localhost:{listener.getsockname()[1]}")


def test_what_jax_refuses_is_one_line():
    # A computation has already run in this process.
    jax.block_until_ready(jax.numpy.zeros(()))
    with pytest.raises(
        UserError, match=r"process 1 of 2 cannot join the others by a:1: jax.distributed.initialize\(\)"
    ) as e:
        distributed.join_processes(Processes("a:1", 2, 1))
    assert "\n" not in str(e.value)


@pytest.fixture
def cache_option():
    """jax's folder of compiled programs, which is put back."""
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    yield lambda: getattr(jax.config, name)
    jax.config.update(name, before)
    compilation_cache.reset_cache()


def test_one_process_starts_as_often_as_it_likes(monkeypatch, cache_option, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    config = base_config()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    for config.deterministic, config.compilation_cache in ((False, "auto"), (True, "none"), (True, "auto")):
        start_jax(config)
        assert cache_option() == str(tmp_path)  # on CPUs it is the caller's
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
    assert jax.process_count() == 1


def test_compiled_programs_are_kept_in_a_folder(cache_option, tmp_path):
    config = base_config()
    config.compilation_cache = str(tmp_path / "new" / "compiled")
    start_jax(config)
    assert cache_option() == config.compilation_cache
    assert list((tmp_path / "new" / "compiled").iterdir()) == []
    config.compilation_cache = "gs://bucket/compiled"
    start_jax(config)
    assert cache_option() == "gs://bucket/compiled"


def test_accelerators_keep_them_in_the_users_cache_folder(cache_option, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    start_jax(base_config())
    assert cache_option() == str(tmp_path / "medvlsm_jax" / "compiled")


def test_a_cache_folder_that_cannot_be_written_is_refused_where_it_was_chosen(cache_option, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    config = base_config()
    config.compilation_cache = str(tmp_path / "file" / "compiled")
    with pytest.raises(UserError, match=r"config.compilation_cache=.*file/compiled: process 0 cannot write there"):
        start_jax(config)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)  # tests in the same process may have set it
    config.compilation_cache = "auto"
    start_jax(config)
    assert cache_option() is None


SCRIPT = """
import os, signal
import jax, numpy as np
from jax.experimental import multihost_utils
from medvlsm_jax.config import base_config
from medvlsm_jax.command_line import run_program
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel import distributed, sharding

def main(argv):
    index = int(os.environ["JAX_PROCESS_ID"])
    config = base_config()
    distributed.TIMEOUT = float(argv[2])
    config.compilation_cache = f"{argv[1]}/compiled{index}"  # a folder of its own
    try:
        distributed.start_jax(config)
    except UserError as error:
        print(error)
    config.compilation_cache = f"{argv[1]}/compiled"
    distributed.start_jax(config)
    print(jax.config.jax_compilation_cache_dir)
    rows = sharding.put_batch({"x": np.arange(4.0)[2 * index:][:2]}, sharding.make_mesh())["x"]
    print(jax.process_count(), jax.device_count(), float(jax.jit(lambda x: x.sum())(rows)))
    heard = []
    if index == 0:
        signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
        os.kill(os.getpid(), signal.SIGTERM)
        print("heard", heard)
    multihost_utils.sync_global_devices("heard")
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        print("survived")

run_program(main, arguments="a folder and seconds")
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_joined_processes_share_devices_and_a_cache_and_each_hears_its_own_signals(script, tmp_path):
    listening, other = run_processes(2, 2, script, str(tmp_path), "600", env={"PYTHONUNBUFFERED": "1"})
    for i, process in enumerate((listening, other)):
        lines = [line for line in process.stdout.splitlines() if "Gloo" not in line]
        assert lines[0].startswith(
            f"config.compilation_cache={tmp_path}/compiled{i}: process 0 cannot write there, or not"
        )
        assert lines[1:3] == [f"{tmp_path}/compiled", "2 4 6.0"], process.stderr
    assert "heard [True]\n" in listening.stdout
    assert other.returncode == -15  # jax's preemption service would have kept the signal for itself


def test_processes_that_do_not_find_each_other_end_with_one_line(script, tmp_path):
    port = free_port()
    env = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    (alone,) = run_processes(1, 1, script, str(tmp_path), "1", env=env)
    assert alone.returncode == 2
    message = f"error: process 1 of 2 did not find the others by localhost:{port} within 1 s: see that all run"
    assert alone.stderr.splitlines()[-1].startswith(message)


def test_a_failed_process_ends_the_others(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, time\nif sys.argv[1] == '1':\n    sys.exit('broken')\ntime.sleep(600)\n")
    waiting, failed = run_processes(2, 1, script, "{process_id}")
    assert (waiting.returncode, failed.returncode, failed.stderr) == (-9, 1, "broken\n")
