"""Names are found under whatever trainers put before them; copies and strangers are left out, and that is said."""

import numpy as np
import pytest
from flax import nnx

from medvlsm_jax import create_model
from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import from_torch, to_torch
from medvlsm_jax.weights.names import fit_names


@pytest.fixture(scope="module")
def seeded() -> dict[str, np.ndarray]:
    """The names and shapes of a U-Net's checkpoint."""
    return to_torch(create_model("unet_tiny", rngs=nnx.Rngs(0)))


@pytest.fixture
def state_dict(seeded) -> dict[str, np.ndarray]:
    return dict(seeded)


def under(prefix: str, state_dict) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in state_dict.items()}


def counted(state_dict) -> dict[str, np.ndarray]:
    """Without the counters that no parameter of ours stands for."""
    return {name: array for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}


PREFIXES = ("", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net._orig_mod.", "module.net.model.")
PREFIXES += ("_fsdp_wrapped_module.", "ema_model.module.", "segmentor.backbone_and_head.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_found(state_dict, prefix):
    fitted = fit_names(under(prefix, state_dict), "unet")
    assert set(fitted.arrays) == set(counted(state_dict))
    assert not fitted.report()


def test_wrappers_within_names_are_taken_out(state_dict):
    wrapped = {name.replace("encoder.", "encoder._orig_mod."): array for name, array in state_dict.items()}
    wrapped = {name.replace(".conv1.", "._checkpoint_wrapped_module.conv1."): x for name, x in wrapped.items()}
    assert set(fit_names(under("net.", wrapped), "unet").arrays) == set(counted(state_dict))


def test_what_lies_outside_is_left_out_and_said(state_dict):
    extra = {"loss.pos_weight": np.ones(1, np.float32), "n_averaged": np.array(3)}
    with pytest.warns(UserWarning, match=r"leaves out 2 \(loss\.pos_weight, n_averaged\), which lie outside net\."):
        from_torch("unet_tiny", under("net.", state_dict) | extra)


@pytest.mark.parametrize(
    ("taken", "others"),
    [("online_model.", "ema_model."), ("", "teacher."), ("net.", "net_ema."), ("student.net.", "teacher.net.")],
)
def test_of_two_copies_the_plain_one_is_taken_and_the_other_named(state_dict, taken, others):
    average = {name: array + 1 for name, array in state_dict.items()}
    fitted = fit_names(under(others, average) | under(taken, state_dict), "unet")
    name = "encoder.conv1.weight"
    np.testing.assert_array_equal(fitted.arrays[name], state_dict[name])
    assert set(fitted.arrays) == set(counted(state_dict))
    assert f"takes the copy under {taken or 'no prefix'}, and leaves out {others}" in fitted.report()


def test_a_few_mismatches_are_all_listed(state_dict):
    name = "segmentation_head.0.bias"
    del state_dict[name]
    with pytest.raises(UserError, match=rf"1 names differ:\n  missing {name} \(1,\)"):
        from_torch("unet_tiny", state_dict)


def test_many_are_summed_up_in_one_line_that_says_whose_they_look_like(state_dict):
    with pytest.raises(UserError) as error:
        from_torch("cris_tiny", under("net.", state_dict))
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 500
    assert "names differ: missing" in message
    assert "It looks like a unet's" in message


def test_a_decoder_in_another_place_is_no_pretrained_encoder(state_dict):
    """An encoder alone would start the decoder at random."""
    parted = {("net." if name.startswith("encoder.") else "head.") + name: array for name, array in state_dict.items()}
    with pytest.raises(UserError, match=r"not a checkpoint of unet, .* missing"):
        from_torch("unet_tiny", parted)


def test_weights_that_are_not_finite_are_named(state_dict):
    state_dict["segmentation_head.0.weight"] = state_dict["segmentation_head.0.weight"] * np.nan
    with pytest.raises(UserError, match=r"its segmentation_head\.0\.weight holds \d+ values that are not finite"):
        from_torch("unet_tiny", state_dict)
