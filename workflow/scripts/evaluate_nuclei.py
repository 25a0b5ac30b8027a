"""Compare the nuclei that a method finds with those of an annotated dataset."""

from pathlib import Path

from ki67.accuracy_report import measured
from ki67.detectors import load_detector
from ki67.provenance import stage_log, versions
from ki67.storage import write_image_png, write_json

METHOD, INPUT, OUTPUT = snakemake.wildcards.method, snakemake.input, snakemake.output
SETTINGS, FOLDER = snakemake.params.settings, Path(INPUT.description).parent

with stage_log(snakemake.log[0], stage="evaluate_nuclei", name=f"{METHOD} {FOLDER.name}") as log:
    model = Path(INPUT.model).parent if INPUT.model else None
    detector = load_detector(METHOD, model, device=SETTINGS["device"], precision=SETTINGS["precision"])
    record, pictures = measured(FOLDER, detector, METHOD, changes=SETTINGS["changes"])
    for name in ("best", "median", "worst"):
        write_image_png(OUTPUT[name], pictures[name])
    write_json(OUTPUT.record, record | {"versions": versions(("torch", "numpy"))})
    log.note(f"{len(record['images'])} fields, F1 of detection {record['pooled']['detection']['f1']:.3f}")
