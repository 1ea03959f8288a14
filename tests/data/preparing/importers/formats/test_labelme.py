"""LabelMe files as its version 5 writes them."""

import base64
import io
import json

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from medvlsm_jax.errors import UserError

OCTAGON = [(8, 2), (12, 2), (15, 5), (15, 9), (12, 12), (8, 12), (5, 9), (5, 5)]  # its slopes are whole numbers


def png(values: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shape(label: str, points: list, kind: str = "polygon", **others) -> dict:
    base = {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {}}
    return base | {"mask": None} | others


@pytest.fixture
def save(tmp_path, draw):
    """Writes an image and its json file, as LabelMe does."""

    def write(stem: str, shapes: list, **others) -> None:
        number = int(stem)
        draw.write(tmp_path / "raw" / f"{stem}.png", draw.picture(number))
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.png", "imageData": None}
        content |= {"imageHeight": 20, "imageWidth": 24} | others
        (tmp_path / "raw" / f"{stem}.json").write_text(json.dumps(content))

    return write


def inside(points: list, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in an outline or on it, by matplotlib."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    found = Outline([*points, points[0]], closed=True).contains_points(np.stack([x, y], -1).reshape(-1, 2), radius=1e-6)
    other = Outline([*points, points[0]], closed=True).contains_points(
        np.stack([x, y], -1).reshape(-1, 2), radius=-1e-6
    )
    return (found | other).reshape(size[::-1])


def test_shapes_of_each_type(save, draw, prepared, assert_masks, capsys):
    small = np.zeros((6, 8), np.uint8)
    small[1:4, 2:7] = 255
    save("0", [shape("liver", OCTAGON), shape("liver", [(20, 18), (17, 14)], "rectangle")])
    save("1", [shape("left_lung", [(10, 8), (13, 8)], "circle"), shape("liver", [(1, 1)], "point")])
    save("2", [shape("liver", [(3.0, 4.0), (10.0, 9.0)], "mask", mask=png(small)), shape("_background_", OCTAGON)])
    done = prepared()
    placed = np.zeros((20, 24), bool)
    placed[4:10, 3:11] = small > 0
    y, x = np.mgrid[:20, :24]
    disc = (x - 10) ** 2 + (y - 8) ** 2
    masks = done.masks()
    lung = masks.pop(("1.png", "left lung"))
    assert lung[disc <= 9].all()
    assert not lung[disc > 13].any()  # within half a pixel of the radius
    assert_masks(
        masks,
        {
            ("0.png", "liver"): inside(OCTAGON, draw.size) | draw.box(17, 14, 20, 18),
            ("2.png", "liver"): placed,
        },
    )
    assert "1 shapes that are points or lines are left out" in capsys.readouterr().out


def test_the_image_may_lie_within_the_file(save, tmp_path, draw, prepared):
    values = draw.picture(7)
    save("0", [shape("liver", OCTAGON)], imagePath="..\\elsewhere\\0.jpg", imageData=png(values))
    (tmp_path / "raw" / "0.png").unlink()
    done = prepared()
    np.testing.assert_array_equal(done.image("0.png"), values)


def test_each_shape_may_be_a_record_and_groups_stay_together(save, prepared):
    far = [(18, 14), (22, 14), (22, 18)]
    save("0", [shape("liver", OCTAGON, group_id=3), shape("liver", far, group_id=3), shape("liver", far)])
    done = prepared(per_object=True)
    assert [row["mask"] for row in done.rows] == ["liver/0_1.png", "liver/0_2.png"]
    assert done.mask("liver/0_1.png")[7, 10]
    assert done.mask("liver/0_1.png")[14, 20]
    assert not done.mask("liver/0_2.png")[7, 10]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("liver", [(1, 1)], "rectangle"), "shape 0: a rectangle has 2 points, not 1"),
        (shape("liver", [(1, 1), (5, 5), (900, 5)]), "shape 0: a corner lies at 900"),
        (shape("liver", [(1, "x"), (5, 5)]), "shape 0: its corners are no list of"),
        (shape("liver", [(3, 4), (10, 9)], "mask", mask="!"), "shape 0: a picture in it is not in base64"),
        (
            shape("liver", [(3, 4), (5, 5)], "mask", mask=png(np.ones((6, 8), np.uint8))),
            "shape 0: its mask of 8x6 pixels",
        ),
    ],
)
def test_a_shape_that_is_wrong_is_named(save, prepared, broken, message):
    save("0", [broken])
    with pytest.raises(UserError) as error:
        prepared()
    assert message in str(error.value)


def test_an_image_that_is_nowhere_is_named(save, tmp_path, prepared):
    save("0", [shape("liver", OCTAGON)], imagePath="lost.png")
    (tmp_path / "raw" / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.json is of the image lost\.png, which is neither in"):
        prepared()
