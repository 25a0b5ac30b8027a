"""Find the positive and negative nuclei in the tumour of the Ki-67 slide."""

from pathlib import Path

from ki67 import storage
from ki67.errors import SlideError
from ki67.nucleus_table import empty_nuclei
from ki67.provenance import stage_log, versions
from ki67.slides import open_slide

SLIDE, INPUT, OUTPUT = snakemake.wildcards.slide, snakemake.input, snakemake.output
SETTINGS, VERSIONS = snakemake.params.settings, versions(("torch", "numpy", "opencv-python-headless", "numba"))


def find(checked: dict, tumor) -> tuple:
    """Table of nuclei and what to tell of the network's run."""
    from ki67.detectors import load_detector  # torch takes seconds to import, and many slides do not come this far
    from ki67.nuclei import Running, detect_nuclei

    folder = Path(INPUT.model).parent if INPUT.model else None
    detector = load_detector(SETTINGS["method"], folder, device=SETTINGS["device"], precision=SETTINGS["precision"])
    running = Running(batch_size=SETTINGS["batch_size"], reader_threads=SETTINGS["reader_threads"])
    with open_slide(INPUT.ki67, slide_id=SLIDE, stain="ki67", mpp=checked["mpp"]) as slide:
        how = {"options": detector.options, "revise": detector.revise, "probabilities": OUTPUT.get("probabilities")}
        found = detect_nuclei(slide, tumor, detector.predictor, running=running, **how)
    return found.table, {"model": dict(detector.identity), "statistics": found.statistics.to_json()}


with stage_log(snakemake.log[0], stage="nuclei", name=SLIDE) as log:
    checked, tumor = storage.read_json(INPUT.check)["stains"]["ki67"], storage.read_tumor_zarr(INPUT.tumor, "ki67")
    nuclei, told, findings = empty_nuclei(), {"model": None, "statistics": None}, []
    try:
        nuclei, told = find(checked, tumor) if tumor.pixels.any() else (nuclei, told)
    except SlideError as error:
        findings.append(error.finding)
    storage.write_missing_zarr(OUTPUT.get("probabilities"))
    storage.write_nuclei_parquet(OUTPUT.nuclei, nuclei)
    storage.write_nuclei_geojson(OUTPUT.geojson, nuclei, checked["mpp"] if len(nuclei) else 1.0, slide_id=SLIDE)
    log.note(f"{len(nuclei)} nuclei, {int(nuclei['positive'].sum())} positive")
    told |= {"nuclei": len(nuclei), "findings": findings, "seconds": log.seconds}
    storage.write_json(OUTPUT.record, told | {"versions": VERSIONS})
