"""What the files of several sentences are called, and what a TIFF of several pages holds."""

import numpy as np
from PIL import Image

from medvlsm_jax.predicting.outputs import in_file_names, save_pages


def test_sentences_become_parts_of_file_names_of_which_no_two_are_alike():
    prompts = ["one small polyp", "One small, polyp!", "a/b\\c:d", "?", "Ödem links", "x" * 300, None]
    names = in_file_names(prompts)
    assert names[0] == "one-small-polyp"
    assert names[2:5] == ["a-b-c-d", "prompt", "Ödem-links"]
    assert len({name.casefold() for name in names}) == len(prompts)
    assert max(map(len, names)) <= 62


def test_pages_of_any_size_come_back_as_they_were(tmp_path):
    pages = [np.full((20 + i, 30), 10 * i, np.uint8) for i in range(3)]
    save_pages(tmp_path / "a.tif", iter(pages))
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 3
        for i, page in enumerate(pages):
            image.seek(i)
            np.testing.assert_array_equal(np.asarray(image), page)
