"""What splits a dataset's numbers, and which records are no independent observations."""

import re

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.attributes import number_word
from medvlsm_jax.data.grammars import attributes_of
from medvlsm_jax.data.importers.clinicdb import known_sequence
from medvlsm_jax.data.pools import image_path

GROUPS = ("class", "view", "sex", "age", "quality", "cycle", "tumor_type")

AGES = {word: years for years in range(150) for word in (str(years), number_word(years))}
BANDS = {40: "under 40", 60: "40-59", 80: "60-79"}  # years that someone is younger than
OLDEST = "80 and over"

PATIENT = re.compile(r"(?:test_)?patient\d+")  # of a file name, patient0001_2CH_ES.png
NAMED_BY_PATIENT = ("camus", "chexlocalize")  # importers whose files are


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
