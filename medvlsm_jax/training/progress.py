"""When the learning rate falls, when training ends, and what else a run remembers besides its arrays."""

import dataclasses
import math
from typing import Any

import ml_collections

from medvlsm_jax.errors import UserError


def schedule_factor(schedule: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """What the learning rate is multiplied by at a step: a linear warm-up, then constant or half a cosine down to 0.

    The plateau rule acts besides it. Raises UserError for another schedule than `constant` or `cosine`.
    """
    if schedule not in ("constant", "cosine"):
        raise UserError(f"config.schedule={schedule!r}: choose constant or cosine")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps))


@dataclasses.dataclass
class ReduceOnPlateau:
    """Lowers the learning rate when a value stops falling: torch.optim.lr_scheduler.ReduceLROnPlateau's rule.

    A value is better if it lies below the best by a relative `threshold`; more than `patience` evaluations without a
    better one multiply the learning rate by `factor`, unless that changes it by no more than torch's eps of 1e-8.
    """

    initial: float  # the config's learning rate; `scale` is what the rule has made of it
    factor: float = 0.1
    patience: int = 5
    threshold: float = 1e-4
    scale: float = 1.0
    best: float = math.inf
    bad: int = 0

    @property
    def learning_rate(self) -> float:
        """The current one."""
        return self.initial * self.scale

    def update(self, value: float) -> None:
        """Takes one evaluation's value."""
        if value < self.best * (1 - self.threshold):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            if self.learning_rate * (1 - self.factor) > 1e-8:
                self.scale *= self.factor
            self.bad = 0


@dataclasses.dataclass
class EarlyStopping:
    """Ends training when a score stops rising: Lightning's EarlyStopping with mode="max".

    A score is better if it exceeds the best by `min_delta`; `patience` evaluations without a better one end training,
    though not before `min_epochs`. The patience of 0 never ends it.
    """

    patience: int = 20
    min_delta: float = 1e-4
    min_epochs: int = 10
    best: float = -math.inf
    bad: int = 0

    def update(self, score: float) -> None:
        """Takes one evaluation's score."""
        if score - self.min_delta > self.best:
            self.best, self.bad = score, 0
        else:
            self.bad += 1

    def should_stop(self, epoch: int) -> bool:
        """Whether training ends after this many epochs."""
        return 0 < self.patience <= self.bad and epoch >= self.min_epochs


@dataclasses.dataclass
class RunProgress:
    """What a run remembers besides its arrays: the learning-rate rule, the stopping rule and the best score."""

    plateau: ReduceOnPlateau
    early_stopping: EarlyStopping
    best_score: float | None = None
    validated: int = 0  # the step of the last validation
    log: dict[str, int] = dataclasses.field(default_factory=dict)  # bytes of each log file up to the checkpoint

    def update(self, step: int, loss: float, score: float) -> None:
        """Takes the results of one validation."""
        self.validated = step
        self.plateau.update(loss)
        self.early_stopping.update(score)
        self.best_score = score if self.best_score is None else max(self.best_score, score)

    def to_json(self) -> dict[str, Any]:
        """The counters as json values; infinities, which json lacks, are left out."""

        def finite(rule: Any, *names: str) -> dict[str, float]:
            return {name: getattr(rule, name) for name in names if math.isfinite(getattr(rule, name))}

        return {
            "plateau": finite(self.plateau, "scale", "best", "bad"),
            "early_stopping": finite(self.early_stopping, "best", "bad"),
            "best_score": self.best_score,
            "validated": self.validated,
            "log": self.log,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes the counters back."""
        self.plateau = dataclasses.replace(self.plateau, **content["plateau"])
        self.early_stopping = dataclasses.replace(self.early_stopping, **content["early_stopping"])
        self.best_score, self.validated, self.log = (content[name] for name in ("best_score", "validated", "log"))


@dataclasses.dataclass(frozen=True)
class Timetable:
    """What is due after which step.

    Attributes:
        epoch_steps: steps of an epoch.
        last_step: the end, unless `progress` ends it earlier.
        checkpoint_every: steps between checkpoints besides those at the end of each epoch; 0: none.
        has_validation: whether every epoch is validated.
        progress: of the run, which moves on while this is asked.
    """

    epoch_steps: int
    last_step: int
    checkpoint_every: int
    has_validation: bool
    progress: RunProgress

    def is_over(self, step: int) -> bool:
        """Whether no step follows."""
        return step >= self.last_step or self.progress.early_stopping.should_stop(step // self.epoch_steps)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends here."""
        return step % self.epoch_steps == 0

    def is_validation_due(self, step: int) -> bool:
        """Whether an epoch ends here that was not validated yet."""
        return self.has_validation and step > self.progress.validated and self.ends_epoch(step)

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether the state is to be kept."""
        is_between = self.checkpoint_every > 0 and step % self.checkpoint_every == 0
        return self.ends_epoch(step) or is_between


def find_learning_rate(config: ml_collections.ConfigDict, progress: RunProgress, step: int, total_steps: int) -> float:
    """The learning rate of a step: what the plateau rule has left of it, times the schedule's factor."""
    factor = schedule_factor(config.schedule, step, total_steps, config.warmup_steps)
    return progress.plateau.learning_rate * factor


def new_progress(config: ml_collections.ConfigDict) -> RunProgress:
    """The counters of a run that has not started."""
    return RunProgress(ReduceOnPlateau(config.learning_rate, **config.plateau), EarlyStopping(**config.early_stopping))
