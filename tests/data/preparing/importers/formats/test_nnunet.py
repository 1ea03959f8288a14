"""nnU-Net's raw data and the decathlon's, written by nibabel; slices as nibabel gives them."""

import json
import tomllib

import numpy as np
import pytest

from medvlsm_jax.data.cards import Card
from medvlsm_jax.errors import UserError

SHAPE = (12, 10, 6)
SPACING = (0.8, 0.7, 2.5)  # along the axes of the file
NEW = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": [1, 2], "liver_tumour": 2},
    "file_ending": ".nii.gz",
}
OLD = {"name": "x", "modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "spleen", "2": "kidney"}}


def labels() -> np.ndarray:
    """An organ in three slices, and something in it in one."""
    values = np.zeros(SHAPE, np.uint8)
    values[2:8, 3:7, 1:4] = 1
    values[4:6, 4:6, 2] = 2
    return values


def save(path, values: np.ndarray) -> None:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])  # to the left and to the back, as it is shown
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def volume(case: int) -> np.ndarray:
    return np.random.default_rng(case).integers(-200, 300, SHAPE).astype(np.int16)


@pytest.fixture
def tree(tmp_path):
    """Four cases and one of the test set; the folds of a training."""
    raw = tmp_path / "raw" / "Dataset001_Liver"
    for part, cases in (("Tr", range(4)), ("Ts", [7])):
        for case in cases:
            save(raw / f"images{part}" / f"liver_{case:03d}_0000.nii.gz", volume(case))
            save(raw / f"labels{part}" / f"liver_{case:03d}.nii.gz", labels())
    (raw / "dataset.json").write_text(json.dumps(NEW | {"numTraining": 4}))
    folds = [{"train": ["liver_000", "liver_001", "liver_002"], "val": ["liver_003"]}]
    (raw / "splits_final.json").write_text(json.dumps(folds))
    return raw


def shown(plane: np.ndarray) -> np.ndarray:
    """A plane of the file as it is looked at: rows to the back, columns to the left."""
    return plane.T


def windowed(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((plane.astype(float) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def test_slices_with_an_object_are_records_of_their_patient(tree, prepared, assert_masks, capsys):
    done = prepared(fold=0)
    expected = {}
    for case in (0, 1, 2, 3, 7):
        for i in (1, 2, 3):
            plane = labels()[:, :, i]
            expected[f"liver_{case:03d}_{i:04d}.png", "liver"] = shown(plane > 0)
            if i == 2:
                expected[f"liver_{case:03d}_{i:04d}.png", "liver tumour"] = shown(plane == 2)
    assert_masks(done.masks(), expected)
    assert {(row["group"], row["split"]) for row in done.rows} == {
        ("liver_000", "train"),
        ("liver_001", "train"),
        ("liver_002", "train"),
        ("liver_003", "val"),
        ("liver_007", "test"),
    }
    assert {row["spacing"] for row in done.rows} == {"0.7x0.8"}  # down, across
    image = done.image("liver_001_0002.png")
    np.testing.assert_array_equal(image, windowed(shown(volume(1)[:, :, 2]), -150, 250))  # soft tissue: 50, 400
    said = capsys.readouterr().out
    assert "15 of 30 images have no object and are left out (--empty_slices=N keeps some)" in said
    assert "CT is shown in the window soft_tissue" in said
    assert tomllib.loads(done.card.read_text())["modality"] == "CT"
    assert done.entries["liver/liver_001_0002.png"]["group"] == "liver_001"


@pytest.mark.parametrize(("wanted", "kept"), [(1, 1), (2, 2), (None, 3)])
def test_empty_slices_are_kept_on_request(tree, prepared, wanted, kept):
    done = prepared(empty_slices=wanted)
    empty = [row for row in done.rows if not done.mask(row["mask"]).any()]
    assert len(empty) == 5 * kept * 2  # of each case, for each class
    assert {done.entries[row["mask"]]["prompts"]["p1"] for row in empty} == {"no liver", "no liver tumour"}


def test_the_window_is_the_cards(tree, prepared):
    done = prepared(Card("mine", targets=("liver",), window="0:200"))
    np.testing.assert_array_equal(done.image("liver_001_0002.png"), windowed(shown(volume(1)[:, :, 2]), -100, 100))
    assert {row["target"] for row in done.rows} == {"liver"}


def test_the_decathlon_has_all_channels_in_a_file(tmp_path, prepared, assert_masks):
    raw = tmp_path / "raw" / "Task09"
    for case in range(2):
        save(raw / "imagesTr" / f"spleen_{case}.nii.gz", np.stack([volume(case), volume(case + 10)], -1))
        save(raw / "labelsTr" / f"spleen_{case}.nii.gz", labels())
    training = [{"image": f"./imagesTr/spleen_{i}.nii.gz", "label": f"./labelsTr/spleen_{i}.nii.gz"} for i in range(2)]
    (raw / "dataset.json").write_text(json.dumps(OLD | {"training": training, "test": []}))
    done = prepared(channels=(1,))
    assert {row["target"] for row in done.rows} == {"spleen", "kidney"}
    np.testing.assert_array_equal(done.mask("kidney/spleen_1_0002.png"), shown(labels()[:, :, 2] == 2))
    slices = [done.image(f"spleen_1_{i:04d}.png").astype(float) for i in (1, 2, 3)]
    expected = [shown(volume(11)[:, :, i]).astype(float) for i in (1, 2, 3)]
    for found, plane in zip(slices, expected, strict=True):  # stretched, so that the order of values stays
        assert np.corrcoef(found.ravel(), plane.ravel())[0, 1] > 0.99
    assert tomllib.loads(done.card.read_text())["modality"] == "ADC"


def test_two_dimensional_images_stay_as_they_are(tmp_path, draw, prepared, assert_masks):
    raw = tmp_path / "raw"
    for i in range(3):
        draw.write(raw / "imagesTr" / f"r{i}_0000.png", draw.picture(i))
        draw.write(raw / "labelsTr" / f"r{i}.png", draw.box(i, 2, i + 5, 9).astype(np.uint8))
    (raw / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "R"}, "labels": {"background": 0, "road": 1}, "file_ending": ".png"})
    )
    done = prepared()
    assert_masks(done.masks(), {(f"r{i}.png", "road"): draw.box(i, 2, i + 5, 9) for i in range(3)})
    assert (done.folder / "images" / "r1.png").read_bytes() == (raw / "imagesTr" / "r1_0000.png").read_bytes()


def error_of(prepared, **options) -> str:
    with pytest.raises(UserError) as error:
        prepared(**options)
    assert str(error.value).isprintable()
    return str(error.value)


def test_what_does_not_belong_together_is_named(tree, tmp_path, prepared):
    assert "there is no channel 3, but 0 (CT)" in error_of(prepared, channels=(3,))
    assert "--fold=4" in error_of(prepared, fold=4)
    save(tree / "labelsTr" / "liver_002.nii.gz", labels()[:, :, :5])
    assert "liver_002.nii.gz has 12x10x5 voxels" in error_of(prepared)
    save(tree / "labelsTr" / "liver_002.nii.gz", labels() * 3)
    assert "liver_002.nii.gz has the label 3, which has no name" in error_of(prepared)
    (tree / "imagesTr" / "liver_001_0000.nii.gz").unlink()
    assert "has labels, but no image for: liver_001_0000" in error_of(prepared)
