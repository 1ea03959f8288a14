"""What is trained, and what never is."""

import jax

from medvlsm_jax.training.freezing import split_trained
from medvlsm_jax.training.step import adamw

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
