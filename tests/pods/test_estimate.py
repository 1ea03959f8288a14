"""What a compiled step takes and how long it will about take."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from medvlsm_jax.config import base_config
from medvlsm_jax.models.layers import dense
from medvlsm_jax.parallel.chips import V5E
from medvlsm_jax.parallel.compiler import compiler_options
from medvlsm_jax.pods.estimate import VECTOR_OPERATIONS, estimate, exhausted_bytes, kernel_seconds, sum_by_kind
from medvlsm_jax.pods.hlo import Kernel
from medvlsm_jax.pods.slices import Slice, find_slice, slice_mesh

SIZE = 1024


def lower(mesh) -> jax.stages.Lowered:
    """A product of rows that are split with a matrix that is not, summed up over all rows."""
    rows = jax.ShapeDtypeStruct(
        (SIZE * mesh.size, SIZE), jnp.bfloat16, sharding=NamedSharding(mesh, P(("data", "fsdp")))
    )
    matrix = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
    summed = jax.jit(lambda rows, matrix: (rows @ matrix).T @ rows, out_shardings=NamedSharding(mesh, P()))
    return summed.lower(rows, matrix)


@pytest.fixture(scope="module")
def eight() -> Slice:
    """Eight emulated devices that pass for chips."""
    return Slice("eight", (2, 4), V5E, tuple(jax.devices()))


def test_arguments_operations_and_exchange_are_those_of_one_chip(eight, mesh_of):
    step = estimate(lower(mesh_of(8)), eight)
    assert step.memory.arguments == 2 * 2 * SIZE**2
    assert step.memory.total == step.total_memory >= 3 * 2 * SIZE**2
    assert step.flops == pytest.approx(2 * 2 * SIZE**3, rel=0.01)
    assert {(one.kind, one.chips) for one in step.collectives} == {("all-reduce", 8)}
    assert step.compute_seconds == pytest.approx(step.flops / V5E.flops)  # a CPU's compiler gives no cycles
    assert step.collective_seconds == sum(one.sent_bytes for one in step.collectives) / eight.bandwidth(8)
    assert step.waiting_seconds == pytest.approx(step.collective_seconds)  # nothing is hidden
    assert step.seconds == step.compute_seconds + step.waiting_seconds


def test_a_kernel_takes_its_products_and_its_exponentials_or_its_bytes():
    busy = Kernel("attention", flops=197e9, exponentials=4096 * 1.5e6 / VECTOR_OPERATIONS, bytes=1.0)
    assert kernel_seconds(busy, V5E) == pytest.approx(1e-3 + 1e-3)
    moving = Kernel("attention", flops=1.0, exponentials=1.0, bytes=819e6)
    assert kernel_seconds(moving, V5E) == pytest.approx(1e-3)


def test_loops_and_what_lies_beside_the_step_count(eight, mesh_of):
    once, more = (estimate(lower(mesh_of(8)), eight, loops=loops, kept=kept) for loops, kept in ((1, 0.0), (4, 1e6)))
    assert more.flops == 4 * once.flops
    assert more.total_memory == once.total_memory + 1e6


def test_a_step_fits_up_to_the_memory_of_a_chip(eight, mesh_of):
    lowered = lower(mesh_of(8))
    needed = estimate(lowered, eight).total_memory
    assert estimate(lowered, eight, kept=V5E.memory - needed).fits
    assert not estimate(lowered, eight, kept=V5E.memory - needed + 1).fits


@pytest.mark.parametrize(
    ("message", "needed"),
    [("memory required for HLO temporaries (20.13G) exceeds available HBM (15.75G).", 20.13 * 2**30), ("?", math.nan)],
)
def test_a_step_that_the_compiler_finds_too_large_does_not_fit(eight, message, needed):
    def refuse() -> None:
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    step = estimate(SimpleNamespace(compile=refuse), eight, kept=0.0)
    assert not step.fits
    assert step.total_memory == pytest.approx(needed, nan_ok=True)
    assert math.isnan(step.seconds)


def test_other_errors_of_the_compiler_are_not_hidden(eight):
    def fail() -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        estimate(SimpleNamespace(compile=fail), eight)


@pytest.mark.parametrize(
    ("text", "value"), [("(1.50M) exceeds available HBM (1.00M)", 1.5 * 2**20), ("(3.00G)", math.nan)]
)
def test_the_compiler_says_how_much_it_needed(text, value):
    assert exhausted_bytes(text) == pytest.approx(value, nan_ok=True)


def test_exchanges_are_summed_by_kind(eight, mesh_of):
    step = estimate(lower(mesh_of(8)), eight)
    (row,) = sum_by_kind(step.collectives)
    assert (row["kind"], row["chips"], row["count"]) == ("all-reduce", 8, len(step.collectives))
    assert row["sent_bytes"] == pytest.approx(2 * 7 / 8 * row["bytes"])


@pytest.fixture
def kept_programs(tmp_path):
    """The folder in which jax keeps all that it compiles."""
    options = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is options:
            yield tmp_path


def test_no_program_is_kept_for_chips_that_are_not_there(eight, mesh_of, kept_programs):
    """It could not be loaded again."""
    estimate(lower(mesh_of(8)), eight)
    assert list(kept_programs.iterdir()) == []
    lower(mesh_of(8)).compile()
    assert list(kept_programs.iterdir()) != []


def test_the_compiler_of_tpus_is_read():
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    chips = find_slice("v5e:2x2")
    step = estimate(lower(slice_mesh(chips, base_config())), chips)
    assert [one.kind for one in step.collectives] == ["all-reduce"]
    assert step.flops == pytest.approx(2 * 2 * SIZE**3, rel=0.05)
    # The matrix units do not reach their peak, and not a hundredth of it would be a mistake in units.
    assert step.flops / V5E.flops < step.compute_seconds < 10 * step.flops / V5E.flops
    assert step.fits


def test_the_compiler_of_tpus_exchanges_while_it_computes():
    """With the options of a training step, of a network of three layers; without them it waits for all."""
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    chips = find_slice("v5e:2x2")
    mesh = slice_mesh(chips, base_config())
    rows, kernels = (NamedSharding(mesh, spec) for spec in (P(("data", "fsdp")), P()))
    x = jax.ShapeDtypeStruct((4 * 4096, SIZE), jnp.bfloat16, sharding=rows)
    params = [jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32, sharding=kernels)] * 3

    def loss(params, x):
        for kernel in params:
            x = jnp.tanh(dense(x, kernel, None))
        return x.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss), out_shardings=kernels, compiler_options=compiler_options(mesh.devices))
    step = estimate(gradient.lower(params, x), chips)
    assert step.waiting_seconds < 0.75 * step.collective_seconds


def test_what_the_compiler_of_tpus_finds_too_large_has_its_figure():
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    chips = find_slice("v5e:1x1")
    sharding = NamedSharding(slice_mesh(chips, base_config()), P())
    large = jax.ShapeDtypeStruct((50_000, 50_000), jnp.float32, sharding=sharding)  # 10 GB, and 10 GB of results
    step = estimate(jax.jit(lambda x: 2 * x).lower(large), chips)
    assert not step.fits
    assert step.total_memory == pytest.approx(20e9, rel=0.01)
