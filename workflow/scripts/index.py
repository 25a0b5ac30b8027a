"""Score a slide from its nuclei, and show what was counted."""

from pathlib import Path

from ki67 import storage
from ki67.errors import SlideError
from ki67.figures import index_pictures
from ki67.index import MEASURES, index_categories, ki67_index, slide_record
from ki67.provenance import slide_provenance, stage_log
from ki67.slides import open_checked_slide

SLIDE, INPUT, OUTPUT, PARAMS = snakemake.wildcards.slide, snakemake.input, snakemake.output, snakemake.params
STAGES, SETTINGS = ("check", "tumor", "register", "transfer", "nuclei", "second_opinion"), PARAMS.settings
CUTOFFS, NAMES = index_categories(SETTINGS["preset"], SETTINGS["cutoffs"])


def draw(stain: str, checked: dict | None, *counted) -> dict:
    """Overlay, fields and map of a slide; they only say why where it cannot be read."""
    try:
        with open_checked_slide(PARAMS[stain], checked, slide_id=SLIDE, stain=stain) as slide:
            return index_pictures(slide, *counted)
    except SlideError:  # the stage that met it first has told
        return index_pictures(None, *counted)


with stage_log(snakemake.log[0], stage="index", name=SLIDE) as log:
    stages = {stage: storage.read_json(INPUT[stage]) for stage in STAGES if INPUT[stage]}
    nuclei, tumor = storage.read_nuclei_parquet(INPUT.table), storage.read_tumor_zarr(INPUT.tumor_ki67, "ki67")
    result = ki67_index(nuclei, tumor, cutoffs=CUTOFFS, names=NAMES, certainty=SETTINGS["certainty"], slide_id=SLIDE)
    told = {"slide": SLIDE, "stages": stages} | {name: PARAMS[name] for name in ("patient", "references", "marker")}
    record = slide_record(result, **told, second_opinion_differs=SETTINGS["second_opinion_differs"])
    shown, checked = "ki67" if stages["check"]["stains"]["ki67"] else "he", stages["check"]["stains"]
    outlined = tumor if shown == "ki67" else storage.read_tumor_zarr(INPUT.tumor_he, "he")
    for name, picture in draw(shown, checked[shown], outlined, nuclei, result.local, record).items():
        storage.write_image_png(OUTPUT[name], picture)
    storage.write_hot_spots_geojson(OUTPUT.hot_spots, result.hot_spots, checked[shown]["mpp"], slide_id=SLIDE)
    record |= slide_provenance(stages | {"index": log.record(PARAMS, ("numpy", "geopandas", "dask", "spatialdata"))})
    storage.write_slide_zarr(Path(OUTPUT.store).parent, nuclei, tumor, record, MEASURES)
    storage.write_json(OUTPUT.index, record)
    log.note(f"{result.positive} positive of {result.total} nuclei, flags {', '.join(record['flags']) or 'none'}")
