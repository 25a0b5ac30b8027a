"""Count the tumour nuclei of a slide, and show what was counted."""

from ki67 import storage
from ki67.errors import SlideError
from ki67.figures import field_pictures, overview_mpp, slide_overlay
from ki67.index import MEASURES, index_categories, ki67_index, slide_record
from ki67.provenance import slide_provenance, stage_log
from ki67.slides import open_slide

SLIDE, INPUT, OUTPUT, PARAMS = snakemake.wildcards.slide, snakemake.input, snakemake.output, snakemake.params
STAGES = ("check", "tumor", "register", "transfer", "nuclei")
DISTRIBUTIONS, (CUTOFFS, NAMES) = ("numpy", "geopandas", "spatialdata"), index_categories(**PARAMS.settings)


def draw(stain: str, mpp: float | None, tumor, nuclei, record: dict) -> tuple:
    """Overlay and fields of a slide; they only say why where it cannot be read."""
    try:
        with open_slide(INPUT[stain] or "absent", slide_id=SLIDE, stain=stain, mpp=mpp) as slide:
            panel_mpp = overview_mpp(*slide.size_um)
            fields = field_pictures(slide.read, nuclei, tumor, record)
            return slide_overlay(slide.thumbnail(panel_mpp), panel_mpp, tumor, nuclei, record), fields
    except SlideError:  # the stage that met it first has told
        nuclei = nuclei.iloc[:0]
        return slide_overlay(None, 1.0, tumor, nuclei, record), field_pictures(None, nuclei, tumor, record)


with stage_log(snakemake.log[0], stage="index", name=SLIDE) as log:
    stages = {stage: storage.read_json(INPUT[stage]) for stage in STAGES}
    nuclei, tumor = storage.read_nuclei_parquet(INPUT.table), storage.read_tumor_zarr(INPUT.tumor_ki67, "ki67")
    result = ki67_index(nuclei, tumor, cutoffs=CUTOFFS, names=NAMES, slide_id=SLIDE)
    record = slide_record(result, slide=SLIDE, patient=PARAMS.patient, stages=stages, references=PARAMS.references)
    shown, checked = "ki67" if stages["check"]["stains"]["ki67"] else "he", stages["check"]["stains"]
    outlined = tumor if shown == "ki67" else storage.read_tumor_zarr(INPUT.tumor_he, "he")
    pictures = draw(shown, checked[shown]["mpp"], outlined, nuclei, record)
    for path, picture in zip((OUTPUT.overlay, OUTPUT.fields), pictures, strict=True):
        storage.write_image_png(path, picture)
    record |= slide_provenance(stages | {"index": log.record(PARAMS, DISTRIBUTIONS)})
    storage.write_slide_zarr(OUTPUT.store, nuclei, tumor, record, MEASURES)
    storage.write_json(OUTPUT.index, record)
    log.note(f"{result.positive} positive of {result.total} nuclei, flags {', '.join(record['flags']) or 'none'}")
