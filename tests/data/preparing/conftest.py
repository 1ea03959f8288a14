"""Raw downloads of all eleven datasets, drawn small, in the layouts and formats of the real ones."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (24, 20)  # width, height
SPACING = (0.308, 0.154)  # of CAMUS, mm of a pixel across and down
FRAMES = (1, 2, 25, 26, 27, 60, 70, 80, 110, 130, 160, 180)  # of ClinicDB, in several sequences
CAMUS_INFO = {"patient0001": ("F", 56, "Good"), "patient0002": ("M", 73, "Poor"), "patient0003": ("M", 40, "Medium")}


def pixels(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that only this name has."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.integers(0, 256, (size[1], size[0], 3), np.uint8)


def blob(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A rectangle that depends on the name."""
    mask = np.zeros((size[1], size[0]), bool)
    left = zlib.crc32(name.encode()) % 8
    mask[4 : 4 + size[1] // 3, left : left + size[0] // 3] = True
    return mask


def write_picture(path: Path, values: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def write_mask(path: Path, mask: np.ndarray, **options) -> None:
    write_picture(path, np.where(mask, 255, 0).astype(np.uint8), **options)


def write_pairs(names, images: Path, masks: Path, image_suffix: str, mask_suffix: str, form: str = "{}") -> None:
    """An image and a mask for each name."""
    for name in map(str, names):
        write_picture(images / f"{name}{image_suffix}", pixels(name))
        write_mask(masks / f"{form.format(name)}{mask_suffix}", blob(name))


def write_kvasir(raw: Path) -> None:
    names = [f"cju0qkwl35piu{i:04d}" for i in range(10)]
    write_pairs(names, raw / "Kvasir-SEG" / "images", raw / "Kvasir-SEG" / "masks", ".jpg", ".jpg")
    (raw / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")


def write_pranet(raw: Path, name: str) -> None:
    write_pairs(range(1, 11), raw / name / "images", raw / name / "masks", ".png", ".png")


def write_bkai(raw: Path) -> None:
    names = [f"{i:032x}" for i in range(10)]
    for i, name in enumerate(names):
        write_picture(raw / "train" / "train" / f"{name}.jpeg", pixels(name, (64, 48)))
        colors = np.zeros((48, 64, 3), np.uint8)
        colors[8:24, 8:24, 0] = 255 * (i != 1)  # the second has no red
        colors[28:44, 32:56, 1] = 255 * (i != 0)  # the first has no green
        write_picture(raw / "train_gt" / "train_gt" / f"{name}.jpeg", colors, quality=90)
    write_picture(raw / "test" / "test" / "unlabelled.jpeg", pixels("unlabelled"))


def write_clinicdb(raw: Path) -> None:
    write_pairs(FRAMES, raw / "CVC-ClinicDB" / "Original", raw / "CVC-ClinicDB" / "Ground Truth", ".tif", ".tif")


def write_isic(raw: Path) -> None:
    for part, first, count in (("Training", 0, 10), ("Test", 100, 5)):
        folders = [raw / f"ISBI2016_ISIC_Part1_{part}_{kind}" for kind in ("Data", "GroundTruth")]
        names = [f"ISIC_{i:07d}" for i in range(first, first + count)]
        write_pairs(names, *folders, ".jpg", ".png", "{}_Segmentation")


def write_dfu(raw: Path) -> None:
    folder = raw / "DFUC2022_train_release"
    names = range(100001, 100011)
    write_pairs(names, folder / "DFUC2022_train_images", folder / "DFUC2022_train_masks", ".jpg", ".png")


def write_camus(raw: Path, suffix: str = ".mhd") -> None:
    """The first release: three training patients, and a test patient without labels."""
    for patient, info in CAMUS_INFO.items():
        write_patient(raw / "training" / patient, *info, suffix)
    write_patient(raw / "testing" / "patient0001", "M", 73, "Good", suffix, has_labels=False)


def write_patient(folder: Path, sex: str, age: int, quality: str, suffix: str, *, has_labels: bool = True) -> None:
    import SimpleITK

    folder.mkdir(parents=True)
    for view in ("2CH", "4CH"):
        info = f"ED: 1\nES: 18\nNbFrame: 18\nSex: {sex}\nAge: {age}\nImageQuality: {quality}\nEF: 50\nFrameRate: 53.6\n"
        (folder / f"Info_{view}.cfg").write_text(info)
        for phase in ("ED", "ES"):
            stem = f"{folder.name}_{view}_{phase}"
            volumes = {stem: pixels(f"{folder.parent.name}{stem}")[..., 0], f"{stem}_gt": labels()}
            for name, values in list(volumes.items())[: 1 + has_labels]:
                volume = SimpleITK.GetImageFromArray(values[None])
                volume.SetSpacing((*SPACING, 1.0))
                SimpleITK.WriteImage(volume, folder / f"{name}{suffix}")


def labels() -> np.ndarray:
    """A label volume's slice: the cavity, the muscle around its upper half, and the atrium below it."""
    values = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    values[2:12, 4:16] = 2
    values[4:12, 6:14] = 1
    values[12:17, 6:14] = 3
    return values


def write_busi(raw: Path) -> None:
    for kind, count in (("benign", 4), ("malignant", 4), ("normal", 3)):
        folder = raw / "Dataset_BUSI_with_GT" / kind
        for i in range(1, count + 1):
            name = f"{kind} ({i})"
            write_picture(folder / f"{name}.png", pixels(name))
            write_mask(folder / f"{name}_mask.png", blob(name) & (kind != "normal"))
    second = np.zeros((SIZE[1], SIZE[0]), bool)
    second[15:19, 18:23] = True
    write_mask(raw / "Dataset_BUSI_with_GT" / "benign" / "benign (1)_mask_1.png", second)


def write_chexlocalize(raw: Path) -> None:
    """Two patients of the validation and one of the test release; the last image is stored at half its size."""
    square = [[[6.0, 4.0], [18.0, 4.0], [18.0, 12.0], [6.0, 12.0]]]
    corner = [[[0.0, 0.0], [5.0, 0.0], [5.0, 5.0]], [[20.0, 15.0], [23.0, 15.0], [23.0, 19.0], [20.0, 19.0]]]
    size = [SIZE[1], SIZE[0]]
    val = {
        "patient64541_study1_view1_frontal": {"img_size": size, "Airspace Opacity": square, "Lung Lesion": corner},
        "patient64541_study1_view2_lateral": {"img_size": size, "Support Devices": corner, "Edema": []},
        "patient64542_study1_view1_frontal": {"img_size": size, "Enlarged Cardiomediastinum": square},
    }
    test = {
        "patient64741_study1_view1_frontal": {
            "img_size": [40, 48],
            "Cardiomegaly": [[[12, 8], [36, 8], [36, 24], [12, 24]]],
        }
    }
    (raw / "CheXlocalize").mkdir(parents=True)
    for part, content in (("val", val), ("test", test)):
        (raw / "CheXlocalize" / f"gt_annotations_{part}.json").write_text(json.dumps(content))
        for key in content:
            write_picture(raw / "CheXpert" / part / (key.replace("_", "/", 2) + ".jpg"), pixels(key)[..., 0])
    columns = (
        "Path,Sex,Age,No Finding,Enlarged Cardiomediastinum,Lung Opacity,Lung Lesion,Edema,Pneumonia,Support Devices"
    )
    lines = [
        "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,Male,60,0.0,1.0,1.0,1.0,0.0,1.0,0.0",
        "CheXpert-v1.0/valid/patient64541/study1/view2_lateral.jpg,Male,60,0.0,0.0,0.0,0.0,0.0,0.0,1.0",
        "CheXpert-v1.0/valid/patient64542/study1/view1_frontal.jpg,Female,70,1.0,1.0,0.0,0.0,0.0,0.0,0.0",
    ]
    (raw / "CheXpert" / "val_labels.csv").write_text("\n".join([columns, *lines]) + "\n")


DOWNLOADS: dict[str, Callable[[Path], None]] = {
    "kvasir_polyp": write_kvasir,
    "bkai_polyp": write_bkai,
    "clinicdb_polyp": write_clinicdb,
    "cvc300_polyp": lambda raw: write_pranet(raw, "CVC-300"),
    "colondb_polyp": lambda raw: write_pranet(raw, "CVC-ColonDB"),
    "etis_polyp": lambda raw: write_pranet(raw, "ETIS-LaribPolypDB"),
    "isic": write_isic,
    "dfu": write_dfu,
    "camus": write_camus,
    "busi": write_busi,
    "chexlocalize": write_chexlocalize,
}


@pytest.fixture
def download(tmp_path) -> Callable[[str], Path]:
    """The folder of a dataset's download."""

    def make(dataset: str) -> Path:
        if dataset == "camus":
            pytest.importorskip("SimpleITK")
        raw = tmp_path / "raw" / dataset
        DOWNLOADS[dataset](raw)
        return raw

    return make


@pytest.fixture
def draw():
    """The functions that draw parts of a download: `draw.pixels`, `draw.blob`, `draw.write_picture`, …"""
    from types import SimpleNamespace

    return SimpleNamespace(
        pixels=pixels,
        blob=blob,
        labels=labels,
        write_picture=write_picture,
        write_mask=write_mask,
        write_pairs=write_pairs,
        write_patient=write_patient,
        size=SIZE,
        frames=FRAMES,
    )
