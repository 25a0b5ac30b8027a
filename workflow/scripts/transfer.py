"""The tumour mask of the Ki-67 slide: the H&E's, carried over, or its own."""

from ki67.deformation import transform_from_json
from ki67.errors import SlideError
from ki67.geometry import Mask
from ki67.provenance import stage_log, versions
from ki67.slides import open_slide
from ki67.storage import read_json, read_mask_png, read_tumor_zarr, write_json, write_tumor_zarr
from ki67.transfer import own_mask_finding, read_regions, tumor_source
from ki67.tumor_mask import TumorMask, TumorSettings, carry_tumor_mask, make_tumor_mask

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
SETTINGS, VERSIONS = TumorSettings(**snakemake.params.settings), versions(("torch", "numpy"))


def find(check: dict) -> TumorMask:
    """The mask, by the way that the records of the stages before leave open."""
    source = tumor_source(check, read_json(INPUT.tumor_he_record), read_json(INPUT.transform))
    if source is None:
        return TumorMask(Mask.empty("ki67", SETTINGS.mask_mpp))
    checked = check["stains"]["ki67"]
    regions = {"geojson": read_regions(snakemake.params.regions, INPUT.roi, slide_id=SLIDE, stain="ki67")}
    tissue = read_mask_png(INPUT.tissue, checked["tissue_mpp"], "ki67")
    with open_slide(INPUT.ki67, slide_id=SLIDE, stain="ki67", mpp=checked["mpp"]) as slide:
        if source == "ki67":
            return make_tumor_mask(slide, tissue, SETTINGS, model=INPUT.model, **regions)
        he = read_tumor_zarr(INPUT.tumor_he, "he")
        transform = transform_from_json(read_json(INPUT.transform))
        return carry_tumor_mask(slide, tissue, SETTINGS, tumor_he=he, transform=transform, **regions)


with stage_log(snakemake.log[0], stage="transfer", name=SLIDE) as log:
    try:
        tumor, findings = find(read_json(INPUT.check)), []
    except SlideError as error:
        tumor, findings = TumorMask(Mask.empty("ki67", SETTINGS.mask_mpp)), [error.finding.to_json()]
    findings += [own_mask_finding(SLIDE).to_json()] if tumor.source == "ki67" else []
    write_tumor_zarr(OUTPUT.tumor, tumor.mask, tumor.probability if snakemake.params.keep_probability else None)
    log.note(f"{tumor.mask.area_mm2:.2f} mm² of tumour on the Ki-67 slide, from {tumor.source or 'nowhere'}")
    write_json(OUTPUT.record, tumor.to_json() | {"findings": findings, "seconds": log.seconds, "versions": VERSIONS})
