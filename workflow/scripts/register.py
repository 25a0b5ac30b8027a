"""Find where the H&E section lies on the Ki-67 section, and show both on top of each other."""

import numpy as np

from ki67.errors import SlideError
from ki67.figures import registration_picture
from ki67.provenance import stage_log, versions
from ki67.registration import Registration, register
from ki67.storage import read_json, read_mask_png, write_image_png, write_json
from ki67.transfer import registration_findings
from ki67.tumor_mask import open_checked

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
MPP = snakemake.params.settings["mpp"]
DISTRIBUTIONS = ("numpy", "SimpleITK-SimpleElastix")


def find(stains: dict) -> tuple[Registration, np.ndarray]:
    """The registration and its picture, a white pixel where there are no two slides that can be used."""
    blank = np.full((1, 1, 3), 255, dtype=np.uint8)
    if not all(stains[stain] and stains[stain]["usable"] for stain in ("he", "ki67")):
        return Registration.not_applicable("there are no two slides that can be used"), blank
    tissue = {stain: read_mask_png(INPUT[f"tissue_{stain}"], stains[stain]["tissue_mpp"], stain) for stain in stains}
    thumbnails = {}
    for stain, record in stains.items():
        with open_checked(INPUT[stain], record, slide_id=SLIDE, stain=stain) as slide:
            thumbnails[stain] = slide.thumbnail(MPP)
    found = register(thumbnails["he"], tissue["he"], thumbnails["ki67"], tissue["ki67"], mpp=MPP)
    return found, registration_picture(thumbnails["he"], thumbnails["ki67"], found.transform, mpp=MPP)


with stage_log(snakemake.log[0], stage="register", name=SLIDE) as log:
    try:
        found, picture = find(read_json(INPUT.check)["stains"])
        findings = registration_findings(SLIDE, found.verdict, found.reason)
    except SlideError as error:
        found, picture = Registration.not_applicable("a slide could not be decoded"), np.full((1, 1, 3), 255, np.uint8)
        findings = [error.finding]
    write_image_png(OUTPUT.picture, picture)
    log.note(f"{found.verdict}, {found.reason}")
    told = {"findings": [finding.to_json() for finding in findings], "versions": versions(DISTRIBUTIONS)}
    write_json(OUTPUT.transform, found.to_json() | told)
