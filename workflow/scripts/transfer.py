"""The tumour mask of the Ki-67 slide: the H&E's, carried over, or its own."""

from ki67 import storage
from ki67.deformation import transform_from_json
from ki67.errors import SlideError
from ki67.provenance import stage_log
from ki67.staging import open_near
from ki67.transfer import own_mask_finding, read_regions, tumor_source
from ki67.tumor_files import write_tumor_files
from ki67.tumor_mask import TumorMask, TumorSettings, carry_tumor_mask, make_tumor_mask

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
SETTINGS, KEEP = TumorSettings(**snakemake.params.settings), snakemake.params.keep_probability


def find(check: dict, checked: dict | None) -> TumorMask:
    """The mask, by the way that the records of the stages before leave open."""
    transform, on_he = (storage.read_json(INPUT[name]) for name in ("transform", "tumor_he_record"))
    if (source := tumor_source(check, on_he, transform)) is None:
        return TumorMask.empty("ki67", SETTINGS.mask_mpp)
    roi = {"geojson": read_regions(snakemake.params.regions, INPUT.roi, slide_id=SLIDE, stain="ki67")}
    tissue = storage.read_mask_png(INPUT.tissue, checked["tissue_mpp"], "ki67")
    with open_near(snakemake.params.ki67, checked, snakemake.resources, slide_id=SLIDE, stain="ki67") as slide:
        if source == "ki67":
            return make_tumor_mask(slide, tissue, SETTINGS, model=INPUT.model, nuclei_model=INPUT.nuclei_model, **roi)
        he = {"tumor_he": storage.read_tumor_zarr(INPUT.tumor_he, "he"), "transform": transform_from_json(transform)}
        return carry_tumor_mask(slide, tissue, SETTINGS, **he, **roi)


with stage_log(snakemake.log[0], stage="transfer", name=SLIDE) as log:
    checked = (check := storage.read_json(INPUT.check))["stains"]["ki67"]
    try:
        tumor, findings = find(check, checked), []
    except SlideError as error:
        tumor, findings = TumorMask.empty("ki67", SETTINGS.mask_mpp), [error.finding.to_json()]
    findings += [own_mask_finding(SLIDE).to_json()] if tumor.source == "ki67" else []
    write_tumor_files(OUTPUT, INPUT, tumor, checked, slide_id=SLIDE, keep_probability=KEEP)
    log.note(f"{tumor.mask.area_mm2:.2f} mm² of tumour on the Ki-67 slide, from {tumor.source or 'nowhere'}")
    record = tumor.to_json() | {"findings": findings} | log.record(snakemake.params, ("torch", "numpy"))
    storage.write_json(OUTPUT.record, record)
