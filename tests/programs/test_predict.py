"""Pictures of any kind in, masks of their own size out; a broken one does not spoil the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medvlsm_jax as mv
from medvlsm_jax.data.images import image_endings, open_image
from medvlsm_jax.data.scans.opening import find_images
from medvlsm_jax.data.scans.pages import Pages
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.file_names import PREDICTIONS
from medvlsm_jax.predict import predict
from medvlsm_jax.predicting.segmenter import Segmenter

RNG = np.random.default_rng(0)


def save(path: Path, mode: str, size: tuple[int, int] = (61, 40)) -> Path:
    """A drawn image of a mode; `I;16` is a 16-bit PNG."""
    rgba = RNG.integers(0, 255, (size[1], size[0], 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(rgba[..., 0].astype(np.uint16) * 40)
    else:
        image = Image.fromarray(rgba).convert("RGB").convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize("name", ["RGB.png", "L.png", "I;16.png", "P.png", "RGBA.png", "LA.png", "1.png", "RGB.jpg"])
def test_an_image_of_any_mode_gets_three_pictures_of_its_size(run, tmp_path, name):
    path = save(tmp_path / name, name.split(".")[0])
    (written,) = predict(run, [path], "one polyp", tmp_path / "out", batch_size=2)
    assert written == tmp_path / "out" / f"{path.stem}_mask.png"
    assert {p.name for p in (tmp_path / "out").glob("[!.]*")} == {
        f"{path.stem}_{kind}.png" for kind in ("mask", "probability", "overlay")
    }
    for kind, mode in (("mask", "L"), ("probability", "L"), ("overlay", "RGB")):
        with Image.open(tmp_path / "out" / f"{path.stem}_{kind}.png") as picture:
            assert (picture.size, picture.mode) == ((61, 40), mode)


def test_a_16_bit_image_gives_what_its_8_bit_version_gives(run, tmp_path):
    deep = np.zeros((32, 32), np.uint16)
    deep[8:24, 8:24] = np.arange(16) * 4000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    shallow = np.rint(deep * (255 / deep.max())).astype(np.uint8)
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    predict(run, [tmp_path / "deep.png", tmp_path / "shallow.png"], "one polyp", tmp_path / "out", batch_size=2)
    deep, shallow = (np.asarray(open_image(tmp_path / "out" / f"{n}_probability.png")) for n in ("deep", "shallow"))
    np.testing.assert_array_equal(deep, shallow)


def test_the_threshold_divides_the_probabilities(run, tmp_path):
    path = save(tmp_path / "image.png", "RGB")
    for threshold, is_all in ((0.0, True), (1.0, False)):
        (written,) = predict(run, [path], "one polyp", tmp_path / "out", threshold=threshold, batch_size=2)
        mask = np.asarray(open_image(written)) > 0
        assert mask.all() == is_all
        assert mask.any() == is_all


def test_an_image_gets_the_same_mask_alone_as_among_others(run, tmp_path):
    paths = [save(tmp_path / f"{i}.png", "RGB", (40 + i, 50)) for i in range(3)]
    predict(run, paths, "one polyp", tmp_path / "together", batch_size=2)
    predict(run, paths[2:], "one polyp", tmp_path / "alone", batch_size=2)
    together, alone = (np.asarray(open_image(tmp_path / f / "2_probability.png"), int) for f in ("together", "alone"))
    assert np.abs(together - alone).max() <= 1


def test_a_broken_image_is_named_and_the_others_are_written(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "c.png", "d.png"):
        save(folder / name, "RGB")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    with pytest.raises(UserError, match=rf"1 of 4 images are left out: {folder / 'b.png'} cannot be decoded") as error:
        predict(run, find_images(folder), "one polyp", tmp_path / "out", batch_size=2)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in (tmp_path / "out").glob("*_mask.png")) == ["a_mask.png", "c_mask.png", "d_mask.png"]


def test_images_that_share_a_stem_keep_their_endings(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        save(folder / name, "RGB")
    written = predict(run, find_images(folder), "one polyp", tmp_path / "out", batch_size=2)
    assert {path.name for path in written} == {"a.png_mask.png", "a.jpg_mask.png", "b.png_mask.png"}
    assert all(path.is_file() for path in written)


def test_a_folder_is_searched_for_images_alone(tmp_path):
    names = ["b.PNG", "a.jpg", "c.tif", "notes.txt", ".hidden.png"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tif"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_what_no_reader_knows_is_left_out_and_said_so_in_one_line(tmp_path, capsys):
    others = ["a.pdf", "b.mpg", "c.h5", "d.dcm", "e.nii.gz", "f.eps", "g.wmf", "h.grib", "i.palm"]
    for name in ["scan.png", "scan.jp2", "stereo.mpo", ".hidden", *others]:
        (tmp_path / name).touch()
    found = ["e.nii.gz", "scan.jp2", "scan.png", "stereo.mpo"]
    assert [path.name for path in find_images(tmp_path)] == found
    said = capsys.readouterr().out
    names = "a.pdf, b.mpg, c.h5, d.dcm, f.eps and 3 more"
    assert said == f"left out, for they are in no format that is read (docs/images.md): {names}\n"


def test_a_folder_of_images_alone_needs_no_word(tmp_path, capsys):
    (tmp_path / "scan.png").touch()
    find_images(tmp_path)
    assert capsys.readouterr().out == ""


def test_every_ending_that_counts_is_of_a_format_that_becomes_pixels(tmp_path):
    """Of those that Pillow writes as well."""
    tried = set()
    for ending in sorted(image_endings()):
        path = tmp_path / f"image{ending}"
        kind = Image.registered_extensions()[ending]
        if kind in Image.SAVE and kind not in ("ICNS", "ICO", "IM"):  # of fixed sizes, on its way out
            Image.new("1" if kind in ("MSP", "XBM") else "P" if kind == "BLP" else "RGB", (16, 16)).save(path, kind)
            assert open_image(path).size == (16, 16)
            tried.add(kind)
    assert {"PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "MPO", "GIF"} <= tried


@pytest.mark.parametrize(("dtype", "options"), [("float32", {}), ("bfloat16", {"dtype": "bfloat16"})])
def test_a_run_of_an_accelerator_predicts_in_float32_unless_asked_otherwise(
    run_copy, tmp_path, monkeypatch, dtype, options
):
    description = json.loads((run_copy / "model.json").read_text())
    description["config"]["dtype"] = "bfloat16"  # what `auto` means there
    (run_copy / "model.json").write_text(json.dumps(description))
    computed = []

    def look(segmenter, images, questions):
        computed.append(segmenter.config.dtype)
        return [np.zeros((len(images), 32, 32), np.float32) for _ in questions]

    monkeypatch.setattr(Segmenter, "probabilities", look)
    predict(run_copy, [save(tmp_path / "a.png", "RGB")], "one polyp", tmp_path / "out", **options)
    assert computed == [dtype]
    assert mv.load(run_copy, **options).config.dtype == dtype


def test_no_images_are_an_error_that_names_the_flag(tmp_path):
    with pytest.raises(UserError, match=f"--image={tmp_path} holds no images that can be read$"):
        find_images(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=f"--image={tmp_path} holds no images that can be read, but notes.txt$"):
        find_images(tmp_path)
    with pytest.raises(UserError, match=f"--image={tmp_path / 'nowhere'} does not exist"):
        find_images(tmp_path / "nowhere")


# --- Several sentences, numbers, and what was done before -------------------------------------------------------------

SENTENCES = ["one small polyp", "two large polyps"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_each_of_several_sentences_has_files_of_its_own_which_are_those_it_gets_alone(run, tmp_path):
    image = save(tmp_path / "a.png", "RGB")
    written = predict(run, [image], SENTENCES, tmp_path / "both")
    assert len(files(tmp_path / "both")) == 6
    for sentence, mask in zip(SENTENCES, written, strict=True):
        predict(run, [image], sentence, tmp_path / "alone")
        for kind in PREDICTIONS:
            together = mask.with_name(mask.name.replace("_mask.png", f"_{kind}.png"))
            assert together.read_bytes() == (tmp_path / "alone" / f"a_{kind}.png").read_bytes()


def test_json_says_what_the_masks_cover(run, tmp_path):
    image = save(tmp_path / "a.png", "RGB")
    masks = predict(run, [image], SENTENCES, tmp_path / "out", save_json=True, threshold=0.5)
    said = json.loads((tmp_path / "out" / "a_masks.json").read_text())
    assert (said["image"], said["slices"], said["threshold"], said["spacing_mm"]) == ("a.png", 1, 0.5, None)
    for about, sentence, mask in zip(said["masks"], SENTENCES, masks, strict=True):
        assert (about["prompt"], about["mask"]) == (sentence, mask.name)
        assert about["area_px"] == np.count_nonzero(np.asarray(open_image(mask)))


def test_what_an_interrupted_run_has_done_is_left_as_it_is(run, tmp_path, monkeypatch, capsys):
    images = [save(tmp_path / f"{i}.png", "RGB") for i in range(5)]
    predict(run, images, "one polyp", tmp_path / "whole", batch_size=2)
    read = Pages.read

    def interrupted(pages: Pages, index: int) -> Image.Image:
        if pages.path == images[4]:
            raise KeyboardInterrupt
        return read(pages, index)

    monkeypatch.setattr(Pages, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(run, images, "one polyp", tmp_path / "out", batch_size=2)
    done = [path for path in images if (tmp_path / "out" / f"{path.stem}_mask.png").exists()]
    assert 0 < len(done) < 5
    segmented = []
    monkeypatch.setattr(Pages, "read", lambda pages, index: segmented.append(pages.path) or read(pages, index))
    predict(run, images, "one polyp", tmp_path / "out", batch_size=2)
    assert set(segmented) == set(images) - set(done)
    assert f"{len(done)} of 5 were segmented before" in capsys.readouterr().out
    for name in files(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("changed", ["sentence", "image", "file"])
def test_what_was_done_is_done_anew_when_something_has_changed(run, tmp_path, monkeypatch, changed):
    image = save(tmp_path / "a.png", "RGB")
    (mask,) = predict(run, [image], "one polyp", tmp_path / "out")
    if changed == "image":
        save(image, "RGB", (70, 50))
    if changed == "file":
        mask.unlink()
    predict(run, [image], "two polyps" if changed == "sentence" else "one polyp", tmp_path / "out")
    assert open_image(mask).size == open_image(image).size
    segmented = []
    monkeypatch.setattr(Segmenter, "probabilities", lambda *args: segmented.append(args))
    predict(run, [image], "two polyps" if changed == "sentence" else "one polyp", tmp_path / "out")
    assert not segmented


# --- What is not ours -------------------------------------------------------------------------------------------------


@pytest.fixture
def busi(tmp_path) -> Path:
    """An image beside its mask, as BUSI's download has them."""
    folder = tmp_path / "busi"
    folder.mkdir()
    save(folder / "benign (1).png", "RGB")
    save(folder / "benign (1)_mask.png", "L")
    return folder


def test_a_mask_of_the_users_is_not_replaced_by_a_prediction(run, busi):
    before = (busi / "benign (1)_mask.png").read_bytes()
    with pytest.raises(UserError, match=r"holds benign \(1\)_mask.png, which this program has not written") as error:
        predict(run, find_images(busi), "one tumor", busi, batch_size=2)
    assert "\n" not in str(error.value)
    assert {path.name: path.stat().st_size > 0 for path in busi.iterdir()} == {
        "benign (1).png": True,
        "benign (1)_mask.png": True,
    }
    assert (busi / "benign (1)_mask.png").read_bytes() == before


def test_the_folder_of_the_images_may_be_the_output_and_predictions_are_no_images(run, tmp_path, capsys):
    save(tmp_path / "a.png", "RGB")
    for _ in range(2):
        assert find_images(tmp_path) == [tmp_path / "a.png"]
        predict(run, find_images(tmp_path), "one tumor", tmp_path, batch_size=2)
    assert "left out, for they are predictions: a_mask.png, a_overlay.png, a_probability.png" in capsys.readouterr().out
    assert len(list(tmp_path.glob("[!.]*"))) == 4


def test_a_prediction_that_was_corrected_by_hand_is_the_users(run, tmp_path):
    image = save(tmp_path / "a.png", "RGB")
    (mask,) = predict(run, [image], "one tumor", tmp_path / "out")
    mask.write_bytes(b"corrected")
    with pytest.raises(UserError, match="or which was changed since"):
        predict(run, [image], "one tumor", tmp_path / "out")
    assert mask.read_bytes() == b"corrected"


def test_images_of_one_name_in_two_folders_keep_masks_of_their_own(run, tmp_path):
    images = []
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        images.append(save(tmp_path / name / "a.png", "RGB"))
    written = predict(run, images, "one tumor", tmp_path / "out")
    assert [path.name for path in written] == ["left_a.png_mask.png", "right_a.png_mask.png"]


def test_probabilities_that_are_not_finite_are_refused(run_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "probabilities", lambda _, pixels, questions: [np.full(pixels.shape[:3], np.nan)])
    image = save(tmp_path / "a.png", "RGB")
    with pytest.raises(UserError, match=r"a.png: its probabilities are not finite"):
        predict(run_copy, [image], "one tumor", tmp_path / "out")
    assert not (tmp_path / "out").exists()
