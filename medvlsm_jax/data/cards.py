"""What the package knows about each dataset; a new one is one more row."""

import dataclasses
from pathlib import Path

from medvlsm_jax.errors import UserError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Card:
    """A dataset in the original's layout: `<data_dir>/<name>/{images,masks,anns/{train,val,test}.json}`."""

    name: str
    modality: str
    targets: tuple[str, ...] = ()  # what its masks show; of several, a record's sentence p1 starts with its own
    subfolder: str = ""  # between `images` or `masks` and the files


POLYP = ("polyp",)
CARDIAC_STRUCTURES = ("left ventricular cavity", "myocardium", "left atrium cavity")
CHEST_FINDINGS = (
    "airspace opacity",
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "enlarged cardiomediastinum",
    "lung lesion",
    "pleural effusion",
    "pneumothorax",
    "support devices",
)

CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("sample", "drawn by data/synthetic.py"),
        Card("kvasir_polyp", "endoscopy", POLYP),
        Card("bkai_polyp", "endoscopy", POLYP),
        Card("clinicdb_polyp", "endoscopy", POLYP),
        Card("cvc300_polyp", "endoscopy", POLYP),
        Card("colondb_polyp", "endoscopy", POLYP),
        Card("etis_polyp", "endoscopy", POLYP),
        Card("isic", "dermoscopy", ("skin melanoma",)),
        Card("dfu", "photograph", ("foot ulcer",)),
        Card("camus", "cardiac ultrasound", CARDIAC_STRUCTURES, subfolder="train"),
        Card("busi", "breast ultrasound", ("tumor",)),
        Card("chexlocalize", "chest X-ray", CHEST_FINDINGS),
    )
}


def find_card(data_dir: str | Path, dataset: str) -> Card:
    """The card of a dataset that lies in `data_dir`; a folder in the layout needs no row here.

    Raises:
        UserError: there is no such folder with annotations.
    """
    root = Path(data_dir)
    if (root / dataset / "anns").is_dir():
        return CARDS.get(dataset, Card(dataset, "unknown"))
    if not root.is_dir():
        raise UserError(f"data_dir {root} does not exist: pass --config.data_dir=FOLDER that holds the dataset folders")
    found = sorted(path.parent.name for path in root.glob("*/anns"))
    known = "is not a dataset that the package knows" if dataset not in CARDS else "has no folder with annotations"
    raise UserError(
        f"dataset {dataset!r} {known}: {root / dataset / 'anns'} is missing; {root} holds {', '.join(found) or 'none'}"
    )
