"""What splits a dataset's numbers, and which records are no independent observations."""

import bisect
import re

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import image_path
from medvlsm_jax.data.language.attributes import number_word
from medvlsm_jax.data.language.grammars import attributes_of

GROUPS = ("class", "view", "sex", "age", "quality", "cycle", "tumor_type")

AGES = {word: years for years in range(150) for word in (str(years), number_word(years))}
BANDS = {40: "under 40", 60: "40-59", 80: "60-79"}  # years that someone is younger than
OLDEST = "80 and over"

PATIENT = re.compile(r"(?:test_)?patient\d+")  # of a file name, patient0001_2CH_ES.png
NAMED_BY_PATIENT = ("camus", "chexlocalize")  # importers whose files are
SEQUENCE = "sequence "  # begins the group of a video's frames
# The last frame of each sequence, from the list of the download (https://polyp.grand-challenge.org/CVCClinicDB/).
LAST_FRAMES = (
    *(25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317),
    *(342, 363, 383, 408, 428, 447, 466, 478, 503, 528, 546, 571, 591, 612),
)


def groups_of(record: Record) -> dict[str, str]:
    """The groups that a record belongs to: each of GROUPS -> a word, empty where it is not known; age as a band."""
    words = attributes_of(record)
    groups = {name: words.get(name, "") for name in GROUPS}
    return groups | {"class": record.target or groups["class"], "age": age_band(groups["age"])}


def age_band(age: str) -> str:
    """The band of an age in words ("fifty-six-year-old") or digits; empty where it is neither."""
    years = AGES.get(age.strip().lower().removesuffix("-year-old"))
    if years is None:
        return ""
    return next((band for bound, band in BANDS.items() if years < bound), OLDEST)


def cluster_of(record: Record) -> str:
    """What a record is resampled with by a bootstrap: its patient or sequence where that is known, else its image.

    An image is named by its path below the dataset's images, which is the same on every machine.
    """
    if record.group:
        return record.group
    if record.card.importer == "clinicdb" and (sequence := known_sequence(record.image.stem)):
        return sequence
    if record.card.importer in NAMED_BY_PATIENT and (found := PATIENT.match(record.image.name)):
        return found[0]
    return image_path(record).rpartition("/images/")[2]


def known_sequence(stem: str) -> str:
    """The group of a frame by its number, the stem of its file; empty when it is none of the 612."""
    if not stem.isdecimal() or not 1 <= int(stem) <= LAST_FRAMES[-1]:
        return ""
    return f"{SEQUENCE}{bisect.bisect_left(LAST_FRAMES, int(stem)) + 1}"
