"""How long a chip waits for exchanges, of what is scheduled beside them."""

import pytest

from medvlsm_jax.pods.hlo import Collective, cycles_of, read_collectives
from medvlsm_jax.pods.schedule import Operation, read_schedule, waiting_seconds


def waiting(seconds: dict[str, float], *operations: tuple[float, str], times: int = 1) -> float:
    """Of exchanges that take so long, and operations with the letters of the exchanges that they carry."""
    collectives = {name: Collective("all-reduce", "", size, 2, times) for name, size in seconds.items()}
    carrying = [Operation(computing, frozenset(names)) for computing, names in operations]
    return waiting_seconds(carrying, collectives, lambda one: one.bytes)


def test_an_exchange_that_is_one_operation_is_waited_for():
    assert waiting({"a": 3.0}, (5.0, ""), (0.0, "a"), (5.0, "")) == 3.0


def test_what_is_computed_between_first_and_last_piece_hides_an_exchange():
    assert waiting({"a": 3.0}, (0.0, "a"), (2.0, ""), (0.0, "a"), (5.0, "")) == 1.0
    assert waiting({"a": 3.0}, (0.0, "a"), (4.0, ""), (0.0, "a")) == 0.0
    assert waiting({"a": 3.0}, (0.0, "a"), (1.0, "a"), (1.0, ""), (0.0, "a")) == 1.0  # a fusion that goes on with it
    assert waiting({"a": 3.0}, (2.0, "a")) == 1.0  # a fusion that carries all of it


def test_exchanges_go_over_the_links_one_after_another():
    started = [(0.0, "a"), (0.0, "b"), (4.0, "")]
    assert waiting({"a": 3.0, "b": 2.0}, *started, (0.0, "a"), (0.0, "b")) == 1.0
    assert (
        waiting({"a": 3.0, "b": 2.0}, (0.0, "a"), (0.0, "b"), (4.0, ""), (0.0, "a")) == 3.0 + 2.0
    )  # b is one operation


def test_an_exchange_in_a_loop_is_waited_for_in_each_turn():
    turn = [(0.0, "a"), (2.0, ""), (0.0, "a")]
    assert waiting({"a": 9.0}, *turn, *turn, *turn, times=3) == 3 * 1.0


# A loop of 3 turns, each with an all-gather beside 10 cycles of a fusion; then an all-reduce that two fusions start and
# end beside 100 cycles, and one that stands alone.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%started (p: f32[64]) -> f32[64] {
  ROOT %all-reduce.1 = f32[64]{0} all-reduce(%p), replica_groups=[1,4]<=[4], frontend_attributes={chain_id="0"}
}

%ended (p: f32[64]) -> f32[64] {
  ROOT %all-reduce.2 = f32[64]{0} all-reduce(%p), replica_groups=[1,4]<=[4], frontend_attributes={chain_id="0"}
}

%condition.1 (arg: (u32[], f32[64])) -> pred[] {
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

%body.1 (arg: (u32[], f32[64])) -> (u32[], f32[64]) {
  %all-gather-start.1 = (f32[16]{0}, f32[64]{0}) all-gather-start(%rows), replica_groups=[1,4]<=[4]
  %fusion.1 = f32[64]{0} fusion(%rows), calls=%sum, backend_config={"window":{"estimated_cycles":"10"}}
  %all-gather-done.1 = f32[64]{0} all-gather-done(%all-gather-start.1)
  ROOT %result = (u32[], f32[64]{0}) tuple(%next, %all-gather-done.1)
}

ENTRY %main (p: f32[64]) -> f32[64] {
  %while.1 = (u32[], f32[64]) while(%init), condition=%condition.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"}}
  %async-collective-start = f32[64]{0} fusion(%p), calls=%started
  %fusion.2 = f32[64]{0} fusion(%p), calls=%sum, backend_config={"window":{"estimated_cycles":"100"}}
  %async-collective-done = f32[64]{0} fusion(%async-collective-start), calls=%ended
  %all-reduce.3 = f32[64]{0} all-reduce(%fusion.2), replica_groups=[1,4]<=[4]
  ROOT %fusion.3 = f32[64]{0} fusion(%p), calls=%sum, backend_config={"window":{"estimated_cycles":"7"}}
}
"""


@pytest.mark.parametrize(("gather", "reduction", "waits"), [(4, 90, 90), (25, 90, 3 * 15 + 90), (4, 130, 30 + 130)])
def test_a_program_waits_for_what_its_schedule_does_not_hide(gather, reduction, waits):
    operations, collectives = read_schedule(PROGRAM, cycles_of), read_collectives(PROGRAM, 4)
    assert sum(operation.seconds for operation in operations) == 3 * 10 + 100 + 7
    assert sorted((one.kind, one.times) for one in collectives.values()) == [
        ("all-gather", 3),
        ("all-reduce", 1),
        ("all-reduce", 1),
    ]
    durations = {"all-gather": 3 * gather, "all-reduce": reduction}
    assert waiting_seconds(operations, collectives, lambda one: durations[one.kind]) == waits


def test_loops_count_by_their_turns():
    def cycles(text: str) -> float:
        return sum(operation.seconds for operation in read_schedule(text, cycles_of))

    assert cycles(PROGRAM.replace('{"n":"3"}', '{"n":"8"}')) == 8 * 10 + 107
    assert cycles(PROGRAM.replace("known_trip_count", "other")) == 10 + 107  # of unknown length
