"""Errors that a person reads, and the flags that say why a slide could not be scored or should be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

Stain = Literal["he", "ki67"]

STAIN_NAMES: dict[str, str] = {"he": "H&E", "ki67": "Ki-67"}


class Flag(StrEnum):
    """Every named quality finding on a slide."""

    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    NO_MPP = "no_mpp"
    IMPLAUSIBLE_MPP = "implausible_mpp"
    NO_TISSUE = "no_tissue"
    WRONG_STAIN = "wrong_stain"
    STAIN_UNCERTAIN = "stain_uncertain"
    OUT_OF_FOCUS = "out_of_focus"
    PEN_MARK = "pen_mark"
    FOLD = "fold"
    BLURRED_PART = "blurred_part"
    CONTROL_TISSUE_SEEN = "control_tissue_seen"
    NO_HE = "no_he"
    NO_KI67 = "no_ki67"
    REGISTRATION_REJECTED = "registration_rejected"
    REGISTRATION_DOUBTFUL = "registration_doubtful"
    TUMOR_FROM_KI67 = "tumor_from_ki67"
    NO_TUMOR = "no_tumor"
    IN_SITU_COUNTED = "in_situ_counted"
    UNLIKE_TRAINING = "unlike_training"
    NO_NUCLEI = "no_nuclei"
    FEWER_THAN_500_NUCLEI = "fewer_than_500_nuclei"
    FEWER_THAN_1000_NUCLEI = "fewer_than_1000_nuclei"
    HOT_SPOT_DRIVEN = "hot_spot_driven"
    TUMOR_AREA_DIFFERS = "tumor_area_differs"
    WEAK_DAB = "weak_dab"
    SECOND_OPINION_DIFFERS = "second_opinion_differs"


@dataclass(frozen=True)
class Finding:
    """One flag raised on a slide, with the sentence that explains it to a person.

    ``message`` names the slide, the value and the remedy, and never a file path: it travels into reports.
    """

    flag: Flag
    message: str
    stain: Stain | None = None

    def to_json(self) -> dict[str, str | None]:
        """The finding as plain JSON values."""
        return asdict(self) | {"flag": self.flag.value}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Finding:
        """The finding that ``to_json`` wrote."""
        stain = record.get("stain")
        return cls(
            flag=Flag(record["flag"]),
            message=str(record["message"]),
            stain=None if stain is None else ("he" if stain == "he" else "ki67"),
        )


def empty_cell_finding(slide_id: str, stain: Stain) -> Finding:
    """That the sample sheet gives no slide of a stain, and what follows from it."""
    flag = Flag.NO_HE if stain == "he" else Flag.NO_KI67
    follows = "the tumour is looked for on the Ki-67 slide" if stain == "he" else "there is no index"
    return Finding(flag, f"{slide_id}: the sample sheet gives no {STAIN_NAMES[stain]} slide, so {follows}", stain)


class Ki67Error(Exception):
    """Base of every error this package raises on purpose: one sentence that names the value and the remedy."""


class SlideError(Ki67Error):
    """A slide that cannot be used; it becomes a row with a flag, never a crash of the cohort."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class ChangedSlideError(Ki67Error):
    """A slide that vanished or changed during the run: its stage fails, so that the next run does it anew."""


class ConfigError(Ki67Error):
    """A mistake in the sample sheet or the configuration; no job starts."""
