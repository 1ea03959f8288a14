"""What may be kept in memory is what its file system, the machine and every control group of the job leave."""

from pathlib import Path

import pytest

from medvlsm_jax.data.reading import room
from medvlsm_jax.data.reading.room import find_room, memory_left

GIB = 2**30


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Where the kernel's files are looked for."""
    monkeypatch.setattr(room, "ROOT", tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


def group(version: int, path: str, limit: object, use: int, stat: str = "") -> dict[str, object]:
    """The files of a control group."""
    folder = f"sys/fs/cgroup{'/memory' if version == 1 else ''}{path}"
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    return {f"{folder}/{name}": value for name, value in zip((*names, "memory.stat"), (limit, use, stat), strict=True)}


PLACES = {1: "12:cpu,cpuacct:/x\n4:memory:/job/step\n0::/", 2: "0::/job/step"}
UNLIMITED = {1: 9223372036854771712, 2: "max"}


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_counts_also_when_it_is_not_the_innermost(root, version):
    write(root, {"proc/self/cgroup": PLACES[version]})
    write(root, group(version, "", UNLIMITED[version], 50 * GIB))
    write(root, group(version, "/job", 8 * GIB, 5 * GIB))
    write(root, group(version, "/job/step", 6 * GIB, GIB))
    assert min(memory_left()) == (3 * GIB, "this job's memory limit")


@pytest.mark.parametrize(("version", "prefix"), [(1, "total_"), (2, "")])
def test_files_that_the_kernel_can_drop_do_not_count_as_used(root, version, prefix):
    write(root, {"proc/self/cgroup": PLACES[version]})
    stat = f"{prefix}inactive_file {GIB}\n{prefix}active_file {GIB}\nshmem {GIB}"
    write(root, group(version, "/job/step", 6 * GIB, 5 * GIB, stat))
    assert min(memory_left()).free == 3 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_the_group_is_what_is_mounted(root, version):
    write(root, {"proc/self/cgroup": PLACES[version]})  # as it is called outside
    write(root, group(version, "", 2 * GIB, GIB))
    assert min(memory_left()).free == GIB


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_limit_the_machine_says_what_is_left(root, version):
    write(root, {"proc/self/cgroup": PLACES[version], "proc/meminfo": f"MemFree: 1 kB\nMemAvailable: {4 * 2**20} kB"})
    write(root, group(version, "/job/step", UNLIMITED[version], GIB))
    assert min(memory_left()) == (4 * GIB, "this machine's memory")


def test_where_the_kernel_tells_nothing_the_file_system_alone_does(root, tmp_path):
    assert memory_left() == []
    assert find_room(tmp_path).of == str(tmp_path)


def test_a_cache_in_memory_leaves_the_run_half_and_one_on_a_disk_does_not_care(root, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    write(root, {"proc/self/cgroup": PLACES[2]} | group(2, "/job/step", 2**20, 0))
    assert find_room(tmp_path / "shm") == (2**19, "this job's memory limit")
    assert find_room(tmp_path).of == str(tmp_path)
