"""Find where the H&E section lies on the Ki-67 section, and show both on top of each other."""

from ki67.errors import SlideError
from ki67.figures import registration_picture
from ki67.itk_transform import write_itk_files
from ki67.provenance import stage_log
from ki67.registration import Registration, register
from ki67.slides import open_checked_slide
from ki67.storage import read_json, read_mask_png, write_image_png, write_json
from ki67.transfer import registration_findings

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
SETTINGS, DISTRIBUTIONS = snakemake.params.settings, ("numpy", "SimpleITK-SimpleElastix")


def find(stains: dict, thumbnails: dict) -> Registration:
    """The registration; the thumbnails it reads are put into the dictionary for the picture."""
    for stain, record in stains.items():
        if record and record["usable"]:
            with open_checked_slide(snakemake.params[stain], record, slide_id=SLIDE, stain=stain) as slide:
                thumbnails[stain] = slide.thumbnail(SETTINGS["mpp"])
    if len(thumbnails) < 2:
        return Registration.not_applicable("there are no two slides that can be used")
    tissue = {stain: read_mask_png(INPUT[f"tissue_{stain}"], stains[stain]["tissue_mpp"], stain) for stain in stains}
    return register(thumbnails["he"], tissue["he"], thumbnails["ki67"], tissue["ki67"], **SETTINGS)


with stage_log(snakemake.log[0], stage="register", name=SLIDE) as log:
    thumbnails = {}
    try:
        found = find(read_json(INPUT.check)["stains"], thumbnails)
        findings = registration_findings(SLIDE, found.verdict, found.reason)
    except SlideError as error:
        found, findings = Registration.not_applicable("a slide cannot be decoded"), [error.finding]
    title = f"{SLIDE}: registration {found.verdict.replace('_', ' ')}"
    shown = thumbnails.get("he"), thumbnails.get("ki67"), found.transform, SETTINGS["mpp"]
    write_image_png(OUTPUT.picture, registration_picture(*shown, check=found.check, title=title, lines=[found.reason]))
    write_itk_files(OUTPUT.itk, OUTPUT.itk_volume, found.transform)
    log.note(f"{found.verdict}, {found.reason}")
    write_json(OUTPUT.transform, found.to_json() | {"findings": findings} | log.record(snakemake.params, DISTRIBUTIONS))
