"""The update rule and the plateau rule against PyTorch's, early stopping by hand, and what is never trained."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.training.optimizer import EarlyStopping, ReduceOnPlateau, adamw, schedule_factor, split_trained

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


# --- Updates ----------------------------------------------------------------------------------------------------------


def test_updates_are_pytorchs_adamw_after_clipping_the_global_norm():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 7), "bias": (7,), "scale": (3, 2, 2)}
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in params.items()}
    reference = torch.optim.AdamW(theirs.values(), weight_decay=0.1)
    optimizer = adamw(weight_decay=0.1, max_grad_norm=0.5)
    ours, state = params, optimizer.init(params)

    for step in range(12):
        rate = 0.05 / (1 + step)
        size = 10.0 ** (step % 4 - 3)  # norms from 0.01, left alone, to 10, clipped
        grads = {name: np.float32(size) * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        updates, state = optimizer.update(grads, state, ours)
        ours = jax.tree.map(lambda p, u, rate=rate: p - rate * u, ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_weight_decay_shrinks_a_parameter_without_a_gradient():
    optimizer = adamw(weight_decay=0.1, max_grad_norm=1.0)
    params = {"x": jnp.array([2.0, -4.0])}
    updates, _ = optimizer.update({"x": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["x"], [0.2, -0.4], rtol=1e-6)


# --- What is trained --------------------------------------------------------------------------------------------------

UNUSED = ("logit_scale", "vision.post_norm.", "vision.projection.", "vision.blocks.1.")
ENCODER = ("logit_scale", "text.", "vision.")


def split(network, **freezing: bool) -> tuple[set[str], set[str]]:
    options = {"freeze_encoder": False, "freeze_decoder": False} | freezing
    trained, frozen = split_trained(network.model, network.params, **options)
    assert {**trained, **frozen} == network.params
    return set(trained), set(frozen)


def test_parameters_without_influence_on_the_logits_are_never_trained(network):
    trained, frozen = split(network)
    assert frozen == {name for name in network.params if name.startswith(UNUSED)}
    assert {name.split(".")[0] for name in trained} == {"text", "vision", "decoder"}


def test_a_frozen_encoder_leaves_the_decoder_to_train(network):
    trained, frozen = split(network, freeze_encoder=True)
    assert frozen == {name for name in network.params if name.startswith(ENCODER)}
    assert all(name.startswith("decoder.") for name in trained)


def test_a_frozen_decoder_leaves_the_used_encoder_to_train(network):
    trained, _ = split(network, freeze_decoder=True)
    assert trained == {name for name in network.params if name.startswith(("text.", "vision."))} - {
        name for name in network.params if name.startswith(UNUSED)
    }


def test_freezing_both_leaves_nothing(network):
    assert split(network, freeze_encoder=True, freeze_decoder=True)[0] == set()


def test_the_optimizer_holds_two_moments_of_what_is_trained_and_none_of_the_rest(network):
    trained, _ = split_trained(network.model, network.params, freeze_encoder=True, freeze_decoder=False)
    state = jax.eval_shape(adamw(weight_decay=0.0, max_grad_norm=1.0).init, trained)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape)
    assert shapes == sorted(2 * [array.shape for array in trained.values() if array.shape])
