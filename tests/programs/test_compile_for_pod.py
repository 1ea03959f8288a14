"""The tool that compiles for a pod: steps by the TPU's compiler, and what it says and does when they do not fit."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvlsm_jax.config import base_config
from medvlsm_jax.parallel.chips import V5E
from medvlsm_jax.pods.estimate import Estimate, Memory
from medvlsm_jax.pods.hlo import Collective
from medvlsm_jax.pods.slices import Slice

compile_for_pod = pytest.importorskip("compile_for_pod")

TOOL = Path(compile_for_pod.__file__)
SMALL = {  # sizes of a clipseg_tiny that compiles in seconds
    "text": {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "context_length": 16},
    "vision": {"grid": 4, "width": 32, "depth": 1, "heads": 2, "mlp_width": 64},
    "extract_layers": [0], "conditional_layer": 0, "reduce_dim": 16, "decoder_heads": 2, "decoder_mlp_width": 32,
}  # fmt: skip


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), f"--config={TOOL.parent.parent / 'configs/clipseg.py'}:model=clipseg_tiny"]
    path = os.pathsep.join([str(TOOL.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])  # libtpu's, too
    env = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([*command, *args], capture_output=True, text=True, env=env, check=False)


def step(total: float, seconds: float = 1.0, collectives: tuple[Collective, ...] = ()) -> Estimate:
    return Estimate(Memory(total, 0, 0, 0), total, 16e9, 1e12, 1e9, seconds, collectives, 0.5, 0.25)


@pytest.fixture
def config():
    config = base_config()
    config.update({"model": "clipseg_tiny", "batch_size": 32})
    return config


def test_a_slice_is_compiled_for_and_reported(tmp_path):
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    output = tmp_path / "pod.json"
    options = f"--config.model_options={json.dumps(SMALL)}"
    finished = run("--topology=v5e:1x1", "--images_per_chip=2", options, "--config.image_size=32", f"--output={output}")
    assert finished.returncode == 0, finished.stderr
    content = json.loads(output.read_text())
    assert content["fits"]
    assert content["config"]["batch_size"] == 2
    for name in ("train", "eval"):
        figures = content["steps"][name]
        assert figures["fits"]
        assert 0 < figures["total_memory"] < figures["limit"] == 16e9
        assert figures["seconds"] > 0
        assert figures["collectives"] == []
    assert content["steps"]["train"]["memory"]["arguments"] > content["steps"]["eval"]["memory"]["arguments"]
    assert [row["efficiency"] for row in content["scaling"]] == [1]
    for text in ("clipseg_tiny, 2 images over 1 TPU v5e", "16.00 GB, fits", "no collectives", "estimates"):
        assert text in finished.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology=v7:2x2"], "--topology=v7:2x2 is no TPU slice"),
        (["--topology=v5e:4x4", "--config.batch_size=100"], "config.batch_size=100 is not a multiple of the 16 chips"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], "mesh.data=-1 x mesh.fsdp=3 does not cover the 4 chips"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_one_line(args, message):
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    finished = run(*args)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {message}")
    assert finished.stderr.count("\n") == 1


def test_a_step_that_does_not_fit_ends_the_program_with_3(capsys):
    with pytest.raises(SystemExit) as stop:
        compile_for_pod.check_fit({"train": step(20.13e9), "eval": step(1e9)})
    assert stop.value.code == 3
    assert capsys.readouterr().err.startswith("does not fit: train needs 20.13 GB of the 16.00 GB of a chip.")


def test_steps_that_fit_end_nothing():
    assert compile_for_pod.check_fit({"train": step(16e9), "eval": step(1e9)}) is None


def test_scaling_compares_the_same_images_a_chip(config, monkeypatch):
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    seen = []

    def compile_train(config, chips) -> Estimate:
        seen.append((config.batch_size, dict(config.mesh)))
        return step(1e9, seconds=0.75 + len(chips.devices) / 4)

    for name, replacement in (("compile_train", compile_train), ("compile_eval", lambda *_: step(1e9))):
        monkeypatch.setattr(compile_for_pod, name, replacement)
    config.mesh.fsdp = 4
    one, two, eight = map(compile_for_pod.find_slice, ("v5e:1x1", "v5e:1x2", "v5e:2x4"))
    _, rows = compile_for_pod.compile_all(config, eight, [one, two])
    assert seen == [(4, {"data": 1, "fsdp": 1}), (8, {"data": 1, "fsdp": 2}), (32, {"data": 2, "fsdp": 4})]
    assert [row["seconds"] for row in rows] == [1.25, 1.5, 3.0]
    assert [row["efficiency"] for row in rows] == pytest.approx([1, 1.25 / 1.5, 1.25 / 3])
    assert [row["images_per_second"] for row in rows] == pytest.approx([4 / 1.25, 8 / 1.5, 32 / 3])
    assert "2 x 4" in compile_for_pod.scaling_table(rows)


def test_tables_show_what_is_known():
    gather = Collective("all-gather", "bf16[8]", 16e6, 8, 3)
    steps = {"train": step(2e9, collectives=(gather,)), "eval": Estimate(None, math.nan, 16e9)}
    text = compile_for_pod.step_table(steps)
    assert "16.00 GB, fits" in text
    assert "16.00 GB, DOES NOT FIT" in text
    assert "train / all-gather            8      3  48.00 MB        42.00 MB" in compile_for_pod.collectives_table(
        steps
    )


def test_unknown_figures_are_null_in_json(config, monkeypatch):
    monkeypatch.setattr(compile_for_pod, "version", lambda _: "1.0")
    chips = Slice("v5e:1x1", (1, 1), V5E, ())
    content = compile_for_pod.as_json(config, chips, {"train": Estimate(None, math.nan, 16e9)}, [])
    assert json.loads(json.dumps(content, allow_nan=False))["steps"]["train"]["seconds"] is None
    assert not content["fits"]
