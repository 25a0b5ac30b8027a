"""The tumour mask of the Ki-67 slide: the H&E's, carried over, or its own."""

from pathlib import Path

from ki67.errors import SlideError
from ki67.geometry import Mask, RigidTransform
from ki67.provenance import stage_log, versions
from ki67.storage import read_json, read_mask_png, read_tumor_zarr, write_json, write_tumor_zarr
from ki67.transfer import own_mask_finding, read_regions, tumor_source
from ki67.tumor_mask import TumorMask, TumorSettings, carry_tumor_mask, make_tumor_mask, open_checked

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
SETTINGS = TumorSettings(**snakemake.params.settings)


def find(check: dict) -> TumorMask:
    """The mask, by the way that the records of the stages before leave open."""
    source = tumor_source(check, read_json(INPUT.tumor_he_record), read_json(INPUT.transform))
    if source is None:
        return TumorMask(Mask.empty("ki67", SETTINGS.mask_mpp))
    checked = check["stains"]["ki67"]
    geojson = read_regions(snakemake.params.regions, INPUT.roi, slide_id=SLIDE, stain="ki67")
    tissue = read_mask_png(INPUT.tissue, checked["tissue_mpp"], "ki67")
    with open_checked(INPUT.ki67, checked, slide_id=SLIDE, stain="ki67") as slide:
        if source == "ki67":
            return make_tumor_mask(slide, tissue, SETTINGS, model=Path(INPUT.model).parent, geojson=geojson)
        tumor_he, transform = (
            read_tumor_zarr(INPUT.tumor_he, "he"),
            RigidTransform.from_json(read_json(INPUT.transform)),
        )
        return carry_tumor_mask(slide, tissue, SETTINGS, tumor_he=tumor_he, transform=transform, geojson=geojson)


with stage_log(snakemake.log[0], stage="transfer", name=SLIDE) as log:
    try:
        tumor, findings = find(read_json(INPUT.check)), []
    except SlideError as error:
        tumor, findings = TumorMask(Mask.empty("ki67", SETTINGS.mask_mpp)), [error.finding.to_json()]
    findings += [own_mask_finding(SLIDE).to_json()] if tumor.source == "ki67" else []
    write_tumor_zarr(OUTPUT.tumor, tumor.mask, tumor.probability if snakemake.params.keep_probability else None)
    log.note(f"{tumor.mask.area_mm2:.2f} mm² of tumour on the Ki-67 slide, from {tumor.source or 'nowhere'}")
    told = {"findings": findings, "seconds": log.seconds, "versions": versions(("torch", "numpy"))}
    write_json(OUTPUT.record, tumor.to_json() | told)
