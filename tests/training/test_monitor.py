"""What stops a run that is not finite, what is said about its speed, and which steps are traced."""

import math
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.chips import H100
from medvlsm_jax.training import monitor
from medvlsm_jax.training.monitor import UNDER_WAY, FiniteGuard, Meter, Profiler

GOOD = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_guard_names_step_images_and_the_last_good_checkpoint(tmp_path, name, value):
    guard = FiniteGuard(tmp_path, lambda step: [f"{step}_{i}.png" for i in range(18)], lambda: 1)
    guard.watch(1, jnp.array(True), GOOD)
    guard.watch(2, jnp.array(False), GOOD | {name: jnp.float32(value)})
    guard.watch(3, jnp.array(False), GOOD | {"loss": jnp.float32(math.nan)})  # what follows is of no interest
    message = rf"diverged at step 2: {{'{name}': {value}}}, with the images 2_0.png, .* 2_15.png and 2 more; the last "
    with pytest.raises(UserError, match=rf"{message}good checkpoint is {tmp_path / 'checkpoints' / '1'}\. Lower"):
        guard.check()


def test_the_guard_says_when_there_is_no_checkpoint_yet(tmp_path):
    guard = FiniteGuard(tmp_path, lambda step: ["a.png"], lambda: None)
    guard.watch(1, jnp.array(False), GOOD | {"loss": jnp.float32(math.nan)})
    with pytest.raises(UserError, match=r"with the images a\.png; there is no checkpoint yet"):
        guard.check()


def test_one_flag_a_step_is_read_when_some_steps_have_followed_and_nothing_else(tmp_path, monkeypatch):
    guard, reads = FiniteGuard(tmp_path, lambda step: [], lambda: None), []
    flags = [jnp.array(True) for _ in range(8)]
    number_of = {id(flag): step for step, flag in enumerate(flags)}
    monkeypatch.setattr(monitor.jax, "device_get", lambda array: reads.append(number_of[id(array)]) or True)
    for step in range(1, 8):
        guard.watch(step, flags[step], GOOD)
        assert reads == list(range(1, step - UNDER_WAY + 1))
    guard.check()
    assert reads == list(range(1, 8))
    guard.check()
    assert len(reads) == 7


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Time that a test sets."""
    state = SimpleNamespace(now=100.0)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: state.now)
    return state


def test_the_meter_reports_the_steps_since_the_last_report(clock, monkeypatch):
    monkeypatch.setattr(monitor, "find_chip", lambda _: H100)
    meter = Meter(images=32, flops=989e12)  # as much as one of the 8 devices does in a second
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.25
        clock.now += 0.75
        meter.steps += 1
    assert meter.report() == {"images_per_second": 32.0, "input_wait": 0.25, "mfu": 1 / 8}
    clock.now += 5
    meter.restart()  # after a validation
    clock.now += 2
    meter.steps += 1
    assert meter.report() == {"images_per_second": 16.0, "input_wait": 0.0, "mfu": 1 / 16}


def test_there_is_no_utilisation_of_a_device_whose_peak_is_not_known(clock):
    meter = Meter(images=1, flops=1e9)
    meter.steps += 1
    clock.now += 1
    assert meter.report().keys() == {"images_per_second", "input_wait"}


def test_the_profiler_traces_the_steps_that_it_is_told(tmp_path):
    profiler = Profiler("1:3", tmp_path)
    tracing = []
    for step in range(4):
        profiler.before(step)
        tracing.append(profiler.is_tracing)
        profiler.after(step + 1, GOOD)
    assert tracing == [False, True, True, False]
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


def test_a_run_that_ends_early_keeps_its_trace(tmp_path):
    profiler = Profiler("0:9", tmp_path)
    profiler.before(0)
    profiler.close()
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


@pytest.mark.parametrize("steps", ["5", "5:5", "7:5", "a:b", "5:", "-1:2"])
def test_steps_that_are_no_range_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match=f"config.profile={steps}: give START:STOP"):
        Profiler(steps, tmp_path)
