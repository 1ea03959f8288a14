"""What tests hand on to the programs that they start, and what is left of one that ran in this process."""

import json
import os
from importlib.metadata import version

import processes
import pytest
from absl import flags
from check_continuation import Training
from processes import child_environment, run_here, run_processes, suite_flags, with_devices, with_quick_compiler

QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


@pytest.fixture
def other_cpu(monkeypatch) -> None:
    """A caller who asks for another instruction set than the machine's own."""
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_max_isa=AVX2 {os.environ['XLA_FLAGS']}")


def test_a_child_gets_the_callers_flags_and_devices_of_its_own(other_cpu, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, jax\n"
        "print(json.dumps([jax.local_device_count(), os.environ['XLA_FLAGS'].split()]), flush=True)\n"
        "os._exit(0)  # without waiting for the others, which this one has not joined\n"
    )
    (child,) = run_processes(1, 3, script)
    devices, found = json.loads(child.stdout)
    assert devices == 3
    assert "--xla_cpu_max_isa=AVX2" in found
    assert found[-1] == "--xla_force_host_platform_device_count=3"
    assert set(found[:-1]) == {flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag}


def test_the_runs_of_check_continuation_get_them_too(other_cpu, tmp_path):
    environment = Training(tmp_path, 1, environment=child_environment()).environment
    assert environment["XLA_FLAGS"].split()[0] == "--xla_cpu_max_isa=AVX2"
    assert environment["XLA_FLAGS"].split()[-1] == "--xla_force_host_platform_device_count=1"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == os.environ["JAX_COMPILATION_CACHE_DIR"]


def test_a_number_of_devices_takes_the_place_of_another():
    assert with_devices("", 2) == "--xla_force_host_platform_device_count=2"
    given = "--xla_force_host_platform_device_count=8 --xla_dump_to=x"
    assert with_devices(given, 2) == "--xla_dump_to=x --xla_force_host_platform_device_count=2"


@pytest.mark.parametrize(
    ("given", "jaxlib", "expected"),
    [
        ("", "0.10.2", QUICK),
        ("", "0.11.2", QUICK.split()[1]),
        ("--xla_dump_to=x", "0.11.0", f"--xla_dump_to=x {QUICK}"),
        ("", "0.12.0.1", "--xla_cpu_parallel_codegen_split_count=1"),
        ("", "0.13.0", ""),  # nobody knows
        ("--xla_cpu_use_fusion_emitters", "0.10.2", f"--xla_cpu_use_fusion_emitters {QUICK.split()[1]}"),
        (QUICK.replace("=1", "=4"), "0.11.0", QUICK.replace("=1", "=4")),
    ],
)
def test_compiling_is_made_short_with_flags_that_jaxlib_knows_and_the_caller_did_not_give(given, jaxlib, expected):
    assert with_quick_compiler(given, jaxlib) == expected


def test_xlas_defaults_can_be_asked_for():
    found = suite_flags({"XLA_FLAGS": "--xla_dump_to=x", "MEDVLSM_TEST_XLA": "default"})
    assert found == "--xla_dump_to=x --xla_force_host_platform_device_count=8"


def test_libtpus_xla_is_given_no_flags_that_it_does_not_know(monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    assert suite_flags({}) == "--xla_force_host_platform_device_count=8"
    monkeypatch.setattr(processes, "find_spec", lambda _: None)
    assert suite_flags({}) == with_quick_compiler("--xla_force_host_platform_device_count=8", version("jaxlib"))


def test_a_program_in_this_process_parses_its_flags_afresh_and_leaves_none(tmp_path):
    before = set(flags.FLAGS)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from absl import flags\n"
        "from medvlsm_jax.command_line import run_program\n"
        "from medvlsm_jax.errors import UserError\n"
        "def main(argv):\n"
        "    print(flags.FLAGS.number)\n"
        "    if flags.FLAGS.number > 2:\n"
        "        raise UserError('too many')\n"
        "    sys.exit(flags.FLAGS.number)\n"
        "if __name__ == '__main__':\n"
        "    flags.DEFINE_integer('number', 0, '')\n"
        "    run_program(main)\n"
    )
    for number, code in ((0, 0), (1, 1), (3, 2)):
        done = run_here(script, *([f"--number={number}"] if number else []))
        assert (done.returncode, done.stdout) == (code, f"{number}\n")
        assert done.stderr == ("error: too many\n" if number > 2 else "")
    assert set(flags.FLAGS) - before <= {"help", "helpfull", "helpshort", "helpxml"}  # absl's own, defined once
