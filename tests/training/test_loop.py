"""The order of a run on a state that is an integer: what is saved when, how it ends, and that no kill changes it."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.scoring.validation import Interrupted
from medvlsm_jax.training.loop import Outcome, loop
from medvlsm_jax.training.progress import EarlyStopping, ReduceOnPlateau, RunProgress, Timetable
from medvlsm_jax.training.reports import Report

EPOCH = 4  # steps


class Killed(BaseException):
    """The power fails."""


class Lines(Report):
    """A report that keeps what it is told and, on request, finds a step that is not finite."""

    def __init__(self, run: "Steps"):
        self.run = run

    def check(self) -> None:
        self.run.event("check")
        if self.run.diverges_at and any(step >= self.run.diverges_at for step in self.run.taken):
            raise UserError("diverged")

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def before(self, step: int) -> None:
        self.run.event(f"before {step}")

    def after(self, step: int, values: dict[str, Any], *, ends_epoch: bool) -> None:
        self.run.event(f"after {step}")
        self.run.log.append((step, values["batch"], ends_epoch))

    def restart(self) -> None:
        self.run.event("restart")


@dataclasses.dataclass
class Steps:
    """A run whose state is the sum of its batches, whose batch n is n squared, and whose disk survives kills."""

    last_step: int = 10
    checkpoint_every: int = 0
    has_validation: bool = True
    scores: Callable[[int], float] = lambda step: step / 100
    early_stopping: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)
    stop_at: int = 0  # somebody asks after this step
    interrupt_at: int = 0  # somebody asks within the validation of this step
    diverges_at: int = 0
    kill_at: int = -1  # the number of the event at which the power fails; every life has its own

    def __post_init__(self):
        self.disk: dict[str, Any] = {"step": 0, "state": 0, "log": [], "score": None}
        self.events: list[str] = []

    def event(self, name: str) -> None:
        if len(self.events) == self.kill_at:
            raise Killed
        self.events.append(name)

    def new_progress(self) -> RunProgress:
        progress = RunProgress(ReduceOnPlateau(1.0), dataclasses.replace(self.early_stopping))
        if "progress" in self.disk:
            progress.restore(self.disk["progress"])
        return progress

    def live(self, take_step: Any = None) -> Outcome:
        """Goes on from the disk until the end, or until it is killed."""
        self.events, self.taken = [], []
        self.log = list(self.disk["log"])
        progress, first_step = self.new_progress(), self.disk["step"]
        inputs = iter(range(first_step, 10**6))

        def validate(step: int, state: int) -> float:
            self.event(f"validate {step}")
            if step == self.interrupt_at:
                raise Interrupted
            score = self.scores(step)
            progress.update(step, -score, score)
            self.log.append((step, "score", score))
            return score

        def save(step: int, state: int, score: float | None) -> None:
            self.event(f"save {step}")
            saved = {"step": step, "state": state, "log": list(self.log), "score": score}
            self.disk = saved | {"progress": progress.to_json()}

        def next_batch() -> int:
            self.event("batch")
            return next(inputs) ** 2

        def step_of(step: int, state: int, batch: int) -> tuple[int, dict[str, Any]]:
            self.event(f"step {step}")
            self.taken.append(step + 1)
            return state + batch, {"batch": batch}

        return loop(
            self.disk["state"],
            first_step,
            Timetable(EPOCH, self.last_step, self.checkpoint_every, self.has_validation, progress),
            validate=validate,
            save=save,
            next_batch=next_batch,
            take_step=take_step or step_of,
            report=Lines(self),
            is_asked_to_stop=lambda: bool(self.taken) and self.taken[-1] == self.stop_at,
        )

    def saves(self) -> list[int]:
        return [int(event.split()[1]) for event in self.events if event.startswith("save")]


def unbroken(**options: Any) -> dict[str, Any]:
    """What the disk holds at the end of a run."""
    run = Steps(**options)
    run.live()
    return run.disk


def test_an_epoch_is_evaluated_saved_and_then_the_next_batch_is_read():
    run = Steps(last_step=5)
    assert run.live() == Outcome(5, False)
    at = run.events.index("after 4")
    expected = [
        "after 4",
        "check",
        "validate 4",
        "restart",
        "check",
        "save 4",
        "batch",
        "before 4",
        "step 4",
        "after 5",
    ]
    assert run.events[at : at + len(expected)] == expected
    assert run.disk["state"] == sum(n**2 for n in range(5))


def test_a_state_is_kept_after_each_epoch_at_the_end_and_every_so_many_steps():
    run = Steps(last_step=10)
    run.live()
    assert run.saves() == [4, 8, 10]
    run = Steps(last_step=10, checkpoint_every=3)
    run.live()
    assert run.saves() == [3, 4, 6, 8, 9, 10]


def test_without_a_validation_set_no_state_has_a_score():
    run = Steps(last_step=4, has_validation=False)
    assert run.live() == Outcome(4, False)
    assert not any(event.startswith("validate") for event in run.events)
    assert run.disk["score"] is None


def test_a_run_ends_early_when_its_score_no_longer_rises_and_stays_ended():
    run = Steps(last_step=40, scores=lambda _: 0.5, early_stopping=EarlyStopping(patience=2, min_epochs=1))
    assert run.live() == Outcome(12, False)
    assert run.live() == Outcome(12, False)
    assert run.events == []


def test_a_run_that_is_bounded_goes_on_when_it_is_given_more_steps():
    run = Steps(last_step=3)
    assert run.live() == Outcome(3, False)
    run.last_step = 10
    assert run.live() == Outcome(10, False)
    assert run.disk == unbroken(last_step=10)


@pytest.mark.parametrize("stop_at", range(1, 10))
def test_a_run_that_is_asked_to_stop_saves_and_continues_exactly(stop_at):
    run = Steps(stop_at=stop_at)
    assert run.live() == Outcome(stop_at, True)
    assert run.disk["step"] == stop_at
    assert f"validate {stop_at}" not in run.events  # that would take its time
    run.stop_at = 0
    assert run.live() == Outcome(10, False)
    assert run.disk == unbroken()


def test_a_validation_that_is_given_up_leaves_no_score_and_is_made_when_the_run_continues():
    run = Steps(interrupt_at=8)
    assert run.live() == Outcome(8, True)
    assert (run.disk["step"], run.disk["score"]) == (8, None)
    run.interrupt_at = 0
    assert run.live() == Outcome(10, False)
    assert run.disk == unbroken()


@pytest.mark.parametrize("checkpoint_every", [0, 3])
def test_a_run_that_is_killed_at_any_moment_and_continued_is_the_unbroken_one(checkpoint_every):
    options = {"checkpoint_every": checkpoint_every}
    whole = Steps(**options)
    whole.live()
    for moment in range(len(whole.events)):
        run = Steps(kill_at=moment, **options)
        with pytest.raises(Killed):
            run.live()
        run.kill_at = -1
        assert run.live() == Outcome(10, False), moment
        assert run.disk == whole.disk, moment


def test_a_run_that_is_killed_in_each_of_its_lives_comes_to_its_end():
    run, lives = Steps(checkpoint_every=1), 0
    while True:
        run.kill_at, lives = 14, lives + 1
        with contextlib.suppress(Killed):
            run.live()
            break
    assert lives > 3
    assert run.disk == unbroken(checkpoint_every=1)


def test_nothing_is_saved_of_a_run_that_diverges():
    run = Steps(diverges_at=6, checkpoint_every=1)
    with pytest.raises(UserError, match="diverged"):
        run.live()
    assert run.saves() == [1, 2, 3, 4, 5]


def test_a_step_that_would_wait_for_a_number_from_the_host_is_an_error():
    add = jax.jit(lambda state, batch: state + batch)

    def take_step(step: int, state: Any, batch: int) -> tuple[Any, dict[str, Any]]:
        return add(state, np.float32(batch)), {"batch": batch}

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        Steps().live(take_step)
