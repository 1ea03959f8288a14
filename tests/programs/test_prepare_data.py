"""The command line: what can be prepared, and the way from a download to a training run."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_data import card_text, chosen_card, list_cards, spread, summary
from processes import run_here

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import CARDS, Card, named_card
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.errors import UserError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here("tools/prepare_data.py", *arguments)


@pytest.fixture
def raw(tmp_path) -> Path:
    """A folder of images and masks."""
    rng = np.random.default_rng(0)
    for folder, shape in (("images", (16, 16, 3)), ("masks", (16, 16))):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for i in range(10):
            values = rng.integers(0, 256, shape, np.uint8)
            image = Image.fromarray(values if folder == "images" else np.where(values > 127, 255, 0).astype(np.uint8))
            image.save(tmp_path / "raw" / folder / f"{i}.png")
    return tmp_path / "raw"


def test_all_cards_are_listed():
    lines = list_cards().splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(CARDS)
    camus = next(line for line in lines if line.startswith("camus"))
    for text in ("cardiac ultrasound", "3 classes", "4800", "600", "p0-p7", "CC BY-NC-SA"):
        assert text in camus


@pytest.mark.parametrize("dataset", CARDS)
def test_everything_about_a_dataset(dataset):
    card, text = CARDS[dataset], card_text(CARDS[dataset])
    for value in (
        card.title,
        card.citation,
        card.download,
        card.note,
        *card.targets,
        *card.layout.strip().splitlines(),
    ):
        assert value in text
    for names in card.members.values():
        assert ", ".join(names) in text


def test_a_dataset_to_prepare_is_known_and_no_pool(tmp_path):
    assert chosen_card("isic") is CARDS["isic"]
    (tmp_path / "mine.toml").write_text('name = "mine"')
    assert chosen_card(str(tmp_path / "mine.toml")) == Card("mine")
    with pytest.raises(UserError, match="--dataset=kvasir is not known: choose one of bkai_polyp"):
        chosen_card("kvasir")
    for pool in ("pooled_polyp", "isic+busi"):
        with pytest.raises(UserError, match="is a pool"):
            chosen_card(pool)


def test_what_to_do_next():
    text = summary(CARDS["isic"], "isic", "DATA", {"train": 8, "val": 1, "test": 3})
    assert text.splitlines()[0] == "isic: train 8, val 1, test 3 records in DATA/isic"
    assert "medvlsm_jax.train --config=configs/clipseg.py:dataset=isic,prompt=p6 --config.init=CHECKPOINT" in text
    text = summary(CARDS["cvc300_polyp"], "cvc300_polyp", "DATA", {"train": 0, "val": 0, "test": 60})
    assert "medvlsm_jax.evaluate" in text
    assert "--dataset=cvc300_polyp" in text


def test_the_whole_way(raw, tmp_path):
    (tmp_path / "mine.toml").write_text('name = "mine"\ntargets = ["lesion"]\n')
    arguments = [f"--dataset={tmp_path / 'mine.toml'}", f"--raw={raw}", f"--data_dir={tmp_path / 'data'}"]
    for _ in range(2):
        result = run(*arguments, "--num_workers=1")
        assert result.returncode == 0, result.stderr
        assert "mine: train 8, val 1, test 1 records" in result.stdout
        assert "next: python -m medvlsm_jax.train" in result.stdout
    result = run(*arguments, "--seed=1")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "was prepared with seed=42" in result.stderr


def test_everything_about_an_unknown_dataset_is_an_error():
    result = run("--list", "--dataset=kvasir")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --dataset=kvasir is not known: choose one of bkai_polyp")


def test_missing_flags_are_named():
    result = run("--dataset=isic")
    assert result.returncode == 2
    assert result.stderr == "error: give --raw and --data_dir, or --list to see the datasets\n"


def test_a_home_folder_is_found(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run(prepared[0], "--data_dir=~/data", "--verify", "--preview=~/sheet.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sheet.png").exists()


@pytest.fixture
def prepared(raw, tmp_path) -> list[str]:
    """The arguments that name a prepared dataset of a user's card."""
    (tmp_path / "mine.toml").write_text('name = "mine"\ntargets = ["lesion"]\n')
    arguments = [f"--dataset={tmp_path / 'mine.toml'}", f"--data_dir={tmp_path / 'data'}"]
    assert run(*arguments, f"--raw={raw}", "--num_workers=1").returncode == 0
    return arguments


def test_a_prepared_dataset_is_checked(prepared, tmp_path):
    result = run(*prepared, "--verify", "--prompt=p6,attributes:size")
    assert (result.returncode, result.stdout) == (0, "no errors, no warnings\n"), result.stderr
    broken = sorted((tmp_path / "data" / "mine" / "images").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:200])
    result = run(*prepared, "--verify", "--prompt=p9")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "4 errors"  # the image, and in each split the prompt type that needs descriptions
    assert any(f"mine: {broken} cannot be decoded as an image" in line for line in lines)
    assert sum("has no prompt 'p9'" in line for line in lines) == 3


def test_a_prepared_dataset_becomes_a_store(prepared, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    stores = tmp_path / "stores"
    result = run(*prepared, f"--array_record={stores}", "--image_size=8", "--num_shards=2")
    assert result.returncode == 0, result.stderr
    folder = stores / "medvlsm" / "mine_8" / "1.0.0"
    assert f"mine: {folder}; runs read it with --config.data_dir={stores}" in result.stdout
    assert len(list(folder.glob("*train.array_record*"))) == 2
    assert [r.prompts for r in load_records(stores, prepared[0].partition("=")[2], "train")] == [
        r.prompts for r in load_records(tmp_path / "data", "mine", "train")
    ]


def test_a_prepared_dataset_is_drawn(prepared, tmp_path):
    result = run(*prepared, f"--preview={tmp_path / 'sheet.png'}", "--prompt=attributes:size,class")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = sheet.size
        pixels = np.asarray(sheet)
    assert width > 5 * 224
    assert height > 3 * 224  # a row for each split
    assert ((pixels == (255, 220, 0)).all(-1)).any()  # the border of a mask
    result = run(*prepared, f"--preview={tmp_path / 'other.png'}", "--prompt=p9")
    assert result.returncode == 2
    assert "has no prompt 'p9'" in result.stderr
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("name", ["sheet.xyz", "nowhere/sheet.png"])
def test_a_picture_that_cannot_be_written_is_named(prepared, tmp_path, name):
    result = run(*prepared, f"--preview={tmp_path / name}")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: --preview={tmp_path / name} cannot be written")
    assert result.stderr.count("\n") == 1


def test_files_that_name_their_classes_need_no_card(tmp_path):
    for name, values in (("images/1.png", 90), ("masks/1_left_lung.png", 255), ("masks/1_liver.png", 255)):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), values, np.uint8) * np.tri(16, dtype=np.uint8)).save(tmp_path / "raw" / name)
    arguments = ["--dataset=organs", f"--raw={tmp_path / 'raw'}", f"--data_dir={tmp_path / 'data'}", "--num_workers=1"]
    card = tmp_path / "data" / "organs.toml"
    for _ in range(2):
        result = run(*arguments)
        assert result.returncode == 0, result.stderr
        assert f"dataset={card},prompt=p6" in result.stdout
    assert named_card(str(card)).targets == ("left lung", "liver")
    card.write_text(card.read_text().replace("unknown", "CT"))  # it is the user's now
    assert run(*arguments).returncode == 0
    assert named_card(str(card)).modality == "CT"
    result = run(f"--dataset={card}", f"--data_dir={tmp_path / 'data'}", "--verify")
    assert result.returncode == 0, result.stdout


def test_masks_without_a_class_need_a_card(raw, tmp_path):
    result = run("--dataset=wounds", f"--raw={raw}", f"--data_dir={tmp_path / 'data'}")
    assert result.returncode == 2
    assert "of what class the masks are, is not known: give a card NAME.toml instead" in result.stderr
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").glob("wounds/*.json"))


@pytest.mark.parametrize(("flag", "message"), [("--channels=0,1", "give one channel"), ("--empty_slices=-1", "or all")])
def test_options_that_make_no_sense_are_named(raw, tmp_path, flag, message):
    result = run("--dataset=wounds", f"--raw={raw}", f"--data_dir={tmp_path / 'data'}", flag)
    assert result.returncode == 2
    assert message in result.stderr


# --- What is said of a user's own data --------------------------------------------------------------------------------


def test_words_are_counted_after_an_import(prepared, raw, tmp_path):
    result = run(*prepared, f"--raw={raw}")
    assert "class      lesion 8" in result.stdout
    assert "warning: fewer than 10 training examples stand behind class 'lesion' 8" in result.stdout


def test_masks_that_nobody_can_learn_from_are_an_error(raw, tmp_path):
    for path in (raw / "masks").iterdir():
        Image.new("L", (16, 16)).save(path)
    (tmp_path / "mine.toml").write_text('name = "mine"\ntargets = ["lesion"]\n')
    result = run(f"--dataset={tmp_path / 'mine.toml'}", f"--raw={raw}", f"--data_dir={tmp_path / 'data'}")
    assert result.returncode == 2
    assert "mine: all 10 masks are empty" in result.stderr
    assert "next:" not in result.stdout


def test_images_of_two_splits_that_look_alike_are_drawn(prepared, tmp_path):
    images = tmp_path / "data" / "mine" / "images"
    first, other = (load_records(tmp_path / "data", "mine", split)[0].image for split in ("train", "test"))
    with Image.open(images / first.name) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / other.name)
    result = run(*prepared, f"--duplicates={tmp_path / 'pairs.png'}")
    assert result.returncode == 0, result.stderr
    assert f"{images / first.name} looks like {images / other.name} mirrored of the split test" in result.stdout
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.width > 2 * 224 > sheet.width - 224
    result = run(*prepared, f"--duplicates={images / first.name}")
    assert result.returncode == 2
    assert "is a file of the dataset" in result.stderr


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 100])
def test_a_preview_draws_no_record_twice(count):
    chosen = spread([make_record_named(i) for i in range(count)], 5)
    assert len({record.name for record in chosen}) == len(chosen) == min(5, count)


def make_record_named(number: int) -> Record:
    return Record(Card("mine"), Path(f"{number}.png"), Path("m.png"), {}, name=str(number))
