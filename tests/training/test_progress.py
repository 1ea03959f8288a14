"""The plateau rule against PyTorch's, schedules and early stopping by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.training.progress import EarlyStopping, ReduceOnPlateau, schedule_factor
from medvlsm_jax.training.reports import warm_up_warning
from medvlsm_jax.training.step import adamw

# --- The learning rate ------------------------------------------------------------------------------------------------


def learning_rates(rule: ReduceOnPlateau, values: list[float]) -> list[float]:
    """The learning rate after each value."""
    rates = []
    for value in values:
        rule.update(value)
        rates.append(rule.learning_rate)
    return rates


def test_the_learning_rate_falls_after_more_than_patience_evaluations_without_a_better_one():
    rule = ReduceOnPlateau(1.0, factor=0.1, patience=2)
    assert learning_rates(rule, [1.0, 1.0, 1.0]) == [1.0, 1.0, 1.0]
    assert learning_rates(rule, [1.0, 1.0, 1.0]) == [0.1, 0.1, 0.1]


def test_a_better_value_starts_the_patience_anew():
    rule = ReduceOnPlateau(1.0, patience=1)
    assert learning_rates(rule, [1.0, 1.1, 0.5, 0.6, 0.6]) == [1.0, 1.0, 1.0, 1.0, 0.1]


def test_a_value_within_the_relative_threshold_is_no_better():
    rule = ReduceOnPlateau(1.0, patience=0, threshold=1e-2)
    assert learning_rates(rule, [100.0, 99.5]) == [1.0, 0.1]
    assert learning_rates(rule, [98.9]) == [0.1]


def test_a_value_that_is_no_number_is_no_better():
    assert learning_rates(ReduceOnPlateau(1.0, patience=0), [1.0, math.nan]) == [1.0, 0.1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("factor", "patience", "threshold"), [(0.1, 5, 1e-4), (0.5, 0, 1e-2), (0.3, 2, 0.0)])
def test_the_plateau_rule_is_pytorchs_step_by_step(seed, factor, patience, threshold):
    torch = pytest.importorskip("torch")
    rule = {"factor": factor, "patience": patience, "threshold": threshold}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **rule)
    ours = ReduceOnPlateau(1.0, **rule)
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.arange(80) / 8) + rng.normal(0, 0.02, 80)
    for value in np.round(falling, 3).tolist():  # rounded, so that some values repeat
        ours.update(value)
        theirs.step(value)
        expected = optimizer.param_groups[0]["lr"]
        if expected > 1e-7:  # PyTorch stops lowering at steps below its eps of 1e-8
            assert ours.learning_rate == pytest.approx(expected, rel=1e-12)
    assert ours.learning_rate < 1.0


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("cosine", 0, [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0]),
        ("cosine", 2, [0.5, 1, 1, 0.5, 0]),
        ("cosine", 9, [1 / 9, 2 / 9, 3 / 9, 4 / 9, 5 / 9]),
    ],
)
def test_a_schedule_warms_up_and_ends_at_zero_if_it_is_a_cosine(schedule, warmup, factors):
    assert [schedule_factor(schedule, step, 4, warmup) for step in range(5)] == pytest.approx(factors)


def test_an_unknown_schedule_names_the_field():
    with pytest.raises(UserError, match=r"config\.schedule='linear': choose constant or cosine"):
        schedule_factor("linear", 0, 10, 0)


# --- Early stopping ---------------------------------------------------------------------------------------------------


def stops_after(rule: EarlyStopping, scores: list[float]) -> int | None:
    """The epoch after which training ends."""
    for epoch, score in enumerate(scores, start=1):
        rule.update(score)
        if rule.should_stop(epoch):
            return epoch
    return None


@pytest.mark.parametrize(
    ("patience", "min_epochs", "scores", "stop"),
    [
        (2, 0, [0.1, 0.2, 0.2, 0.2, 0.9], 4),
        (2, 0, [0.1, 0.2, 0.1, 0.3, 0.1, 0.1], 6),
        (2, 0, [0.1, 0.2, 0.3, 0.4], None),
        (1, 0, [0.5, 0.5 + 5e-5], 2),  # within min_delta
        (1, 0, [0.5, 0.5 + 2e-4], None),
        (1, 4, [0.5, 0.4, 0.4, 0.4, 0.4], 4),
        (1, 4, [0.5, 0.4, 0.4, 0.6, 0.7], None),
        (0, 0, [0.5] * 50, None),
    ],
)
def test_training_ends_after_patience_scores_without_a_better_one(patience, min_epochs, scores, stop):
    assert stops_after(EarlyStopping(patience, min_delta=1e-4, min_epochs=min_epochs), scores) == stop


def test_nothing_stops_before_the_first_score():
    assert not EarlyStopping(patience=1, min_epochs=0).should_stop(0)


def test_a_warm_up_that_is_longer_than_the_run_is_told():
    assert warm_up_warning(0, 4) == warm_up_warning(3, 4) == ""
    assert warm_up_warning(4, 4).startswith("warning: a warm-up of 4 steps: the learning rate does not reach")


def test_a_bound_of_0_clips_no_gradient_and_continues_a_run_that_was_clipped():
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.array([1e3, -1e3, 1e3])}
    states = [adamw(weight_decay=0.0, max_grad_norm=bound).init(params) for bound in (0.0, 0.5)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    updates, state = adamw(weight_decay=0.0, max_grad_norm=0.0).update(grads, states[0], params)
    np.testing.assert_allclose(updates["w"], [1, -1, 1], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["w"], 0.1 * grads["w"], rtol=1e-6)
