"""What is compared with PyTorch is the same step, and the figures say what they are taken from."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from benchmark import main
from flax import nnx
from tqdm import tqdm

from benchmarks import runs as benchmark_runs
from benchmarks import timing as benchmark_timing
from benchmarks import train as benchmark_train
from benchmarks.runs import PyTorch, make_batch, our_step
from medvlsm_jax import create_model
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.errors import UserError


@pytest.fixture
def model():
    return create_model("small", rngs=nnx.Rngs(0))


@pytest.fixture
def args(tmp_path) -> SimpleNamespace:
    return SimpleNamespace(
        model=["small"],
        batch_size=2,
        repeats=1,
        dtype="float32",
        output=str(tmp_path / "figures.json"),
        compile=False,
        input_wait=False,
        num_images=16,
    )


@pytest.fixture(autouse=True)
def small_product(monkeypatch) -> None:
    monkeypatch.setattr(benchmark_timing, "MATMUL_SIZE", 64)


def test_both_sides_take_the_same_steps(model, monkeypatch, exact_matmul):
    pytest.importorskip("torch", reason="compares with PyTorch")
    monkeypatch.setattr(benchmark_runs, "LEARNING_RATE", 1e-3)
    batch = make_batch(model, 2)
    runs = [our_step(model, batch, freeze_encoder=False), PyTorch(model, batch).step()]
    losses = np.array([[run() for run in runs] for _ in range(4)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)
    assert losses[0, 0] - losses[3, 0] > 1e-3


def test_with_frozen_encoders_cached_or_not_too(model, monkeypatch, exact_matmul):
    pytest.importorskip("torch", reason="compares with PyTorch")
    monkeypatch.setattr(benchmark_runs, "LEARNING_RATE", 1e-3)
    batch = make_batch(model, 2)
    runs = [our_step(model, batch, freeze_encoder=True, is_cached=is_cached) for is_cached in (False, True)]
    runs.append(PyTorch(model, batch, freeze_encoder=True).step())
    losses = np.array([[run() for run in runs] for _ in range(4)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-6)
    np.testing.assert_allclose(losses[:, 0], losses[:, 2], rtol=1e-4)
    assert losses[0, 0] - losses[3, 0] > 1e-3


def test_pytorchs_frozen_encoder_keeps_no_graph_and_stays(model):
    torch = pytest.importorskip("torch", reason="looks at PyTorch's side")
    pytorch = PyTorch(model, make_batch(model, 2), freeze_encoder=True)
    before = {name: parameter.clone() for name, parameter in pytorch.reference.named_parameters()}
    is_recorded = {}
    for tower in (pytorch.reference.clip.vision_model, pytorch.reference.clip.text_model):
        layer = tower.encoder.layers[0]
        layer.register_forward_hook(lambda layer, *_: is_recorded.update({layer: torch.is_grad_enabled()}))
    pytorch.step()()
    assert list(is_recorded.values()) == [False, False]
    for name, parameter in pytorch.reference.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("clip."), name


def test_the_figures_belong_together(args, monkeypatch, capsys):
    pauses = {"ours": 0.02, "ours, cached": 0.01, "PyTorch": 0.04, "torch.compile": 0.03}
    clock = [0.0]

    def pause(side: str) -> None:
        clock[0] += pauses[side]

    runs = {side: functools.partial(pause, side) for side in pauses}
    monkeypatch.setattr(benchmark_timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(
        benchmark_train, "our_step", lambda *_, is_cached=False, **__: runs["ours, cached" if is_cached else "ours"]
    )
    theirs = {side: runs[side] for side in ("PyTorch", "torch.compile")}
    monkeypatch.setattr(benchmark_train, "pytorch_sides", lambda *_: theirs)
    monkeypatch.setattr(benchmark_train, "peak_flops", lambda: (1e9, "of a peak"))
    benchmark_train.run(args)

    results = json.loads(Path(args.output).read_text())["results"]["small"]
    full, frozen = results["full"], results["frozen"]
    assert list(full) == ["ours", "PyTorch", "torch.compile"]
    assert list(frozen) == list(pauses)
    for side, figures in frozen.items():
        assert figures["images_per_second"] == pytest.approx(args.batch_size / pauses[side])
        assert figures["speed_to_eager"] == pytest.approx(0.04 / pauses[side])
        assert figures["speed_to_compiled"] == pytest.approx(0.03 / pauses[side])
    work = [side["utilisation"] / side["images_per_second"] for side in (full["ours"], *frozen.values())]
    assert work[0] > work[1] > work[2] > 0
    assert work[3] == pytest.approx(work[1])
    printed = capsys.readouterr().out
    assert "utilisation of a peak" in printed
    row = next(line for line in printed.splitlines() if line.startswith("small / frozen / ours, cached"))
    assert row.split()[6:9] == ["200.00", "4.00", "3.00"]


def sides_of_pytorch(model) -> list[str]:
    return list(benchmark_train.pytorch_sides(model, make_batch(model, 2), "full", True, tqdm(disable=True), "small"))


def test_a_compiler_that_fails_is_a_line(model, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="looks at PyTorch's side")

    def fail(*_) -> None:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    assert sides_of_pytorch(model) == ["PyTorch"]
    assert capsys.readouterr().out == "small: without torch.compile: RuntimeError: no C++ compiler\n"


def test_a_network_that_pytorch_lacks_is_a_line(model, monkeypatch, capsys):
    def fail(_) -> None:
        raise UserError("no PyTorch implementation of small is on PyPI")

    monkeypatch.setattr(benchmark_runs, "require_torch", lambda: None)
    monkeypatch.setattr(benchmark_runs, "find_reference", fail)
    assert sides_of_pytorch(model) == []
    assert capsys.readouterr().out == "small: without PyTorch: no PyTorch implementation of small is on PyPI\n"


def test_what_was_not_timed_has_no_ratio():
    alone = {"images_per_second": 2.0, "utilisation": 0.5}
    row = benchmark_train.steps_table({"small": {"full": {"ours": alone}}}).splitlines()[-1]
    assert row.split() == ["small", "/", "full", "/", "ours", "2.00", "-", "-", "50.0%"]


def test_the_input_is_measured_in_the_second_epoch_of_a_run(args, sample, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(benchmark_train, "drawn_records", lambda _: load_records(sample, "sample", "train"))
    figures = benchmark_train.input_wait("small", args)
    assert 0 <= figures["input_wait"] < 1
    assert figures["images_per_second"] > 0


def test_what_was_logged_before_the_second_epoch_does_not_count():
    lines = [
        {"step": step, "name": f"train/{name}", "value": value + shift}
        for step, value in ((5, 0.9), (10, 0.8), (15, 0.1), (20, 0.2), (25, 0.6))
        for name, shift in (("input_wait", 0), ("images_per_second", 7), ("loss", 1))
    ]
    assert benchmark_train.median_after(lines, 10) == {"input_wait": 0.2, "images_per_second": 7.2}


def test_turns_alternate_and_the_first_ones_do_not_count():
    order = []
    seconds = benchmark_timing.time_in_turn({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert order == list("abc") * (4 + benchmark_timing.WARM_TURNS)
    assert {name: len(turns) for name, turns in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_device_without_a_data_sheet_is_measured():
    peak, origin = benchmark_timing.peak_flops()
    assert peak > 0
    assert origin.endswith("the speed of a float32 64 x 64 product here")


def test_the_peak_of_a_known_chip_is_its_data_sheets(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="NVIDIA H200")])
    assert benchmark_timing.peak_flops()[0] == 989e12


def test_another_device_than_pytorchs_is_refused(monkeypatch):
    torch = SimpleNamespace(__version__="2.13.0+cpu", cuda=SimpleNamespace(is_available=lambda: False))
    assert benchmark_runs.pytorch_device(torch) == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"PyTorch 2\.13\.0\+cpu cannot use the gpu"):
        benchmark_runs.pytorch_device(torch)


def test_another_benchmark_is_refused(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", {})
    with pytest.raises(UserError, match="nothing is known of 'trane': the benchmarks are device, train, input, "):
        main(["benchmark.py", "trane"])
