"""What does not fit in a run's config is said in one line that names the field, before any work."""

import pytest

from medvlsm_jax.check_run import check_run
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel import sharding
from medvlsm_jax.train import train


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("init", "nowhere", "nowhere is no checkpoint: .*model.json is missing"),
        ("model", "clipsag", "unknown model 'clipsag'"),
        ("loss", "focal", "unknown loss 'focal' in config.loss"),
        ("dtype", "float64", "config.dtype='float64'"),
        ("schedule", "linear", "config.schedule='linear'"),
        ("ema", 1.5, r"config\.ema=1\.5: give a number from 0 and below 1"),
        ("log_every_steps", 0, r"config\.log_every_steps=0: give a number from 1 on"),
        ("remat", "some", r"config\.remat='some': choose none, dots, full"),
        ("attention", "flash", r"config\.attention='flash': choose auto, xla, pallas, cudnn"),
        ("profile", "7", r"config\.profile=7: give START:STOP"),
        ("writers", "csv+tensorbord", r"config\.writers=.*unknown writer 'tensorbord'"),
        ("resume", "nowhere", r"nowhere is no checkpoint: .*model.json is missing"),
        ("batch_size", 15, "config.batch_size.*=15 is not a multiple of the 2 devices"),
        ("prompt", "p7", "has no prompt 'p7'; it has other, p0, p1"),
        ("dataset", "nowhere", "dataset 'nowhere' is not a dataset that the package knows: .* holds sample"),
        ("data_dir", "nowhere", "data_dir nowhere does not exist: pass --config.data_dir"),
        ("tokenizer", "nowhere", "cannot load the tokenizer 'nowhere': pass --config.tokenizer=FOLDER"),
    ],
)
def test_a_field_that_does_not_fit_is_named_and_nothing_is_trained(config, tmp_path, field, value, message):
    config[field] = value
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or metrics(tmp_path / "run") == []
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "model.json"])
def test_a_folder_that_is_no_workdir_is_left_alone(config, tmp_path, name):
    """A converted model's, or one of Hugging Face's."""
    (tmp_path / name).write_text('{"model_type": "clipseg"}')
    with pytest.raises(UserError, match=f"--workdir={tmp_path} holds {name}, which no training has written there"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "linear"),
        ("profile", "7"),
        ("writers", "nothing"),
        ("loss", "focal"),
        ("batch_size", 15),
        ("seed", -1),
    ],
)
def test_a_field_is_checked_before_the_data_are_read(config, tmp_path, field, value):
    config.data_dir, config[field] = str(tmp_path / "nowhere"), value
    with pytest.raises(UserError, match=rf"config\.{field}"):
        check_run(config, tmp_path / "run", sharding.make_mesh())
    assert not (tmp_path / "run").exists()
