"""How often the check stage names the right stain, on images whose stain is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ki67.errors import Flag, Ki67Error, SlideError, Stain
from ki67.slides import COARSEST_MPP, FINEST_MPP, Slide, open_slide
from ki67.tissue import check_slide

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vsi"}

STAINS: dict[str, Stain] = {"he": "he", "ki67": "ki67"}
USUAL_MPP = 0.5  # for images that say nothing of their scale


@dataclass(frozen=True)
class StainedImages:
    """Images of one stain.

    Attributes
    ----------
    name
        Of the folder, or of the single file.
    stain
        What they are known to be.
    files
        The images.
    mpp
        Microns per pixel; ``None`` leaves it to the files.
    """

    name: str
    stain: Stain
    files: tuple[Path, ...]
    mpp: float | None


def stained_images(source: str) -> StainedImages:
    """Images named on the command line.

    Parameters
    ----------
    source
        A dataset folder whose ``dataset.yaml`` says ``stain: he`` or ``stain: ki67``; or ``he=`` or ``ki67=`` and the
        path of a slide, an image, or a folder of them.

    Raises
    ------
    Ki67Error
        If the stain is not said, or there is no image.
    """
    stated, separator, rest = source.partition("=")
    stated = stated if separator and stated in STAINS else ""
    path = Path(rest if stated else source)
    record = _dataset_record(path)
    stain = STAINS.get(stated or str(record.get("stain")))
    if stain is None:
        raise Ki67Error(
            f"{path.name}: no dataset.yaml says whether its stain is he or ki67; write he=PATH or ki67=PATH"
        )
    folder = path / "images" if (path / "images").is_dir() else path
    files = (path,) if path.is_file() else tuple(sorted(file for file in folder.glob("*") if _is_image(file)))
    if not files:
        raise Ki67Error(f"{path.name}: holds no image; give a slide, an image, or a folder with images")
    mpp = record.get("mpp")
    # The hue of a stain does not depend on scale: images coarser than a slide may be are read as if at the limit.
    return StainedImages(path.name, stain, files, min(max(float(mpp), FINEST_MPP), COARSEST_MPP) if mpp else None)


def evaluate_stain(sources: Sequence[StainedImages]) -> dict[str, Any]:
    """Check every image as a slide and compare the stain that is found with the known one.

    Returns
    -------
    ``pooled`` (images, right, share right, and how many were unknown or taken for the other stain), the same for each
    of ``folders``, and ``images`` with what was found on each.
    """
    by_source = [[_check_image(source, file) for file in source.files] for source in sources]
    images = [image for own in by_source for image in own]
    folders = [
        {"folder": source.name, "expected": source.stain, **_summary(own)}
        for source, own in zip(sources, by_source, strict=True)
    ]
    return {"pooled": _summary(images), "folders": folders, "images": images}


def _dataset_record(path: Path) -> dict[str, Any]:
    file = path / "dataset.yaml"
    record = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return record if isinstance(record, dict) else {}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _check_image(source: StainedImages, file: Path) -> dict[str, Any]:
    image = {"folder": source.name, "name": file.name, "expected": source.stain}
    try:
        with _opened(source, file) as slide:
            check = check_slide(slide)
    except SlideError as error:
        return image | {"found": "unreadable", "confidence": 0.0, "score": None, "flags": [error.finding.flag.value]}
    identity = check.identity
    score = None if identity.score != identity.score else round(identity.score, 4)
    flags = [finding.flag.value for finding in check.findings]
    return image | {
        "found": identity.stain,
        "confidence": round(identity.confidence, 4),
        "score": score,
        "flags": flags,
    }


def _opened(source: StainedImages, file: Path) -> Slide:
    try:
        return open_slide(file, slide_id=file.stem, stain=source.stain, mpp=source.mpp)
    except SlideError as error:
        if error.finding.flag is not Flag.NO_MPP:
            raise
        return open_slide(file, slide_id=file.stem, stain=source.stain, mpp=USUAL_MPP)


def _summary(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    right = sum(image["found"] == image["expected"] for image in images)
    wrong = sum(image["found"] in STAINS and image["found"] != image["expected"] for image in images)
    return {
        "images": len(images),
        "right": right,
        "wrong": wrong,
        "unknown": len(images) - right - wrong,
        "share_right": round(right / len(images), 4),
        "least_confidence": min(image["confidence"] for image in images),
    }
