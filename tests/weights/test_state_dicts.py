"""Checkpoint files of every format, whole and broken; none of them may run code."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import read_state_dict, write_state_dict

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([0.5, -1e-3], np.float32),
    "ids": np.arange(3),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="reads PyTorch's own files")


def tensors(torch) -> dict:
    return {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


def write(path: Path) -> Path:
    """A whole checkpoint in the format that the ending says."""
    if path.suffix == ".safetensors":
        save_file(ARRAYS, path)
        return path
    torch = pytest.importorskip("torch", reason="writes PyTorch's own files")
    content = tensors(torch)
    if path.suffix == ".ckpt":
        content = {"epoch": 3, "state_dict": content, "optimizer_states": [{"lr": 0.1}]}
    torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".pth")
    return path


def assert_read(read: dict[str, np.ndarray]) -> None:
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def error_of(source: str | Path) -> str:
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as error:
        read_state_dict(source)
    assert "\n" not in str(error.value)
    return str(error.value)


FORMATS = ["model.safetensors", "pytorch_model.bin", "model.pt", "legacy.pth", "best.ckpt"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path, name):
    assert_read(read_state_dict(write(tmp_path / name)))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_means_the_weights_in_it(tmp_path, name):
    write(tmp_path / name)
    assert_read(read_state_dict(tmp_path))


def test_safetensors_come_before_pickles(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    write(tmp_path / "model.safetensors")
    assert_read(read_state_dict(str(tmp_path)))


@pytest.mark.parametrize("nesting", [("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
def test_dictionaries_around_the_state_dict_are_opened(torch, tmp_path, nesting):
    content = tensors(torch)
    for key in reversed(nesting):
        content = {key: content, "step": 4}
    torch.save(content, tmp_path / "last.ckpt")
    assert_read(read_state_dict(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(torch, tmp_path, dtype):
    values = torch.tensor([1.5, -0.375, 3e4]).to(getattr(torch, dtype))
    torch.save({"x": values}, tmp_path / "half.pt")
    read = read_state_dict(tmp_path / "half.pt")["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.float().numpy())


def test_half_precision_safetensors_are_widened_without_torch(tmp_path):
    save_file({"x": np.array([1.5, -0.375], np.float16)}, tmp_path / "half.safetensors")
    read = read_state_dict(tmp_path / "half.safetensors")["x"]
    assert (read.dtype, read.tolist()) == (np.float32, [1.5, -0.375])


@pytest.mark.parametrize("share", [0.0, 0.002, 0.1, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_named(tmp_path, name, share):
    path = write(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in error_of(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_web_page_saved_as_weights_is_named(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><html>Access to this model is restricted</html>")
    assert str(tmp_path / name) in error_of(tmp_path / name)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "best.ckpt"])
def test_a_pickle_that_would_run_code_does_not_and_its_tensors_are_read(torch, tmp_path, name, legacy):
    trap = tmp_path / "trap"
    content = {"state_dict": tensors(torch), "callbacks": Touch(trap)}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert_read(read_state_dict(tmp_path / name))
    assert not trap.exists()
    torch.load(tmp_path / name, weights_only=False)  # the trap is a real one
    assert trap.exists()


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {}}])
def test_a_file_without_tensors_is_named(torch, tmp_path, content):
    torch.save(content, tmp_path / "empty.pt")
    assert error_of(tmp_path / "empty.pt") == f"{tmp_path / 'empty.pt'} cannot be read: it holds no tensors"


def test_a_missing_path_is_named(tmp_path):
    for missing in (tmp_path / "gone.pt", "gone.safetensors", "./models/gone", "a/b/c"):
        assert f"{missing} does not exist" in error_of(missing)


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    assert f"{tmp_path} holds none of model.safetensors" in error_of(tmp_path)


@pytest.mark.parametrize("hub_id", ["CIDAS/clipseg-no-such-model", "nobody/not a name"])
def test_a_hub_id_without_network_names_the_file_to_fetch_and_the_flag(hub_id):
    message = error_of(hub_id)
    assert hub_id in message
    assert "model.safetensors" in message
    assert "--source=FILE" in message


@pytest.mark.parametrize("half", [False, True])
def test_a_torchscript_archive_gives_its_tensors(torch, tmp_path, half):
    """OpenAI's CLIP files are such archives, in half precision."""

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(2)
            self.weight = torch.nn.Parameter(torch.tensor([0.1, 3.0]))

        def forward(self, x):
            return self.norm(x * self.weight)

    module = Scale().half() if half else Scale()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(module), tmp_path / "RN50.pt")
    read = read_state_dict(tmp_path / "RN50.pt")
    assert set(read) == set(module.state_dict())
    assert read["weight"].dtype == np.float32
    np.testing.assert_array_equal(read["weight"], module.weight.detach().float().numpy())


def test_a_cut_torchscript_archive_is_named(torch, tmp_path):
    path = tmp_path / "RN50.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), path)
    path.write_bytes(path.read_bytes()[:-200])
    assert f"{path} cannot be read: it is no whole zip archive" in error_of(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt", "model.pth"])
def test_what_is_written_is_read(tmp_path, name):
    if not name.endswith(".safetensors"):
        pytest.importorskip("torch", reason="writes PyTorch's own files")
    write_state_dict(tmp_path / "deep" / name, ARRAYS)
    assert_read(read_state_dict(tmp_path / "deep" / name))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_a_file_of_no_known_ending_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"model\.h5: give a file that ends in \.safetensors"):
        write_state_dict(tmp_path / "model.h5", ARRAYS)
    assert not list(tmp_path.iterdir())
