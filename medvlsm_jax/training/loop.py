"""The order of a training run: evaluate, save, next batch, step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

from medvlsm_jax.scoring.validation import Interrupted
from medvlsm_jax.training.progress import Timetable
from medvlsm_jax.training.reports import Report

State = TypeVar("State")  # whatever a step turns into the next one


class Outcome(NamedTuple):
    """How a loop ended: the last step, and whether because somebody asked it to."""

    step: int
    is_stopped: bool


def loop(
    state: State,
    step: int,
    timetable: Timetable,
    *,
    validate: Callable[[int, State], float],
    save: Callable[[int, State, float | None], None],
    next_batch: Callable[[], Any],
    take_step: Callable[[int, State, Any], tuple[State, dict[str, Any]]],
    report: Report,
    is_asked_to_stop: Callable[[], bool],
) -> Outcome:
    """Trains until the timetable says that it is over, or somebody asks to stop.

    What is saved at a step is the state that was validated there, and the input that is still to come is exactly what
    follows it: so a run that is killed at any moment, and continued from what it saved, is the unbroken one.

    Args:
        state: that the training goes on from.
        step: its number, steps taken.
        timetable: what is due after which step.
        validate: the score of a state at a step; raises Interrupted when it was given up.
        save: keeps a state, with its score where it was validated.
        next_batch: the batch of the next step.
        take_step: from a step, its state and its batch to the next state and what is told of it; the old state must not
            be used again.
        report: tells, and raises when what it is told is not finite.
        is_asked_to_stop: is asked once after each step.

    Raises:
        UserError: the training diverged, or a checkpoint could not be written.
    """
    saved_step, is_stopped = step, False
    while True:
        score = None
        if timetable.is_validation_due(step) and not is_stopped:
            report.check()
            try:
                score = validate(step, state)
            except Interrupted:
                is_stopped = True
            report.restart()

        is_last = is_stopped or timetable.is_over(step)
        is_new = step > saved_step or score is not None
        if is_new and (is_last or timetable.is_checkpoint_due(step)):
            report.check()  # nothing that is not finite is saved
            save(step, state, score)
            saved_step = step
        if is_last:
            return Outcome(step, is_stopped)

        with report.waiting():
            batch = next_batch()
        report.before(step)
        with jax.transfer_guard("disallow"):  # what is not on the devices by now would hold every step up
            state, values = take_step(step, state, batch)
        step += 1
        report.after(step, values, ends_epoch=timetable.ends_epoch(step))
        is_stopped = is_asked_to_stop()
