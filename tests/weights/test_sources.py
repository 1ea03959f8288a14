"""Where weights are: shards are read whole or not at all, and what is missing is named."""

import json

import numpy as np
import pytest
from drawn_checkpoints import zip_checkpoint
from safetensors.numpy import save_file

from medvlsm_jax import hub
from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import read_checkpoint, read_state_dict, sources

SHARDS = {i: {f"w{i}": np.full(2, i, np.float32), f"v{i}": np.ones(1, np.float32)} for i in (1, 2, 3)}
MAP = {name: i for i, shard in SHARDS.items() for name in shard}


def shard_name(i: int, stem: str, ending: str) -> str:
    return f"{stem}-{i:05d}-of-00003{ending}"


def write(folder, stem: str = "model", ending: str = ".safetensors") -> None:
    """Three shards and their index."""
    for i, shard in SHARDS.items():
        path = folder / shard_name(i, stem, ending)
        if ending == ".safetensors":
            save_file(shard, path)
        else:
            path.write_bytes(zip_checkpoint(shard))
    names = {name: shard_name(i, stem, ending) for name, i in MAP.items()}
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize("given", ["", "{stem}{ending}.index.json", "{stem}-00002-of-00003{ending}"])
@pytest.mark.parametrize(("stem", "ending"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_a_folder_an_index_or_one_shard_mean_all_shards(tmp_path, stem, ending, given):
    write(tmp_path, stem, ending)
    checkpoint = read_checkpoint(tmp_path / given.format(stem=stem, ending=ending))
    assert set(checkpoint.state_dict) == set(MAP)
    assert checkpoint.state_dict["w2"].tolist() == [2, 2]
    assert "read 6 tensors from" in checkpoint.taken
    assert "3 shards" in checkpoint.taken


def test_shards_without_an_index_are_found_by_their_numbers(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert set(read_state_dict(tmp_path / shard_name(1, "model", ".safetensors"))) == set(MAP)


@pytest.mark.parametrize("given", ["", "model.safetensors.index.json", "model-00003-of-00003.safetensors"])
@pytest.mark.parametrize("has_index", [True, False])
def test_a_missing_shard_is_named(tmp_path, given, has_index):
    write(tmp_path)
    (tmp_path / shard_name(2, "model", ".safetensors")).unlink()
    if not has_index:
        (tmp_path / "model.safetensors.index.json").unlink()
        given = "model-00003-of-00003.safetensors"
    with pytest.raises(UserError, match=r"1 are missing beside it, the first model-00002-of-00003\.safetensors"):
        read_state_dict(tmp_path / given)


@pytest.mark.parametrize("change", ["a tensor too many", "a tensor too few", "in another shard"])
def test_shards_that_are_not_what_their_index_says_are_refused(tmp_path, change):
    write(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    if change == "a tensor too many":
        del index["weight_map"]["w3"]
    elif change == "a tensor too few":
        index["weight_map"]["gone"] = shard_name(1, "model", ".safetensors")
    else:
        index["weight_map"]["w1"] = shard_name(2, "model", ".safetensors")
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="1 tensors are missing, unexpected or in another shard, the first"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "", "..", 3, "a\\b"])
def test_an_index_names_files_beside_it_and_no_others(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"is no index of shards: it needs a weight_map .* files beside it"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"weight_map": []}', "[" * 100_000])
def test_a_broken_index_is_one_line(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json") as error:
        read_state_dict(tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_many_processes_says_how_to_join_it(tmp_path):
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(UserError, match="one for each process of its training: join them first, with"):
        read_state_dict(tmp_path)


def test_a_hub_id_is_fetched_with_its_shards_and_what_describes_it(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    fetched = []

    def fetch(hub_id: str, name: str):
        fetched.append(name)
        return tmp_path / name if (tmp_path / name).exists() else None

    monkeypatch.setattr(hub, "fetch", fetch)
    assert set(read_state_dict("owner/name")) == set(MAP)
    assert {shard_name(2, "model", ".safetensors"), "config.json"} <= set(fetched)


def test_a_hub_that_is_not_reached_is_known_in_seconds(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    hub.is_reachable.cache_clear()
    try:
        assert not hub.is_reachable()
        with pytest.raises(UserError, match=r"cannot fetch some/repository .* pass its path with --source=FILE"):
            sources.locate("some/repository")
    finally:
        hub.is_reachable.cache_clear()
