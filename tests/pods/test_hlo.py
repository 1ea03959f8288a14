"""What chips exchange is read from HLO text: kinds, sizes, groups, loops, and each exchange once."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from medvlsm_jax.pods.hlo import Collective, Kernel, cycles_of, exchange_of, kernel_of, read_collectives

# As the compiler for TPUs writes it, shortened: a loop of 4 turns that counts by 2 to 8, an exchange that two fusions
# carry on together, and two reduce-scatters as fusions, alike but for their names.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%fused_computation.1 (p: bf16[64,512]) -> bf16[512,512] {
  %all-gather.7 = bf16[512,512]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, frontend_attributes={chain_id="5"}, metadata={op_name="state.trained['kernel']"}
}

%async_collective_fusion (p: bf16[64,512]) -> bf16[512,512] {
  %all-gather.8 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=3, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, frontend_attributes={chain_id="5"}, metadata={op_name="state.trained['kernel']"}
}

%all-reduce-scatter.2 (p: bf16[768,64]) -> bf16[96,64] {
  %all-reduce.4 = bf16[768,64]{1,0} all-reduce(%p), channel_id=4, \
replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
}

%all-reduce-scatter.3 (p: bf16[768,64]) -> bf16[96,64] {
  %all-reduce.6 = bf16[768,64]{1,0} all-reduce(%p), channel_id=4, \
replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
}

%condition.1 (arg: (u32[], f32[100])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %arg = (u32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT, metadata={op_name="while"}
}

%body.1 (arg: (u32[], f32[100])) -> (u32[], f32[100]) {
  %two = u32[]{:T(128)} constant(2)
  %arg = (u32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%arg), index=0
  %rows = f32[100]{0:T(128)} get-tuple-element(%arg), index=1
  %collective-permute-start.1 = (f32[100]{0:T(128)}, f32[100]{0:T(128)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%rows), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %next = u32[]{:T(128)} add(%counter, %two), metadata={op_name="while"}
  %collective-permute-done.1 = f32[100]{0:T(128)} collective-permute-done(%collective-permute-start.1)
  %fusion.2 = f32[100]{0:T(128)} fusion(%rows), calls=%add, backend_config={"window":{"estimated_cycles":"10"}}
  ROOT %result = (u32[]{:T(128)}, f32[100]{0:T(128)}) tuple(%next, %fusion.2)
}

ENTRY %main.3 (p: bf16[64,512]) -> f32[] {
  %fusion.5 = bf16[512,512] fusion(%p), calls=%fused_computation.1, backend_config={"window":{"estimated_cycles":"100"}}
  %fusion.6 = bf16[512,512] fusion(%p), calls=%async_collective_fusion
  %fusion.7 = bf16[96,64] fusion(%q), kind=kCustom, calls=%all-reduce-scatter.2
  %fusion.8 = bf16[96,64] fusion(%r), kind=kCustom, calls=%all-reduce-scatter.3
  %while.1 = (u32[]{:T(128)}, f32[100]{0:T(128)}) while(%init), condition=%condition.1, body=%body.1
  %all-reduce.5 = (f32[]{:T(128)}, /*index=1*/f32[10,2]{0:T(128)}) all-reduce(%a, %b), channel_id=5, \
replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %end = f32[] all-reduce-done(%all-reduce.5)
}
"""


@pytest.fixture(scope="module")
def collectives() -> dict[str, Collective]:
    return {one.kind: one for one in read_collectives(PROGRAM, 16).values()}


def test_each_collective_is_found_once():
    kinds = sorted(one.kind for one in read_collectives(PROGRAM, 16).values())
    assert kinds == ["all-gather", "all-reduce", "collective-permute", "reduce-scatter", "reduce-scatter"]


def test_a_gather_that_two_fusions_carry_counts_once_with_its_parameter(collectives):
    gather = collectives["all-gather"]
    assert (gather.shape, gather.bytes, gather.chips, gather.times) == ("bf16[512,512]", 2 * 512**2, 8, 1)
    assert gather.source == "state.trained['kernel']"
    assert gather.sent_bytes == 2 * 512**2 * 7 / 8


def test_a_fusion_of_all_reduce_and_slice_is_a_reduce_scatter_of_the_whole(collectives):
    scatter = collectives["reduce-scatter"]
    assert (scatter.bytes, scatter.chips) == (2 * 768 * 64, 8)
    assert scatter.sent_bytes == 2 * 768 * 64 * 7 / 8


def test_arrays_that_are_reduced_together_are_added_up(collectives):
    reduction = collectives["all-reduce"]
    assert (reduction.shape, reduction.bytes, reduction.chips) == ("f32[]+f32[10,2]", 84, 16)
    assert reduction.sent_bytes == 2 * 84 * 15 / 16


def test_what_is_in_a_loop_counts_for_each_turn(collectives):
    permutation = collectives["collective-permute"]
    assert (permutation.bytes, permutation.times, permutation.sent_bytes) == (400, 4, 1600)


def test_pieces_of_an_exchange_share_a_name():
    names = [exchange_of(line) for line in PROGRAM.splitlines()]
    assert names.count('chain_id="5"') == 2
    assert names.count("collective-permute-start.1") == 2  # with its -done
    assert names.count("all-reduce.4") == 1
    assert names.count(None) == len(names) - 8


def test_cycles_are_the_compilers():
    assert [cycles_of(line) for line in PROGRAM.splitlines() if cycles_of(line)] == [10, 100]


def test_real_programs_are_read_as_well(mesh_of):
    mesh = mesh_of(2, 4)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("fsdp"), P(("data", "fsdp"))), out_specs=P(), check_vma=False
    )
    def program(weights, rows):
        def turn(total, _):
            whole = jax.lax.all_gather(weights, "fsdp", tiled=True)
            return jax.lax.psum(jnp.sin(total + rows.sum() * whole), "data"), None

        return jax.lax.psum(jax.lax.scan(turn, jnp.zeros(64), length=3)[0], "fsdp")

    text = jax.jit(program).lower(jnp.ones(64), jnp.ones((8, 5))).compile().as_text()
    found = {(one.kind, one.chips, one.bytes): one.times for one in read_collectives(text, mesh.size).values()}
    assert found[("all-reduce", 2, 256.0)] == 3
    assert found[("all-reduce", 4, 256.0)] == 1
    assert any(kind == "all-gather" and (chips, size) == (4, 256) for kind, chips, size in found)


KERNELS = """\
ENTRY %main (p: bf16[4,485,64]) -> bf16[4,485,64] {
  %copy.1 = bf16[4,485,64] copy(%p)
  %attention_forward_kernel.7 = bf16[4,485,64]{2,1,0} custom-call(%copy.1, %p), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"48","transcendentals":"9","bytes_accessed":"5","remote_bytes_transferred":"0"}}}
  %joined = bf16[4,485,64] custom-call(%copy.1), custom_call_target="ConcatBitcast"
}
"""  # noqa: E501


def test_a_kernel_says_what_it_costs():
    kernels = [kernel_of(line) for line in KERNELS.splitlines()]
    assert [kernel for kernel in kernels if kernel] == [Kernel("attention_forward_kernel", 48, 9, 5)]
    with pytest.raises(ValueError, match=r"attention_forward_kernel\.7 says nothing of what it costs"):
        kernel_of(KERNELS.replace("cost_estimate", "other"))
