"""What flags that name folders are held to, and what a folder of others is."""

from pathlib import Path

import pytest

from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import FIELDS, check_fields, check_others, local_folder, output_file, output_folder


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://bucket/run", Path("s3://bucket/run"), "hdfs://host/run"])
def test_a_bucket_is_refused_and_the_flag_named(path):
    with pytest.raises(UserError, match=r"^--workdir=\w+:/.* is in a bucket, which is not supported"):
        local_folder("--workdir", path)


def test_nothing_is_not_the_current_folder():
    with pytest.raises(UserError, match=r"^--workdir= is empty: give a folder, or \. for the current one$"):
        output_folder("--workdir", "")
    assert output_folder("--workdir", ".") == Path()


def test_a_home_is_found_and_a_file_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    assert output_folder("--output", "~/new") == tmp_path / "new"
    with pytest.raises(UserError, match=r"^--output=~/file is a file: give a folder$"):
        output_folder("--output", "~/file")


@pytest.mark.parametrize("field", FIELDS)
def test_the_folders_of_a_config_are_checked_too(field):
    config = base_config()
    check_fields(config)
    config.update_from_flattened_dict({field: "gs://bucket/folder"})
    with pytest.raises(UserError, match=rf"^config\.{field}=gs://bucket/folder is in a bucket"):
        check_fields(config)


def test_what_others_have_written_is_named_and_an_empty_folder_is_nobodys(tmp_path):
    (tmp_path / "masks").mkdir()
    check_others("--output", tmp_path, ["masks", "metrics.json"], "evaluation")
    (tmp_path / "masks" / "a.png").touch()
    with pytest.raises(UserError, match="holds masks, which no evaluation has written there: choose another folder"):
        check_others("--output", tmp_path, ["metrics.json", "masks"], "evaluation")


def test_a_file_is_written_on_this_machine_and_is_no_folder(tmp_path):
    assert output_file("--output", tmp_path / "new" / "figures.json") == tmp_path / "new" / "figures.json"
    with pytest.raises(UserError, match="is a folder: give a file"):
        output_file("--output", tmp_path)
    with pytest.raises(UserError, match=r"--output=gs://bucket/figures\.json is in a bucket"):
        output_file("--output", "gs://bucket/figures.json")
