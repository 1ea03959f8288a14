"""What is prepared for one accelerator runs on a CPU in tiny form, so that it cannot rot."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import pytest
from tqdm import tqdm

from benchmarks import device as benchmark_device
from benchmarks import runs as benchmark_runs
from benchmarks import timing as benchmark_timing
from benchmarks.train import after_first_turn
from medvlsm_jax.models.attention import attend


@pytest.fixture
def args(tmp_path, monkeypatch) -> SimpleNamespace:
    monkeypatch.setattr(benchmark_timing, "MATMUL_SIZE", 64)
    monkeypatch.setattr(benchmark_device, "LENGTHS", (9, 16))
    figures = str(tmp_path / "figures.json")
    options = {"repeats": 1, "dtype": "bfloat16", "compile": False, "input_wait": False, "num_images": 16}
    return SimpleNamespace(model=["small"], batch_size=5, output=figures, **options)


def test_the_script_for_a_device_checks_attention_and_times_steps(args, capsys):
    benchmark_device.run(args)
    content = json.loads(Path(args.output).read_text())
    assert content["attention"]["xla"].keys() == {"9", "9, masked", "16", "16, masked"}
    for errors in content["attention"]["xla"].values():
        assert all(0 < error < 0.02 for error in errors)
    network = content["networks"]["small"]
    assert network["batch_size"] == 4  # a power of two
    assert {
        recipe: [side for side in sides if side.startswith("ours")] for recipe, sides in network["steps"].items()
    } == {
        "full": ["ours, xla"],
        "frozen": ["ours, xla", "ours, cached"],
    }
    printed = capsys.readouterr().out
    assert "xla, 16" in printed
    assert "small / frozen / ours, cached" in printed


def test_gradients_that_are_not_finite_are_shouted():
    table = benchmark_device.errors_table({"cudnn": {"485": [1e-3, math.nan, 1e-3, 1e-3]}})
    assert table.splitlines()[-1].split() == ["cudnn,", "485", "1.0e-03", "NOT", "FINITE", "1.0e-03", "1.0e-03"]


def test_what_fails_is_a_line_beside_what_works(args, monkeypatch, capsys):
    def failing(*arrays, implementation, **options):
        if implementation == "xla" and arrays[0].dtype == jnp.bfloat16 and arrays[0].shape[1] == 16:
            raise RuntimeError("no such kernel\nand a long story")
        return attend(*arrays, implementation=implementation, **options)

    monkeypatch.setattr(benchmark_device, "attend", failing)
    errors = benchmark_device.attention_errors("xla")
    assert [call for call, values in errors.items() if math.inf in values] == ["16", "16, masked"]
    assert capsys.readouterr().err.count("xla, 16 tokens: RuntimeError: no such kernel\n") == 2
    assert "FAILED" in benchmark_device.errors_table({"xla": errors})

    def out_of_memory():
        raise RuntimeError("out of memory")

    lines: list[str] = []
    bar = cast("tqdm", SimpleNamespace(write=lines.append))
    assert after_first_turn("PyTorch", lambda: out_of_memory, bar, "clipseg full") == {}
    assert lines == ["clipseg full: without PyTorch: RuntimeError: out of memory"]


def test_the_largest_batch_fits_into_three_quarters_of_the_memory(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(benchmark_runs, "step_bytes", lambda name, dtype, size: 10 * size)
    assert benchmark_runs.largest_batch("small", "bfloat16", 256) == 64
    assert benchmark_runs.largest_batch("small", "bfloat16", 33) == 32


def test_a_step_takes_more_memory_for_more_images():
    few, many = (benchmark_runs.step_bytes("small", "bfloat16", size) for size in (2, 8))
    assert 0 < few < many
