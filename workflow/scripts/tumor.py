"""Find the tumour on the H&E slide."""

from ki67 import storage
from ki67.errors import SlideError
from ki67.provenance import stage_log
from ki67.staging import open_near
from ki67.transfer import read_regions
from ki67.tumor_files import write_tumor_files
from ki67.tumor_mask import TumorMask, TumorSettings, make_tumor_mask

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
SETTINGS, KEEP = TumorSettings(**snakemake.params.settings), snakemake.params.keep_probability


def find(checked: dict | None) -> TumorMask:
    """The mask, empty where there is no H&E slide that can be used."""
    if not (checked and checked["usable"]):
        return TumorMask.empty("he", SETTINGS.mask_mpp)
    geojson = read_regions(snakemake.params.regions, INPUT.roi, slide_id=SLIDE, stain="he")
    tissue = storage.read_mask_png(INPUT.tissue, checked["tissue_mpp"], "he")
    with open_near(snakemake.params.he, checked, snakemake.resources, slide_id=SLIDE, stain="he") as slide:
        models = {"model": INPUT.model, "coarse_model": INPUT.coarse_model or None}
        return make_tumor_mask(slide, tissue, SETTINGS, **models, geojson=geojson)


with stage_log(snakemake.log[0], stage="tumor", name=SLIDE) as log:
    findings, checked = [], storage.read_json(INPUT.check)["stains"]["he"]
    try:
        tumor = find(checked)
    except SlideError as error:
        findings.append(error.finding.to_json())
        tumor = TumorMask.empty("he", SETTINGS.mask_mpp)
    write_tumor_files(OUTPUT, INPUT, tumor, checked, slide_id=SLIDE, keep_probability=KEEP)
    log.note(f"{tumor.mask.area_mm2:.2f} mm² of tumour on the H&E")
    record = tumor.to_json() | {"findings": findings} | log.record(snakemake.params, ("torch", "numpy"))
    storage.write_json(OUTPUT.record, record)
