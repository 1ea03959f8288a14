"""The rules of docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("medvlsm_jax", "configs", "tools", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
ROOMS = sorted({path.parent for path in FILES if path.is_relative_to(ROOT / "medvlsm_jax")})
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"  # what `make lint` calls


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of `folder/medvlsm_jax`, held against this project's contracts."""
    pytest.importorskip("importlinter", reason="import-linter comes with the [dev] extra")
    command = [sys.executable, "-c", LINT_IMPORTS, "--no-logo", "--no-cache", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_no_import_runs_upward_or_in_a_circle():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_that_runs_upward_is_found(tmp_path):
    for path in FILES:
        if path.is_relative_to(ROOT / "medvlsm_jax"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    models = tmp_path / "medvlsm_jax" / "models" / "__init__.py"
    models.write_text(models.read_text() + "\nimport orbax\n\nfrom medvlsm_jax.training import step\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "medvlsm_jax.models is not allowed to import medvlsm_jax.training" in done.stdout
    assert "medvlsm_jax is not allowed to import orbax" in done.stdout


def test_no_file_has_more_than_450_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {path: length for path, length in lengths.items() if length > 450}


def test_no_function_has_more_than_100_lines():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    }
    assert not {name: length for name, length in lengths.items() if length > 100}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_in_its_first_line_what_it_is(room):
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert docstring, "an __init__.py starts with a docstring that says what the room is"
    assert docstring.splitlines()[0].endswith(".")
