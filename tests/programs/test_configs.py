"""The config files, and how a config string overrides them."""

import pytest

from configs import biomedclipseg, biomedclipseg_d, clipseg, cris, deeplabv3plus, quickstart, unet, unetplusplus
from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS

CNNS = [unet, unetplusplus, deeplabv3plus]
PUBLISHED = [clipseg, biomedclipseg, biomedclipseg_d, cris, *CNNS]
FILES = [*PUBLISHED, quickstart]


@pytest.mark.parametrize("file", PUBLISHED)
def test_every_network_has_the_published_recipe(file):
    config = file.get_config()
    assert config.model == file.__name__.split(".")[-1]
    assert (config.num_epochs, config.seed, config.schedule, config.max_grad_norm) == (1000, 42, "constant", 0.5)
    assert config.plateau.to_dict() == {"factor": 0.1, "patience": 5, "threshold": 1e-4}
    assert (config.early_stopping.patience, config.early_stopping.min_delta) == (20, 1e-4)


@pytest.mark.parametrize("file", [clipseg, biomedclipseg, biomedclipseg_d, cris])
def test_networks_with_a_text_encoder_minimise_soft_dice_by_adamw(file):
    config = file.get_config()
    assert (config.loss, config.weight_decay, config.freeze_encoder) == ("dice", 1e-3, None)
    assert (config.batch_size, config.learning_rate) == ((32, 2e-5) if file is cris else (128, 2e-3))


@pytest.mark.parametrize("file", CNNS)
def test_image_only_networks_are_trained_whole_by_adam_on_masks_that_are_not_empty(file):
    config = file.get_config()
    assert (config.loss, config.weight_decay, config.learning_rate) == ("dice_nonempty", 0.0, 1e-3)
    assert config.freeze_encoder is False


def test_quickstart_trains_a_tiny_network_on_the_sample():
    config = quickstart.get_config()
    assert (config.model, config.dataset, config.init) == ("clipseg_tiny", "sample", "")


@pytest.mark.parametrize("file", FILES)
def test_a_config_file_has_the_fields_of_the_base_and_a_known_preset(file):
    config = file.get_config()
    assert set(config) == set(base_config())
    assert config.model in PRESETS


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("dataset=isic", "dataset", "isic"),
        ("prompt=p3", "prompt", "p3"),
        ("prompt=text:a=b", "prompt", "text:a=b"),
        ("init=", "init", ""),
        ("batch_size=64", "batch_size", 64),
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("learning_rate=1", "learning_rate", 1.0),
        ("deterministic=true", "deterministic", True),
        ("zero_prompt=True", "zero_prompt", True),
        ("freeze_encoder=false", "freeze_encoder", False),
        ("mesh.fsdp=8", "mesh.fsdp", 8),
        ("mesh.data=-1", "mesh.data", -1),
        ("plateau.factor=0.5", "plateau.factor", 0.5),
        ("data.num_workers=2,dataset=isic", "data.num_workers", 2),
        ("prompt=attributes:size,number,class,dataset=isic", "prompt", "attributes:size,number,class"),
        ("prompt=attributes:size,dataset=isic", "dataset", "isic"),
        ("dataset=isic+busi,pool.temperature=3", "pool.temperature", 3.0),
        ('data_num={"isic": 0.5,"busi": 9},seed=1', "data_num", '{"isic": 0.5,"busi": 9}'),
        ('pool.weights={"isic": 2,"busi": 1},seed=1', "seed", 1),
    ],
)
def test_a_config_string_sets_fields_in_their_types(file, text, field, value):
    *groups, name = field.split(".")
    config = file.get_config(text)
    for group in groups:
        config = config[group]
    assert config[name] == value
    assert type(config[name]) is type(value)


def test_whether_the_encoder_is_frozen_is_left_open():
    assert clipseg.get_config().freeze_encoder is None


def test_no_config_string_changes_nothing():
    assert clipseg.get_config("").to_dict() == clipseg.get_config().to_dict()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        *((text, ".*batch_size") for text in ("colour=red", "mesh.tensor=2", "colour.fsdp=2", "=3", "dataset=a,,b")),
        ("batch_size", "give batch_size=VALUE"),
        ("mesh=8", "give mesh.FIELD=VALUE"),
        ("dataset.name=isic", "did you mean dataset"),
    ],
)
def test_an_item_that_sets_no_field_is_named_with_the_fields_there_are(text, hint):
    with pytest.raises(UserError, match=f"config string: '.*' is not FIELD=VALUE with a field of the config: {hint}"):
        clipseg.get_config(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("batch_size=many", "int"),
        ("batch_size=1.5", "int"),
        ("learning_rate=high", "float"),
        ("mesh.fsdp=", "int"),
    ],
)
def test_a_value_of_another_type_is_named(text, kind):
    with pytest.raises(UserError, match=f"config string: {text} should be of type {kind}"):
        clipseg.get_config(text)


def test_a_truth_value_is_true_or_false():
    with pytest.raises(UserError, match="deterministic=1 should be true or false"):
        clipseg.get_config("deterministic=1")


def test_a_group_is_no_field():
    with pytest.raises(UserError, match="mesh=8"):
        clipseg.get_config("mesh=8")
