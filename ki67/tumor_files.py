"""What the stages tumor and transfer leave of a tumour mask: the mask itself, its polygons, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ki67.errors import STAIN_NAMES
from ki67.figures import tumor_picture
from ki67.storage import read_image, read_mask_png, write_image_png, write_tumor_geojson, write_tumor_zarr
from ki67.tumor_mask import TumorMask


def write_tumor_files(
    output: Mapping[str, str | Path],
    given: Mapping[str, str | Path],
    tumor: TumorMask,
    checked: Mapping[str, Any] | None,
    *,
    slide_id: str,
    keep_probability: bool,
) -> None:
    """Write the files of a tumour mask; those of a slide that could not be used are empty.

    Parameters
    ----------
    output
        Paths of the OME-Zarr ``tumor``, the GeoJSON ``outlines`` and the PNG ``picture``.
    given
        Paths of the ``thumbnail`` of the whole slide and its ``tissue`` mask, at the same scale.
    checked
        What the stage check says of the slide file; None where the sample sheet gives none.
    keep_probability
        Whether the probability goes into ``tumor``.
    """
    write_tumor_zarr(output["tumor"], tumor.mask, tumor.probability if keep_probability else None)
    known = checked or {"mpp": None, "tissue_mpp": 8.0}
    write_tumor_geojson(output["outlines"], tumor.mask, known["mpp"], slide_id=slide_id)
    picture = tumor_picture(
        read_image(given["thumbnail"]),
        read_mask_png(given["tissue"], known["tissue_mpp"], tumor.mask.frame),
        tumor.mask,
        probability=tumor.probability,
        title=tumor_title(slide_id, tumor),
        lines=[source_sentence(tumor)],
    )
    write_image_png(output["picture"], picture)


def tumor_title(slide_id: str, tumor: TumorMask) -> str:
    """The tumour's area in one line.

    >>> tumor_title("S1", TumorMask.empty("he", 2.0))
    'S1: no tumour on the H&E slide'
    """
    area = f"{tumor.mask.area_mm2:.2f} mm² of" if tumor.mask.pixels.any() else "no"
    return f"{slide_id}: {area} tumour on the {STAIN_NAMES[tumor.mask.frame]} slide"


def source_sentence(tumor: TumorMask) -> str:
    """Where the mask comes from, for a person.

    >>> source_sentence(TumorMask.empty("he", 2.0))
    'There is no H&E slide that could be used.'
    """
    slide = f"{STAIN_NAMES[tumor.mask.frame]} slide"
    if tumor.source is None:
        return f"There is no {slide} that could be used."
    if tumor.source == "roi":
        return f"Drawn by a person (roi_{tumor.mask.frame} of the sample sheet)."
    without = ", without the regions that a person excluded" if tumor.excluded else ""
    if tumor.source != tumor.mask.frame:
        return f"Found on the H&E slide and carried over by registration{without}."
    found = (tumor.model, tumor.coarse_model, tumor.nuclei_model)
    names = [one["name"] for one in found if one and "name" in one]
    by = f" by the network{'s' * (len(names) > 1)} {' and '.join(names)}" if names else ""
    return f"Found on the {slide} itself{by}{without}."
