"""Find the nuclei in the tumour of the Ki-67 slide by StarDist: those of the index, or a second opinion on them."""

from pathlib import Path

from ki67 import storage
from ki67.counted_index import counted_index
from ki67.errors import SlideError
from ki67.nuclei_geojson import write_nuclei_geojson
from ki67.nucleus_table import empty_nuclei
from ki67.provenance import stage_log
from ki67.staging import open_near

SLIDE, INPUT, OUTPUT, SETTINGS = snakemake.wildcards.slide, snakemake.input, snakemake.output, snakemake.params.settings


def find(checked: dict, tumor) -> tuple:
    """Table of nuclei and what to tell of the network's run."""
    from ki67.inference import Running
    from ki67.stardist_nuclei import load_star_detector  # TensorFlow takes seconds to import

    detector = load_star_detector(Path(INPUT.model).parent, device=SETTINGS["device"], precision=SETTINGS["precision"])
    running = Running(SETTINGS["batch_size"], SETTINGS["reader_threads"], snakemake.threads)
    with open_near(snakemake.params.ki67, checked, snakemake.resources, slide_id=SLIDE, stain="ki67") as slide:
        found = detector.of_slide(slide, tumor, running=running, probabilities=OUTPUT.get("probabilities"))
    return found.table, {"model": dict(detector.identity)} | found.to_json()


with stage_log(snakemake.log[0], stage=Path(OUTPUT.record).stem, name=SLIDE) as log:
    checked, tumor = storage.read_json(INPUT.check)["stains"]["ki67"], storage.read_tumor_zarr(INPUT.tumor, "ki67")
    nuclei, told = empty_nuclei(), {"model": None, "statistics": None, "dab_levels": None, "findings": []}
    try:
        nuclei, told = find(checked, tumor) if tumor.pixels.any() else (nuclei, told)
    except SlideError as error:
        told["findings"].append(error.finding)
    storage.write_empty_probabilities(OUTPUT.get("probabilities"), storage.STAIN_CHANNELS)
    storage.write_nuclei_parquet(OUTPUT.nuclei, nuclei)
    write_nuclei_geojson(OUTPUT.geojson, OUTPUT.nuclei, checked["mpp"] if len(nuclei) else 1.0, slide_id=SLIDE)
    told |= {"nuclei": len(nuclei)} | (counted := counted_index(nuclei)).to_json()
    log.note(f"{len(nuclei)} nuclei, {counted.positive} positive of {counted.total} in the tumour")
    storage.write_json(OUTPUT.record, told | log.record(snakemake.params, ("tensorflow", "stardist", "numpy")))
