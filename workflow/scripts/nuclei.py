"""Find the positive and negative nuclei in the tumour of the Ki-67 slide."""

from pathlib import Path

from ki67 import storage
from ki67.errors import SlideError
from ki67.nuclei_geojson import write_nuclei_geojson
from ki67.nucleus_table import empty_nuclei
from ki67.provenance import stage_log
from ki67.staging import open_near

SLIDE, INPUT, OUTPUT, SETTINGS = snakemake.wildcards.slide, snakemake.input, snakemake.output, snakemake.params.settings
DISTRIBUTIONS = ("torch", "numpy", "opencv-python-headless", "numba")


def find(checked: dict, tumor) -> tuple:
    """Table of nuclei and what to tell of the network's run."""
    from ki67.detectors import load_detector  # torch takes seconds to import, and many slides do not come this far
    from ki67.inference import Running

    chosen = SETTINGS["method"], Path(INPUT.model).parent if INPUT.model else None
    detector = load_detector(*chosen, device=SETTINGS["device"], precision=SETTINGS["precision"])
    running = Running(batch_size=SETTINGS["batch_size"], reader_threads=SETTINGS["reader_threads"])
    with open_near(snakemake.params.ki67, checked, snakemake.resources, slide_id=SLIDE, stain="ki67") as slide:
        found = detector.of_slide(slide, tumor, running=running, probabilities=OUTPUT.get("probabilities"))
    return found.table, {"model": dict(detector.identity)} | found.to_json()


with stage_log(snakemake.log[0], stage="nuclei", name=SLIDE) as log:
    checked, tumor = storage.read_json(INPUT.check)["stains"]["ki67"], storage.read_tumor_zarr(INPUT.tumor, "ki67")
    nuclei, told = empty_nuclei(), dict.fromkeys(("model", "statistics", "dab_levels")) | {"findings": []}
    try:
        nuclei, told = find(checked, tumor) if tumor.pixels.any() else (nuclei, told)
    except SlideError as error:
        told["findings"].append(error.finding)
    storage.write_empty_probabilities(OUTPUT.get("probabilities"))
    storage.write_nuclei_parquet(OUTPUT.nuclei, nuclei)
    write_nuclei_geojson(OUTPUT.geojson, OUTPUT.nuclei, checked["mpp"] if len(nuclei) else 1.0, slide_id=SLIDE)
    log.note(f"{len(nuclei)} nuclei, {int(nuclei['positive'].sum())} positive")
    storage.write_json(OUTPUT.record, told | {"nuclei": len(nuclei)} | log.record(snakemake.params, DISTRIBUTIONS))
