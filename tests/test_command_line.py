"""What a person mistypes is one line and exit status 2."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from processes import ROOT, child_environment

from medvlsm_jax.command_line import field_lines, parse_flags
from medvlsm_jax.config import apply_overrides, base_config, flattened
from medvlsm_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

CONFIG = "from medvlsm_jax.config import apply_overrides, base_config\n\ndef get_config(arg=None):\n"
CONFIG += "    return apply_overrides(base_config(), arg)\n"
PROGRAM = '''"""Does nothing.

It says what it was told.
"""
from absl import flags
from medvlsm_jax.command_line import run_program
from medvlsm_jax.config import base_config

def main(argv):
    print(argv[1:], flags.FLAGS.name, flags.FLAGS.config.batch_size)
    for _ in range(flags.FLAGS.lines):
        print("x" * 1000)

if __name__ == "__main__":
    flags.DEFINE_string("name", None, "What it is called.")
    flags.DEFINE_integer("lines", 0, "Lines to print.")
    flags.mark_flag_as_required("name")
    run_program(main, arguments="things", config=base_config)
'''


def parse(folder: Path, arguments: Sequence[str], takes: str = "") -> tuple[list[str], flags.FlagValues]:
    """What is left of a command line, and the flags of a program that has some of every kind."""
    (folder / "config.py").write_text(CONFIG)
    (folder / "broken.py").write_text("def get_config():\n    return int('many')\n")
    argv = ["program", *(argument.replace("FOLDER", str(folder)) for argument in arguments)]
    known = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "A config.", flag_values=known, sys_argv=argv)
    flags.DEFINE_string("name", None, "What it is called.", flag_values=known)
    flags.DEFINE_integer("lines", 0, "Lines to print.", lower_bound=0, flag_values=known)
    flags.DEFINE_multi_string("many", [], "May be repeated.", flag_values=known)
    flags.mark_flag_as_required("name", flag_values=known)
    return parse_flags(argv, takes, known), known


WITH_CONFIG = ("--name=a", "--config=FOLDER/config.py")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--name is missing: What it is called."),
        (("--nmae=a",), "there is no flag --nmae: did you mean --name?"),
        ((*WITH_CONFIG, "--data_dir=d"), "there is no flag --data_dir: did you mean --config.data_dir?"),
        ((*WITH_CONFIG, "--config.learningrate=1"), "--config has no field learningrate: did you mean learning_rate?"),
        ((*WITH_CONFIG, "--config.mesh.rows=1"), "--config has no field rows: --help lists them"),
        ((*WITH_CONFIG, "--config.seed=one"), "--config.seed=one: invalid literal"),
        (("--name=a", "--config=FOLDER/other.py"), "--config cannot be read: [Errno 2] No such file"),
        (("--name=a", "--config=FOLDER/broken.py"), "--config cannot be used: ValueError: invalid literal for int()"),
        (
            ("--name=a", "--config=FOLDER/config.py:learningrate=1"),
            "config string: 'learningrate=1' is not FIELD=VALUE",
        ),
        (
            (*WITH_CONFIG, "--config.freeze_decoder", "False"),
            "'False' belongs to no flag: write --config.freeze_",
        ),
        (("--name", "a b", "c"), "'c' belongs to no flag"),
        (("--name=a", "--name=b"), "--name is given 2 times: give it once"),
        (("--name=a", "--lines=-1"), "--lines=-1: -1 is not a non-negative integer"),
    ],
)
def test_what_is_mistyped_is_one_line(tmp_path, arguments, said):
    with pytest.raises(UserError) as raised:
        parse(tmp_path, arguments)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_what_is_right_is_taken(tmp_path):
    arguments = ["--many=1", *WITH_CONFIG, "--config.freeze_decoder=true", "--many=2", "left", "over"]
    left, known = parse(tmp_path, arguments, takes="things")
    assert left == ["program", "left", "over"]
    assert (known.name, known.many, known.config.freeze_decoder) == ("a", ["1", "2"], True)


@pytest.fixture
def command(tmp_path) -> str:
    """Runs a program."""
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    return f"{sys.executable} {tmp_path / 'program.py'}"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = child_environment() | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)


def test_a_program_ends_with_status_2_after_one_line(command):
    done = shell(f"{command} --name=a --config.batchsize=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --config has no field batchsize: did you mean batch_size?\n"


def test_a_terminal_without_a_letter_gets_its_number(command):
    done = shell(f"{command} --name=Geschwür --config.batch_size=3 thing", PYTHONIOENCODING="ascii")
    assert done.stdout == "['thing'] Geschw\\xfcr 3\n", done.stderr


def test_output_that_nobody_reads_ends_it_without_a_word(command):
    done = shell(f"{command} --name=a --lines=2000 | head -n 1; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("[] a 32\n141\n", "")


def test_help_tells_flags_and_fields_with_what_they_mean(command):
    done = shell(f"{command} --help")
    assert done.returncode == 0
    assert done.stdout.startswith("Does nothing.\n\nIt says what it was told.\n\nBesides flags: things.\n\nFlags:\n")
    assert "  --name: What it is called.\n" in done.stdout
    assert "  batch_size = 32  # of all devices together\n" in done.stdout


def test_help_has_every_field_once_in_the_order_of_the_source():
    lines = field_lines(flattened(base_config()) | {"own": 1})
    names = [line.split()[0] for line in lines if " = " in line and not line.startswith("  #")]
    assert sorted(names) == sorted([*flattened(base_config()), "own"])
    assert names[0] == "data_dir"
    assert names[-1] == "own"
    assert lines[lines.index("  # How it is trained.") - 1] == ""


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("learningrate=3", "did you mean learning_rate"),
        ("prompt=text:a, b = c", "goes into --config.prompt='text:A SENTENCE'"),
        ("prompt=p6,foo=1", "accumulation, attention"),
    ],
)
def test_a_config_string_that_is_mistyped_is_helped(typed, hint):
    with pytest.raises(UserError, match=hint):
        apply_overrides(base_config(), typed)


def test_type_checkers_see_the_types():
    assert (Path(ROOT) / "medvlsm_jax" / "py.typed").is_file()
