"""BiomedParseData in its published layout: folders, names of masks, and json files with sentences."""

import json

import numpy as np
import pytest

from medvlsm_jax.data.cards import named_card
from medvlsm_jax.data.language.prompts import choose_prompt
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.preparing.annotate import annotate
from medvlsm_jax.errors import UserError


@pytest.fixture
def tree(tmp_path, draw):
    """Four images for training and two for testing, with sentences; values of masks are 0 and 1, or 0 and 7."""
    raw = tmp_path / "raw" / "ACDC"
    for part, count in (("train", 4), ("test", 2)):
        annotations = []
        for i in range(count):
            name = f"patient_{i}_MRI_heart"
            draw.write(raw / part / f"{name}.png", draw.picture(i + len(part) * 10))
            for target, value in (("left+ventricle", 1), ("myocardium", 7)):
                draw.write(
                    raw / f"{part}_mask" / f"{name}_{target}.png", draw.box(i, i, i + 6, i + 5) * np.uint8(value)
                )
                text = f"{target.replace('+', ' ')} in heart MRI"
                annotations.append(
                    {
                        "mask_file": f"{name}_{target}.png",
                        "iscrowd": 0,
                        "image_id": i,
                        "category_id": 1,
                        "id": len(annotations),
                    }
                    | {
                        "file_name": f"{name}.png",
                        "split": part,
                        "sentences": [{"raw": text, "sent": text, "sent_id": 0}],
                    }
                )
        (raw / f"{part}.json").write_text(json.dumps({"annotations": annotations}))
    return raw


def test_targets_and_sentences_are_those_of_the_dataset(tree, tmp_path, draw, prepared):
    done = prepared()
    assert len(done.rows) == 12
    assert {row["image"] for row in done.rows if row["split"] == "test"} == {
        f"test/patient_{i}_MRI_heart.png" for i in range(2)
    }
    np.testing.assert_array_equal(done.mask("myocardium/train/patient_1_MRI_heart.png"), draw.box(1, 1, 7, 6))
    card = named_card(str(done.card))
    assert (card.targets, card.modality) == (("left ventricle", "myocardium"), "MRI")
    for _ in range(2):  # as prepared, and with prompts made anew
        records = load_records(tmp_path / "data", str(done.card), "test")
        sentences = {record.target: choose_prompt(record, "given") for record in records}
        assert sentences == {target: f"{target} in heart MRI" for target in card.targets}
        annotate(done.folder, card, workers=1)


def test_masks_whose_names_are_others_are_named(tree, prepared, draw):
    draw.write(tree / "train_mask" / "patient_9_MRI_heart_myocardium.png", draw.box(0, 0, 5, 5) * np.uint8(1))
    with pytest.raises(UserError, match=r"has no image IMAGE_MODALITY_SITE\.png for masks of"):
        prepared()
    draw.write(tree / "train_mask" / "myocardium.png", draw.box(0, 0, 5, 5) * np.uint8(1))
    with pytest.raises(UserError, match=r"the mask myocardium\.png is not called IMAGE_MODALITY_SITE_TARGET\.png"):
        prepared()
