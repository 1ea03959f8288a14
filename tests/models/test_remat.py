"""Rematerialised blocks: the same numbers with and without, and less to keep for the gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax.models import abstract_model, override, preset
from medvlsm_jax.models.bert import Bert, BertConfig
from medvlsm_jax.models.clip import CLIPText, CLIPTextConfig
from medvlsm_jax.models.layers import REMAT_POLICIES
from medvlsm_jax.models.parameters import merge_model, split_model
from medvlsm_jax.models.resnet import CLIPResNet, ResNet, ResNetConfig
from medvlsm_jax.models.vit import ViT, ViTConfig

FLOAT32 = jnp.dtype("float32")
DEPTH = 2
TOKENS = 5  # of a ViT's image: no other axis is as long
TRANSFORMER: dict[str, Any] = {"width": 8, "depth": DEPTH, "heads": 2, "mlp_width": 24}
SENTENCES = jnp.array([[2, 5, 8, 3], [2, 7, 3, 0]])
MASK = (SENTENCES > 0).astype(jnp.int32)
IMAGES = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


def vit(remat: str) -> ViT:
    return ViT(ViTConfig(patch_size=16, grid=2, **TRANSFORMER), 4, remat=remat, dtype=FLOAT32, rngs=nnx.Rngs(0))


def clip_text(remat: str) -> CLIPText:
    config = CLIPTextConfig(vocab_size=10, context_length=8, eos_token_id=3, **TRANSFORMER)
    return CLIPText(config, 4, remat=remat, dtype=FLOAT32, rngs=nnx.Rngs(0))


def bert(remat: str) -> Bert:
    config = BertConfig(vocab_size=10, max_positions=8, projection_width=6, dropout=0.5, **TRANSFORMER)
    return Bert(config, 4, remat=remat, dtype=FLOAT32, rngs=nnx.Rngs(0))


def resnet(made_by, remat: str) -> ResNet | CLIPResNet:
    """Three bottlenecks: of stride 1 with a shortcut, of stride 2, and without either."""
    return made_by(ResNetConfig(layers=(1, 2, 0, 0), width=4), remat=remat, dtype=FLOAT32, rngs=nnx.Rngs(0))


# How a tower is made, and the outputs of its blocks.
TOWERS = {
    "vit": (vit, lambda tower, rngs: tower.hidden_states(IMAGES, DEPTH)),
    "clip_text": (clip_text, lambda tower, rngs: tower.hidden_states(SENTENCES, MASK)),
    "bert": (bert, lambda tower, rngs: tower.hidden_states(SENTENCES, MASK, rngs=rngs)),
    "resnet": (functools.partial(resnet, ResNet), lambda tower, rngs: tower(IMAGES)),
    "clip_resnet": (functools.partial(resnet, CLIPResNet), lambda tower, rngs: tower(IMAGES)),
}


def step_of(name: str, remat: str):
    """Parameters, statistics, and a function of them: a loss, all outputs, new statistics, the next random number."""
    make, states_of = TOWERS[name]
    model = make(remat)
    model.train()
    graphdef, params, stats = split_model(model)

    def step(params, stats):
        tower, rngs = merge_model(graphdef, {**params, **stats}), nnx.Rngs(1)
        states = states_of(tower, rngs)
        loss = sum(jnp.sin(3 * state).mean() for state in states)
        return loss, (states, split_model(tower)[2], jax.random.key_data(rngs.dropout()))

    return step, params, stats


@functools.cache
def results(name: str, remat: str):
    step, params, stats = step_of(name, remat)
    return jax.jit(jax.value_and_grad(step, has_aux=True))(params, stats)


def assert_trees_close(found, expected, floor: float = 0.0) -> None:
    """Fails where leaves differ by more than 1e-5 of their largest value, and integers at all."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(ours, theirs, 0.0 if jnp.issubdtype(theirs.dtype, jnp.integer) else 1e-5, floor=floor)


@pytest.mark.parametrize(
    ("name", "remat"), [("vit", "dots"), ("clip_text", "full"), ("bert", "dots"), ("bert", "full"), ("resnet", "full")]
)
def test_every_number_is_the_same(name, remat):
    """Outputs of every block, gradients, statistics, and how many random numbers were drawn."""
    (values, gradients), (expected_values, expected_gradients) = results(name, remat), results(name, "none")
    assert_trees_close(values, expected_values)
    # A bias of keys has no influence: its gradient is a rounding error of the others.
    largest = max(float(np.abs(gradient).max()) for gradient in expected_gradients.values())
    assert_trees_close(gradients, expected_gradients, floor=largest)


def in_evaluation(name: str, remat: str) -> list[jax.Array]:
    make, states_of = TOWERS[name]
    return nnx.jit(lambda tower: states_of(tower, None))(make(remat))


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_evaluation_is_the_same(name):
    assert_trees_close(in_evaluation(name, "full"), in_evaluation(name, "none"))


def test_dropout_acts_in_rematerialised_blocks():
    (_, (dropped, _, number)), _ = results("bert", "full")
    whole = in_evaluation("bert", "full")
    assert all(np.abs(ours - theirs).max() > 0.1 for ours, theirs in zip(dropped, whole, strict=True))
    assert not np.array_equal(number, jax.random.key_data(nnx.Rngs(1).dropout()))


def test_statistics_move_in_rematerialised_blocks():
    _, _, before = step_of("resnet", "full")
    (_, (_, after, _)), _ = results("resnet", "full")
    assert all(np.abs(after[name] - before[name]).max() > 1e-4 for name in before)


def test_a_model_can_be_called_outside_jit():
    """Its statistics move there, too."""
    model = resnet(ResNet, "full")
    model.train()
    states = model(IMAGES)
    (_, (expected, stats, _)), _ = results("resnet", "none")
    assert_trees_close((states, split_model(model)[2]), (expected, stats))


def kept(name: str, remat: str) -> list[tuple[int, ...]]:
    """Shapes of what the forward pass keeps for the gradient."""
    step, params, stats = step_of(name, remat)
    _, backward, _ = jax.eval_shape(lambda params: jax.vjp(lambda p: step(p, stats), params, has_aux=True), params)
    return [leaf.shape for leaf in jax.tree.leaves(backward)]


def numbers(shapes: list[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


@pytest.mark.parametrize("name", TOWERS)
def test_each_policy_keeps_less_than_the_one_before(name):
    none, dots, full = (numbers(kept(name, remat)) for remat in REMAT_POLICIES)
    assert full < dots < none


def test_dots_keep_the_products_of_dense_layers_and_no_attention_scores():
    def has_scores(shapes: list[tuple[int, ...]]) -> bool:
        return any(shape.count(TOKENS) == 2 for shape in shapes)

    hidden = (2 * TOKENS, TRANSFORMER["mlp_width"])
    dots = kept("vit", "dots")
    assert has_scores(kept("vit", "none"))
    assert not has_scores(dots)
    assert dots.count(hidden) == DEPTH
    assert hidden not in kept("vit", "full")


@pytest.mark.parametrize(
    ("name", "towers"),
    [
        ("clipseg_tiny", {"text", "vision"}),
        ("biomedclipseg_tiny", {"text", "vision"}),
        ("cris_tiny", {"text", "vision"}),
        ("unet_tiny", {"resnet"}),
        ("deeplabv3plus_tiny", {"resnet"}),
    ],
)
def test_the_policy_of_a_config_reaches_every_tower(name, towers):
    model = abstract_model(override(preset(name)[1], {"remat": "dots"}))
    found = {path[0]: module.remat for path, module in nnx.iter_modules(model) if hasattr(module, "remat")}
    assert found == dict.fromkeys(towers, "dots")
