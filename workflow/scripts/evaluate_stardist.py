"""Compare the nuclei that StarDist finds with those of an annotated dataset."""

from pathlib import Path

from ki67.accuracy_report import measured
from ki67.provenance import stage_log, versions
from ki67.stardist_nuclei import METHOD, load_star_detector
from ki67.storage import write_image_png, write_json

INPUT, OUTPUT, SETTINGS = snakemake.input, snakemake.output, snakemake.params.settings
FOLDER = Path(INPUT.description).parent

with stage_log(snakemake.log[0], stage="evaluate_nuclei", name=f"{METHOD} {FOLDER.name}") as log:
    chosen = {"device": SETTINGS["device"], "precision": SETTINGS["precision"]}
    detector = load_star_detector(Path(INPUT.model).parent, **chosen)
    record, pictures = measured(FOLDER, detector, METHOD, changes=SETTINGS["changes"])
    for name in ("best", "median", "worst"):
        write_image_png(OUTPUT[name], pictures[name])
    write_json(OUTPUT.record, record | {"versions": versions(("tensorflow", "stardist", "numpy"))})
    log.note(f"{len(record['images'])} fields, F1 of detection {record['pooled']['detection']['f1']:.3f}")
