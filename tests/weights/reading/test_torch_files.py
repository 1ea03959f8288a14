"""Every kind of file that PyTorch writes gives what PyTorch itself reads from it, bit for bit."""

import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from drawn_checkpoints import archive, legacy_checkpoint, records, tensors, torchscript_checkpoint, zip_checkpoint
from drawn_checkpoints import pickled as pickle_of

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import read_state_dict

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], np.float16),
    "count": np.array(3),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


def as_arrays(state_dict) -> dict[str, np.ndarray]:
    """PyTorch's tensors as arrays, half precision widened by PyTorch."""
    narrow = ("float16", "bfloat16", "float8")
    return {
        name: (value.float() if str(value.dtype).removeprefix("torch.").startswith(narrow) else value).detach().numpy()
        for name, value in state_dict.items()
    }


def assert_same(read: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(read) == set(expected)
    for name, array in expected.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        assert read[name].tobytes() == array.tobytes(), name


def many_kinds(torch, *, is_legacy: bool) -> dict:
    """Tensors of all types that are read, and of all layouts."""
    new = (
        () if is_legacy else ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint64")
    )
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    base = torch.arange(120, dtype=torch.float32).reshape(10, 12) / 7
    parameter = torch.nn.Parameter(base[0] + 1)
    parameter.tag = "a parameter with an attribute"
    return {
        **{kind: (base[:3, :4] - 5).abs().to(getattr(torch, kind)) for kind in (*kinds, *new, "complex64")},
        "transposed": base.t(),
        "slice": base[2:5, 3:9:2],
        "channels last": base.reshape(1, 4, 5, 6).to(memory_format=torch.channels_last),
        "expanded": base[0, 1].expand(3, 2),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "tied": base,
        "parameter": parameter,
    }


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_all_types_and_layouts_are_pytorchs(torch, tmp_path, is_legacy):
    content = many_kinds(torch, is_legacy=is_legacy)
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not is_legacy)
    assert_same(read_state_dict(tmp_path / "a.pt"), as_arrays(torch.load(tmp_path / "a.pt", weights_only=False)))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_so_they_are_in_newer_pickles(torch, tmp_path, protocol):
    content = many_kinds(torch, is_legacy=False)
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    assert_same(read_state_dict(tmp_path / "a.pt"), as_arrays(content))


def make_module(torch):
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(2)
            self.weight = torch.nn.Parameter(torch.tensor([0.1, 3.0]))
            self.register_buffer("kept", torch.ones(2, 3).t())
            self.register_buffer("none", None)
            self.plain = torch.ones(5)

        def forward(self, x):
            return self.norm(x * self.weight) + self.kept.sum() + self.plain.sum()

    return torch.nn.Sequential(Inner(), torch.nn.Identity(), torch.nn.Conv2d(2, 1, 1).half())


def test_a_torchscript_archive_is_its_state_dict(torch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is retired, the files are not
        torch.jit.save(torch.jit.script(make_module(torch)), tmp_path / "a.pt")
        expected = torch.jit.load(tmp_path / "a.pt").state_dict()
    assert {"0.weight", "0.kept", "0.norm.running_mean"} <= set(expected)
    assert_same(read_state_dict(tmp_path / "a.pt"), as_arrays(expected))


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickled_module_is_its_state_dict(torch, tmp_path, is_legacy):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.ModuleList([torch.nn.BatchNorm2d(2), torch.nn.ParameterList([torch.ones(2)])]),
    )
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("left out", torch.ones(1), persistent=False)
    module.tied = module[0]
    torch.save(module, tmp_path / "a.pt", _use_new_zipfile_serialization=not is_legacy)
    assert_same(read_state_dict(tmp_path / "a.pt"), as_arrays(module.state_dict()))


@pytest.mark.parametrize("kind", ["quantized", "sparse", "meta"])
def test_a_tensor_of_another_make_is_named(torch, tmp_path, kind):
    make = {
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "sparse": lambda: torch.eye(2).to_sparse(),
        "meta": lambda: torch.ones(2, device="meta"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantization is retired
        torch.save({"a": make[kind]()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"a\.pt cannot be read: tensor a is .*{kind}.*, which is not read"):
        read_state_dict(tmp_path / "a.pt")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


DRAWN = {"zip": zip_checkpoint, "legacy": legacy_checkpoint, "torchscript": torchscript_checkpoint}


@pytest.mark.parametrize("kind", DRAWN)
def test_without_pytorch_the_same_files_are_read(no_torch, tmp_path, kind):
    (tmp_path / "a.pt").write_bytes(DRAWN[kind](ARRAYS))
    prefix = "child." if kind == "torchscript" else ""
    expected = {prefix + name: array.astype(np.float32) if name == "half" else array for name, array in ARRAYS.items()}
    assert_same(read_state_dict(tmp_path / "a.pt"), expected)


def test_what_a_big_endian_machine_wrote_is_read(tmp_path):
    swapped = {name: array.byteswap() for name, array in ARRAYS.items()}
    content = records(pickle_of(tensors(ARRAYS)), swapped, byteorder=b"big")
    (tmp_path / "a.pt").write_bytes(archive(content))
    read = read_state_dict(tmp_path / "a.pt")
    np.testing.assert_array_equal(read["weight"], ARRAYS["weight"])
    np.testing.assert_array_equal(read["half"], ARRAYS["half"])


def test_checksums_that_were_left_out_are_not_asked_for(torch, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_state_dict(tmp_path / "a.pt")["a"].tolist() == [1, 1, 1]


def test_a_flipped_bit_in_the_weights_is_seen(tmp_path):
    content = zip_checkpoint(ARRAYS)
    at = content.index(ARRAYS["weight"].tobytes())
    (tmp_path / "a.pt").write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(UserError, match="record data/0 is not what its checksum says"):
        read_state_dict(tmp_path / "a.pt")


def test_an_archive_that_was_packed_again_is_read_unless_it_unfolds_to_far_more(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(archive(records(pickle_of(tensors(ARRAYS)), ARRAYS), zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(read_state_dict(path)["weight"], ARRAYS["weight"])
    bomb = {"a": np.zeros(25_000_000, np.float32)}
    path.write_bytes(archive(records(pickle_of(tensors(bomb)), bomb), zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="unfolds to far more than its size"):
        read_state_dict(path)


OTHERS = {
    "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "packed.pt": (b"\x1f\x8b\x08\x00", "gzip"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "old.pth": (bytes(257) + b"ustar" + bytes(300), "tar archive"),
    "arrays.npz": (archive({"a.npy": b"1"}), "holds no data.pkl"),
    "nothing.pt": (b"", "it is empty"),
    "plain.pkl": (pickle_of({"a": 1}), "no file of torch.save"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, name):
    content, message = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read: .*{message}"):
        read_state_dict(tmp_path / name)


def test_the_kind_is_in_the_file_and_not_in_its_name(tmp_path):
    from safetensors.numpy import save_file

    save_file(ARRAYS, tmp_path / "a.bin")
    Path(tmp_path / "b.safetensors").write_bytes(zip_checkpoint(ARRAYS))
    assert_same(read_state_dict(tmp_path / "a.bin"), read_state_dict(tmp_path / "b.safetensors"))
