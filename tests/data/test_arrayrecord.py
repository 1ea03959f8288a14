"""A store gives what the dataset's folder gives, bit for bit, from several shards; what is not whole is refused."""

import contextlib
import itertools
import json
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from medvlsm_jax.data.arrayrecord import StoredFile, check_stored_size, find_store, load_store, stored_size
from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.files import File
from medvlsm_jax.data.images import load_pair, open_image
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records, load_split
from medvlsm_jax.data.preparing import arrayrecord_writer
from medvlsm_jax.data.preparing.arrayrecord_writer import write_store
from medvlsm_jax.data.reading.pipeline import Loader, order_of, train_batches
from medvlsm_jax.errors import UserError

pytest.importorskip("tensorflow_datasets")

SAMPLE, MINE = CARDS["sample"], Card("mine", targets=("tumor",))
SIZE = 24


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A data folder with a dataset of many formats; one image lies in a folder of its own."""
    data_dir = tmp_path_factory.mktemp("formats")
    images, masks, anns = (data_dir / "mine" / name for name in ("images", "masks", "anns"))
    for folder in (images / "größe", masks, anns):
        folder.mkdir(parents=True)
    Image.fromarray(noise(40, 50, 3)).save(images / "a.jpg")
    Image.fromarray(noise(40, 50, 3)).save(images / "größe" / "b.png")
    Image.fromarray(np.pad(noise(40, 50, 3), ((0, 0), (0, 9), (0, 0)))[:, 9:]).save(images / "c.tif")  # ends in zeros
    Image.fromarray(noise(40, 50, dtype=np.uint16)).save(images / "d.png")
    Image.fromarray(noise(40, 50, 4)).save(images / "e.png")
    Image.fromarray(noise(40, 50)).save(images / "f.bmp")
    Image.fromarray(noise(40, 50, 3)).quantize(8).save(images / "g.gif")
    names = ["a.jpg", "größe/b.png", "c.tif", "d.png", "e.png", "f.bmp", "g.gif"]
    entries = []
    for i, name in enumerate(names):
        Image.fromarray(np.uint8(255) * (noise(40, 50) > 20 * i)).save(masks / f"{i}.png")
        prompts = {"p0": "", "p1": f"tumor {i}", "p7": ["größer", "kleiner"]}
        entries.append({"img_name": name, "mask_name": f"{i}.png", "prompts": prompts, "bbox": [i], "sentences": []})
    entries[1] |= {"attributes": {"shape": "round"}, "group": "patient1", "spacing": [0.31, 0.15]}
    (anns / "train.json").write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    (anns / "test.json").write_text(json.dumps(entries[:2]))
    (anns / "val.json").write_text("[]")
    return data_dir


@pytest.fixture(scope="module")
def store(mine, tmp_path_factory) -> Path:
    """That dataset as found, in three shards."""
    return write_store(mine, MINE, tmp_path_factory.mktemp("store"), num_shards=3)


@pytest.fixture
def own(store, tmp_path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(store, tmp_path / "medvlsm" / "mine" / "1.0.0"))


@pytest.fixture
def parsed_flags():
    """Grain reads an absl flag when it starts workers."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def content(file: File) -> bytes:
    with file.open("rb") as stream:
        return stream.read()


def facts(records: list) -> list:
    names = ("card", "name", "prompts", "target", "attributes", "spacing", "group")
    return [(*(getattr(r, name) for name in names), r.image.name, r.mask.stem) for r in records]


def assert_same_pairs(first: list, second: list, size: int) -> None:
    for one, other in zip(first, second, strict=True):
        expected, found = (load_pair(record.image, record.mask, size) for record in (one, other))
        np.testing.assert_array_equal(found[0], expected[0], err_msg=str(other.image))
        np.testing.assert_array_equal(found[1], expected[1], err_msg=str(other.mask))


def test_files_lie_in_it_as_found_in_whatever_format(mine, store):
    assert len(list(store.glob("*-train.array_record-*-of-00003"))) == 3
    folder, stored = load_split(mine, MINE, "train"), load_store(store, MINE, "train")
    assert facts(stored) == facts(folder)
    assert (stored[1].spacing, stored[1].group) == ((0.31, 0.15), "patient1")
    for one, other in zip(folder, stored, strict=True):
        assert (content(other.image), content(other.mask)) == (content(one.image), content(one.mask))
        assert isinstance(other.image, File)
        assert other.image.is_file()
    assert folder[2].image.read_bytes().endswith(b"\0")
    assert str(stored[1].image) == f"{store}/train[1]:größe/b.png"
    assert stored_size(store) == 0


def test_a_split_is_as_the_folder_has_it(mine, store):
    assert facts(load_store(store, MINE, "test")) == facts(load_split(mine, MINE, "test"))
    assert load_store(store, MINE, "val", is_required=False) == []
    assert "val.json does not exist" in error_of(load_store, store, MINE, "val")
    assert (store / "anns" / "train.json").read_bytes() == (mine / "mine" / "anns" / "train.json").read_bytes()


@pytest.mark.parametrize("image_size", [0, SIZE])
def test_arrays_are_the_folders_bit_for_bit(mine, tmp_path, image_size):
    store = write_store(mine, MINE, tmp_path, image_size=image_size)
    assert_same_pairs(load_split(mine, MINE, "train"), load_store(store, MINE, "train"), SIZE)
    assert store == tmp_path / "medvlsm" / ("mine_24" if image_size else "mine") / "1.0.0"
    assert stored_size(store) == image_size


def test_resized_files_have_that_size_whatever_the_threads(mine, tmp_path):
    one, two = (write_store(mine, MINE, tmp_path / str(i), image_size=SIZE, workers=i) for i in (1, 2))
    for first, second in zip(load_store(one, MINE, "train"), load_store(two, MINE, "train"), strict=True):
        assert (content(first.image), content(first.mask)) == (content(second.image), content(second.mask))
        assert open_image(second.image).size == open_image(second.mask).size == (SIZE, SIZE)
        assert set(np.unique(open_image(second.mask))) <= {0, 255}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("image_size", [0, 16])
def test_batches_are_the_folders_also_after_a_restart(sample, tmp_path, parsed_flags, image_size, num_workers):
    store = write_store(sample, SAMPLE, tmp_path, image_size=image_size, num_shards=3)

    def take(records: list, **options) -> list[dict[str, np.ndarray]]:
        loader = Loader(records, load_tokenizer("builtin", 24), "random", 16, seed=3)
        order = order_of(records, 4, seed=0)
        with contextlib.closing(train_batches(loader, order, first_step=17, **options)) as batches:
            return list(itertools.islice(batches, 4))

    expected = take(load_split(sample, SAMPLE, "train"))
    found = take(load_store(store, SAMPLE, "train"), num_workers=num_workers, num_threads=2)
    for one, other in zip(expected, found, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(other[name], one[name], err_msg=name)


def test_threads_read_in_any_order(sample, tmp_path):
    store = write_store(sample, SAMPLE, tmp_path, num_shards=5)
    folder, stored = load_split(sample, SAMPLE, "train"), load_store(store, SAMPLE, "train")
    order = random.Random(0).choices(range(len(folder)), k=400)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: (content(stored[i].mask), content(stored[i].image)), order))
    assert found == [(content(folder[i].mask), content(folder[i].image)) for i in order]


def test_a_stored_file_travels_to_another_process(store):
    file = load_store(store, MINE, "train")[1].image
    again = pickle.loads(pickle.dumps(file))
    assert (again, content(again)) == (file, content(file))
    assert again.stat().st_mtime == (store / "dataset_info.json").stat().st_mtime


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "isic", "busi", "clinicdb_polyp"])
def test_real_images_are_the_folders_bit_for_bit(shared, tmp_path, dataset):
    for image_size in (0, 64):
        store = write_store(shared / "realdata", CARDS[dataset], tmp_path, image_size=image_size)
        records = load_records(shared / "realdata", dataset, "train")
        assert_same_pairs(records, load_store(store, CARDS[dataset], "train"), 64)


def test_files_may_lie_one_folder_deeper(mine, tmp_path):
    for name in ("images", "masks"):
        shutil.copytree(mine / "mine" / name, tmp_path / "mine" / name / "deep")
    shutil.copytree(mine / "mine" / "anns", tmp_path / "mine" / "anns")
    card = Card("mine", subfolder="deep")
    store = write_store(tmp_path, card, tmp_path)
    assert_same_pairs(load_split(mine, MINE, "train"), load_store(store, card, "train"), SIZE)


def test_writing_again_leaves_a_complete_store_alone(mine, own, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    assert write_store(mine, MINE, tmp_path) == own
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == before
    (own / "anns" / "test.json").write_text("[]")
    assert error_of(write_store, mine, MINE, tmp_path).startswith(f"{own} was written from other annotations")


def test_a_failed_write_leaves_nothing(mine, tmp_path):
    shutil.copytree(mine / "mine", tmp_path / "data" / "mine")
    (tmp_path / "data" / "mine" / "images" / "e.png").write_bytes(b"no image")
    (tmp_path / "file").touch()
    assert "file cannot be made (" in error_of(write_store, tmp_path / "data", MINE, tmp_path / "file")
    message = error_of(write_store, tmp_path / "data", MINE, tmp_path / "out", image_size=SIZE)
    assert "e.png cannot be decoded" in message
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "data" / "mine" / "masks" / "6.png").unlink()
    assert "6.png is missing" in error_of(write_store, tmp_path / "data", MINE, tmp_path / "out")
    (tmp_path / "data" / "mine" / "anns" / "train.json").write_text("[]")
    (tmp_path / "data" / "mine" / "anns" / "test.json").unlink()
    assert "holds no records" in error_of(write_store, tmp_path / "data", MINE, tmp_path / "out")


@pytest.mark.parametrize("options", [{"image_size": -1}, {"image_size": 7}, {"num_shards": 0}, {"workers": 0}])
def test_numbers_out_of_range_are_refused(mine, tmp_path, options):
    assert f"{next(iter(options))}={next(iter(options.values()))}" in error_of(
        write_store, mine, MINE, tmp_path, **options
    )


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "anns"])
def test_an_incomplete_store_is_refused(mine, own, tmp_path, name):
    (own / name).rename(tmp_path / "away")
    for call in (find_store, lambda data_dir, card: write_store(mine, card, data_dir)):
        assert error_of(call, tmp_path, MINE).startswith(f"{own} is an incomplete store ({name} is missing)")


def test_shards_that_are_not_whole_are_refused(own):
    shard = own / "medvlsm-train.array_record-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"{own}: the shards of train are not whole" in error_of(load_store, own, MINE, "train")
    shard.unlink()
    assert error_of(load_store, own, MINE, "train").startswith(f"{shard} is missing")
    load_store(own, MINE, "test")


def test_a_damaged_shard_is_named_when_it_is_read(own):
    records = load_store(own, MINE, "train")
    shard = own / "medvlsm-train.array_record-00000-of-00003"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:80] + bytes(50) + whole[130:])
    message = error_of(open_image, records[0].image)
    assert message.startswith(f"{own}/train[0]:a.jpg cannot be decoded as an image (its shard cannot be read, ")


def test_annotations_that_do_not_fit_the_shards_are_refused(own):
    path = own / "anns" / "train.json"
    entries = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(entries[::-1]))
    assert "(the store holds a.jpg there)" in error_of(open_image, load_store(own, MINE, "train")[0].image)
    path.write_text(json.dumps(entries[:5]))
    assert "train has 7 examples but 5 annotations" in error_of(load_store, own, MINE, "train")
    path.rename(own / "anns" / "val.json")
    assert "has annotations of val but no shards" in error_of(load_store, own, MINE, "val")


def test_a_store_is_found_as_found_before_resized(mine, store, tmp_path):
    assert find_store(tmp_path, MINE) is None
    small, smaller = (write_store(mine, MINE, tmp_path, image_size=size) for size in (16, 8))
    assert "stored at several sizes" in error_of(find_store, tmp_path, MINE)
    shutil.rmtree(smaller.parent)
    assert find_store(tmp_path, MINE) == small
    for version in ("1.9.0", "1.10.0"):
        found = Path(shutil.copytree(store, tmp_path / "medvlsm" / "mine" / version))
        assert find_store(tmp_path, MINE) == found


def test_a_data_folder_of_stores_serves_like_one_of_folders(mine, store):
    root = store.parents[2]
    for split, is_required in (("train", True), ("val", False), ("test", True)):
        expected = load_records(mine, "mine", split, is_required=is_required)
        found = load_records(root, "mine", split, is_required=is_required)
        assert [(r.prompts, r.name) for r in found] == [(r.prompts, r.name) for r in expected]
    assert isinstance(load_records(root, "mine", "train")[0].image, StoredFile)


def test_a_store_of_another_size_than_the_networks_is_refused(sample, store, tmp_path):
    small = load_store(write_store(sample, SAMPLE, tmp_path, image_size=SIZE), SAMPLE, "train")
    check_stored_size([*small, *load_store(store, MINE, "train")], SIZE)
    check_stored_size(load_records(sample, "sample", "train"), 2 * SIZE)
    with pytest.raises(UserError, match=r"sample_24.* holds images of 24 px, but the network reads 48: write a store"):
        check_stored_size(small, 2 * SIZE)


def test_a_store_that_was_resized_by_other_rules_of_decoding_is_refused(mine, own, tmp_path):
    small = write_store(mine, MINE, tmp_path, image_size=SIZE)
    for folder in (small, own):
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        (folder / "metadata.json").write_text(json.dumps({"image_size": metadata["image_size"]}))
    message = f"{small} holds images that an earlier version decoded and resized: remove it, write it again"
    assert error_of(check_stored_size, load_store(small, MINE, "train"), SIZE) == message
    assert error_of(lambda: write_store(mine, MINE, tmp_path, image_size=SIZE)) == message
    check_stored_size(load_store(own, MINE, "train"), SIZE)  # as found


def test_a_dataset_whose_name_ends_in_a_number_is_no_resized_one(store, tmp_path):
    shutil.copytree(store, tmp_path / "medvlsm" / "mine_2024" / "1.0.0")
    assert find_store(tmp_path, MINE) is None
    assert find_store(tmp_path, Card("mine_2024")) == tmp_path / "medvlsm" / "mine_2024" / "1.0.0"


def test_a_split_may_be_larger_than_what_tensorflow_datasets_buffers(mine, tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 1000)
    assert len(load_store(write_store(mine, MINE, tmp_path), MINE, "train")) == 7


def test_the_builder_has_a_config_per_dataset(store, sample, tmp_path):
    configs = arrayrecord_writer.builder_class().builder_configs
    assert set(configs) == {name for name, card in CARDS.items() if not card.members}
    store = write_store(sample, SAMPLE, tmp_path)
    assert json.loads((store / "dataset_info.json").read_text())["configDescription"] == SAMPLE.title
    import tensorflow_datasets as tfds

    source = tfds.builder("medvlsm/sample", data_dir=tmp_path).as_data_source("val")
    entries = json.loads((sample / "sample" / "anns" / "val.json").read_text())
    assert [example["image_name"].decode() for example in source] == [entry["img_name"] for entry in entries]
    assert [json.loads(example["prompts"]) for example in source] == [entry["prompts"] for entry in entries]


def test_the_extra_that_is_missing_is_named(mine, store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    arrayrecord_writer.builder_class.cache_clear()
    for call in (lambda: write_store(mine, MINE, tmp_path), lambda: load_store(store, MINE, "train")):
        assert "pip install 'medvlsm-jax[tfds]'" in error_of(call)


def test_tensorflow_is_never_asked_for_and_nothing_is_printed(mine, tmp_path):
    program = f"""if 1:
        import sys
        from pathlib import Path
        from medvlsm_jax.data.arrayrecord import load_store
        from medvlsm_jax.data.cards import Card
        from medvlsm_jax.data.preparing.arrayrecord_writer import write_store
        assert "tensorflow_datasets" not in sys.modules
        for size in (0, 8):
            store = write_store(Path({str(mine)!r}), Card("mine"), Path({str(tmp_path)!r}), image_size=size)
            load_store(store, Card("mine"), "train")[3].image.open("rb")
        assert "tensorflow" not in sys.modules
    """
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_stored_file_says_what_it_is(tmp_path):
    file = StoredFile(tmp_path, "train", 3, "mask", "deep/x.y.png")
    assert (file.name, file.stem, file.is_file()) == ("x.y.png", "x.y", False)


def test_the_spacing_of_resized_pixels_is_not_known(mine, tmp_path):
    stored = load_store(write_store(mine, MINE, tmp_path, image_size=SIZE), MINE, "train")
    assert (stored[1].spacing, stored[1].group) == (None, "patient1")
