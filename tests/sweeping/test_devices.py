"""How several runs at a time share GPUs, TPU chips or CPU cores."""

import os

import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.sweeping import devices
from medvlsm_jax.sweeping.devices import Share, list_tpu_chips, pin, share_devices, share_gpus, usable_cores


def test_one_run_at_a_time_has_the_whole_machine():
    assert share_devices(1, {"CUDA_VISIBLE_DEVICES": "0,1"}) == [Share()]


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,5,6", 2, ["4", "5"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
    ],
)
def test_runs_share_gpus_evenly(visible, jobs, expected):
    shares = share_devices(jobs, {"CUDA_VISIBLE_DEVICES": visible})
    assert [share.environment for share in shares] == [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in expected]


def test_more_runs_than_gpus_share_their_memory():
    environments = [share.environment for share in share_gpus(["0", "1"], 3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "1", "0"]
    assert {environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for environment in environments} == {"0.450"}


def test_gpus_are_counted_where_no_variable_names_them(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: H100 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert devices.list_gpus({}) == ["0", "1"]
    assert devices.list_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert devices.list_gpus({}) == []


def test_runs_on_a_tpu_host_have_a_chip_and_a_port_each(tmp_path):
    for name in ("0", "1", "vfio"):
        (tmp_path / "vfio").mkdir(exist_ok=True)
        (tmp_path / "vfio" / name).touch()
    assert list_tpu_chips({}, tmp_path) == []
    assert list_tpu_chips({"TPU_ML_PLATFORM": "JAX"}, tmp_path) == ["0", "1"]
    tpu = {"TPU_VISIBLE_CHIPS": "2,3", "CUDA_VISIBLE_DEVICES": ""}
    first, second = (share.environment for share in share_devices(2, tpu))
    assert first == {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_VISIBLE_CHIPS": "2",
        "TPU_PROCESS_PORT": "8476",
    }
    assert (second["TPU_VISIBLE_CHIPS"], second["TPU_PROCESS_PORT"]) == ("3", "8477")
    with pytest.raises(UserError, match="--jobs=3: this machine has 2 TPU chips"):
        share_devices(3, tpu)


def test_runs_on_a_cpu_have_cores_each(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6}, raising=False)  # whatever this machine has
    cores = usable_cores()
    assert cores == [1, 4, 6]
    environment = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}
    shares = share_devices(len(cores), environment)
    assert sorted(core for share in shares for core in share.cores) == sorted(cores)
    assert all(len(share.cores) == 1 and not share.environment for share in shares)
    with pytest.raises(UserError, match="CPU cores, and each run needs one"):
        share_devices(len(cores) + 1, environment)


def test_a_system_that_tells_no_cores_shares_all_and_pins_no_run(monkeypatch):
    """As macOS, where os has neither of the two functions."""
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    shares = share_devices(2, {"JAX_PLATFORMS": "cpu"})
    assert [sorted(share.cores) for share in shares] == [[0, 1], [2, 3]]
    pin(os.getpid(), shares[0].cores)


def test_a_process_is_kept_on_its_cores_where_the_system_can(monkeypatch):
    kept: list[tuple[int, frozenset[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *args: kept.append(args), raising=False)
    pin(7, frozenset({1}))
    pin(7, frozenset())  # which stands for all
    assert kept == [(7, {1})]

    def gone(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "sched_setaffinity", gone, raising=False)
    pin(7, frozenset({1}))
