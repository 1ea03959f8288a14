"""The image-only networks' checkpoints, whole and of the encoder alone, and a live comparison layer by layer."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_identical, relative_error
from flax import nnx
from seeded_weights import seeded_tensor

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS, abstract_model, override
from medvlsm_jax.models.network import Network
from medvlsm_jax.weights import from_torch, to_torch
from medvlsm_jax.weights.convert import is_encoder_alone, torch_leaf, torch_shape
from medvlsm_jax.weights.names import fit_names
from medvlsm_jax.weights.reference import find_reference
from medvlsm_jax.weights.tables import TABLES

CNNS = ["unet", "unetplusplus", "deeplabv3plus"]
TOLERANCE = 1e-5  # of a layer's largest absolute value
ENCODER = "encoder."


@functools.cache
def tiny_state_dict(network: str, **overrides) -> dict[str, np.ndarray]:
    """A checkpoint of a tiny preset, in PyTorch's names and layouts; nobody changes it."""
    model = abstract_model(override(PRESETS[f"{network}_tiny"][1], overrides))
    state_dict = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        key, layout = torch_leaf(TABLES[network], path)
        state_dict[key] = seeded_tensor(key, torch_shape(leaf.shape, layout), "float32", seed=5)
        if key.endswith("running_var"):
            state_dict[key.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def bare_resnet(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder of a checkpoint as torchvision names it, classifier included."""
    arrays = {name.removeprefix(ENCODER): x for name, x in state_dict.items() if name.startswith(ENCODER)}
    width = 8 * 4 * arrays["conv1.weight"].shape[0]
    return arrays | {"fc.weight": np.zeros((1000, width), np.float32), "fc.bias": np.zeros(1000, np.float32)}


@pytest.fixture(params=CNNS)
def network(request) -> str:
    return request.param


@pytest.fixture
def state_dict(network) -> dict[str, np.ndarray]:
    return dict(tiny_state_dict(network))


@pytest.mark.parametrize("preset", ["{}", "{}_tiny"])
def test_sizes_are_read_from_the_arrays(network, state_dict, preset):
    """Also where the preset has others; for the full size see tests/parity/test_cnn.py."""
    model = from_torch(preset.format(network), state_dict, **({"image_size": 64} if preset == "{}" else {}))
    assert_identical(to_torch(model), state_dict)
    rates = {} if network != "deeplabv3plus" else {"atrous_rates": model.config.atrous_rates}
    assert model.config == override(PRESETS[f"{network}_tiny"][1], rates)


@pytest.mark.parametrize("wrapper", ["net.", "module.", "module.net."])
def test_wrappers_around_all_names_are_understood(network, state_dict, wrapper):
    wrapped = {wrapper + name: array for name, array in state_dict.items()}
    assert_identical(to_torch(from_torch(f"{network}_tiny", wrapped)), state_dict)


def test_checkpoints_without_counters_are_whole(network, state_dict):
    arrays = {name: array for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}
    assert_identical(to_torch(from_torch(f"{network}_tiny", arrays)), state_dict)


class TestClasses:
    def test_are_numbered_where_a_checkpoint_has_several(self, network):
        state_dict = tiny_state_dict(network, classes=("a", "b", "c"))
        model = from_torch(f"{network}_tiny", state_dict)
        assert model.config.classes == ("class_0", "class_1", "class_2")
        assert_identical(to_torch(model), state_dict)

    def test_are_none_where_it_has_one(self, network, state_dict):
        assert from_torch(f"{network}_tiny", state_dict).config.classes == ()

    @pytest.mark.parametrize("classes", [("polyp",), ("polyp", "foot ulcer")])
    def test_are_named_by_the_caller(self, network, classes):
        state_dict = tiny_state_dict(network, classes=classes)
        model = from_torch(f"{network}_tiny", state_dict, classes=classes)
        assert model.config.classes == classes
        assert_identical(to_torch(model), state_dict)

    def test_keep_a_presets_names_where_they_count_the_same(self, network):
        preset = override(PRESETS[f"{network}_tiny"][1], {"classes": ("a", "b")})
        for names, expected in ((("x", "y"), ("a", "b")), (("x",), ()), ("xyz", ("class_0", "class_1", "class_2"))):
            state_dict = tiny_state_dict(network, classes=names)
            assert TABLES[network].sizes(state_dict, preset)["classes"] == expected

    def test_must_be_as_many_as_the_checkpoint_has(self, network, state_dict):
        with pytest.raises(UserError, match=r"2 names differ:[\s\S]*segmentation_head.0.weight: \(1, "):
            from_torch(f"{network}_tiny", state_dict, classes=("polyp", "foot ulcer"))


class TestEncoderAlone:
    @pytest.mark.parametrize("wrapper", ["encoder.", "module.", "net.encoder."])
    def test_may_be_wrapped(self, wrapper):
        bare = bare_resnet(tiny_state_dict("unet"))
        wrapped = {wrapper + name: array for name, array in bare.items()}
        assert is_encoder_alone("unet_tiny", wrapped)
        assert_identical(fit_names(wrapped, "unet").arrays, fit_names(bare, "unet").arrays)

    def test_gives_a_random_decoder(self, network, state_dict):
        """`classes` are free then: there is no head that could contradict."""
        encoder = bare_resnet(state_dict)
        model = from_torch(f"{network}_tiny", encoder, classes=("polyp", "foot ulcer"))
        ours = to_torch(model)
        for name, array in state_dict.items():
            assert np.array_equal(ours[name], array) == name.startswith(ENCODER) or array.ndim == 0, name
        assert ours["segmentation_head.0.weight"].shape[0] == 2

    def test_the_decoder_follows_the_seed(self):
        encoder = bare_resnet(tiny_state_dict("unet"))
        first, same, other = (
            to_torch(from_torch("unet_tiny", encoder, **seed))["decoder.blocks.0.conv1.0.weight"]
            for seed in ({}, {"seed": 0}, {"seed": 1})
        )
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)

    def test_must_be_whole(self, network, state_dict):
        encoder = bare_resnet(state_dict)
        del encoder["layer2.0.bn2.running_var"], encoder["bn1.bias"]
        encoder["layer5.0.conv1.weight"] = np.zeros((2, 3), np.float32)
        with pytest.raises(UserError, match=f"not a checkpoint of {network}, 3 names differ") as error:
            from_torch(f"{network}_tiny", encoder)
        assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
            "missing encoder.bn1.bias (16,)",
            "missing encoder.layer2.0.bn2.running_var (32,)",
            "unexpected layer5.0.conv1.weight (2, 3)",
        ]

    def test_tells_its_sizes(self):
        encoder, tiny = bare_resnet(tiny_state_dict("unet")), PRESETS["unet_tiny"][1]
        names = ("polyp", "foot ulcer")
        model = from_torch("unet", encoder, decoder_channels=tiny.decoder_channels, image_size=64, classes=names)
        assert model.config == override(tiny, {"classes": names})


def test_a_decoder_with_a_hole_is_refused(network, state_dict):
    """It is no encoder alone: what is missing does not start random."""
    lost = [name for name in state_dict if name.startswith("decoder.") and not name.endswith("num_batches_tracked")][
        -4:
    ]
    for name in lost:
        del state_dict[name]
    with pytest.raises(UserError, match="4 names differ") as error:
        from_torch(f"{network}_tiny", state_dict)
    assert all(f"missing {name} (" in str(error.value) for name in lost)


def test_shapes_in_errors_are_pytorchs():
    state_dict = dict(tiny_state_dict("deeplabv3plus"))
    name = "decoder.aspp.0.convs.2.0.0.weight"
    state_dict[name] = state_dict[name].transpose(2, 3, 1, 0)
    with pytest.raises(
        UserError, match=r"misshaped decoder.aspp.0.convs.2.0.0.weight: \(3, 3, 1, 512\) where \(512, 1"
    ):
        from_torch("deeplabv3plus_tiny", state_dict)


@pytest.mark.parametrize("other", CNNS)
def test_another_networks_checkpoint_is_refused(network, state_dict, other):
    if other != network:
        with pytest.raises(
            UserError, match=rf"not a checkpoint of {other}, .*missing \d+ \(decoder\..* It looks like a {network}'s$"
        ):
            from_torch(f"{other}_tiny", state_dict)


def test_without_the_original_the_error_says_what_to_install(monkeypatch):
    pytest.importorskip("torch", reason="compares with PyTorch")
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    model = from_torch("unet_tiny", tiny_state_dict("unet"))
    with pytest.raises(UserError, match="pip install segmentation-models-pytorch"):
        find_reference(model).build(model)


def random_pixels(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((batch, height, width, 3)).astype(np.float32)


@pytest.mark.usefixtures("exact_matmul")
class TestLive:
    """With segmentation_models_pytorch itself; in the full sizes see tests/parity/test_cnn.py."""

    @pytest.fixture(autouse=True)
    def smp(self):
        pytest.importorskip("segmentation_models_pytorch", reason="compares with segmentation-models-pytorch")

    def differences(self, model: Network, pixels: np.ndarray) -> dict[str, float]:
        reference = find_reference(model)
        theirs = reference.their_outputs(reference.build(model), pixels)
        ours = reference.our_outputs(model, pixels)
        assert set(ours) == set(theirs)
        assert len(ours) > 8
        return {name: relative_error(ours[name], theirs[name]) for name in theirs}

    @pytest.mark.parametrize("options", [{"output_stride": 8}, {"atrous_rates": (2, 7, 1), "classes": ("a", "b")}])
    def test_options_mean_what_they_mean_to_the_original(self, options):
        model = from_torch("deeplabv3plus_tiny", tiny_state_dict("deeplabv3plus", **options), **options)
        differences = self.differences(model, random_pixels(2, 64, 96))
        assert max(differences.values()) < TOLERANCE, differences

    def test_a_wrong_weight_shows(self, network, state_dict):
        """The comparison can fail: ours is changed after the reference took its weights."""
        model = from_torch(f"{network}_tiny", state_dict)
        reference, pixels = find_reference(model), random_pixels(1, 64, 64)
        theirs = reference.their_outputs(reference.build(model), pixels)
        model.resnet.stages[1][0].conv2.conv.kernel[...] *= 1.01
        ours = reference.our_outputs(model, pixels)
        assert relative_error(ours["resnet.1"], theirs["resnet.1"]) < TOLERANCE
        assert min(relative_error(ours[name], theirs[name]) for name in ("resnet.2", "logits")) > TOLERANCE

    def test_training_mode_is_the_originals(self, network, state_dict):
        """Batch statistics in the logits, and the running ones after one batch; dropout is left out."""
        import torch

        options = {"aspp_dropout": 0.0} if network == "deeplabv3plus" else {}
        model = from_torch(f"{network}_tiny", state_dict, **options)
        reference = find_reference(model).build(model).train()
        pixels = random_pixels(4, 64, 96)
        with torch.no_grad():
            theirs = reference(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).permute(0, 2, 3, 1)
        model.train()
        ours = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(pixels))
        assert relative_error(ours, theirs) < 5 * TOLERANCE
        after = to_torch(model)
        for name, array in reference.state_dict().items():
            if "running" in name:
                assert relative_error(after[name], array) < TOLERANCE, name
                assert not np.array_equal(after[name], state_dict[name]), name
