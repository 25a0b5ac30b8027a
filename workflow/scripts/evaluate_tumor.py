"""Compare the tumour that a network finds with that of an annotated dataset."""

from pathlib import Path

from ki67.networks import load_network
from ki67.nuclear_evidence import NuclearEvidence
from ki67.provenance import stage_log, versions
from ki67.storage import write_image_png, write_json
from ki67.tumor import Cascade
from ki67.tumor_evaluation import MaskSettings, evaluate_tumor
from ki67.tumor_report import roc_picture, tumor_pictures

MODEL, INPUT, OUTPUT = snakemake.wildcards.model, snakemake.input, snakemake.output
SETTINGS, FOLDER = snakemake.params.settings, Path(INPUT.description).parent

with stage_log(snakemake.log[0], stage="evaluate_tumor", name=f"{MODEL} {FOLDER.name}") as log:
    network, coarse, nuclei = (
        load_network(Path(path).parent, device=SETTINGS["device"], precision=SETTINGS["precision"]) if path else None
        for path in (INPUT.model, INPUT.coarse_model, INPUT.nuclei_model)
    )
    mask = MaskSettings(
        mpp=SETTINGS["mask_mpp"],
        smallest_region_mm2=SETTINGS["smallest_region_mm2"],
        smallest_hole_mm2=SETTINGS["smallest_hole_mm2"],
        threshold=SETTINGS["threshold"],
        cascade=Cascade(coarse) if coarse else None,
        evidence=NuclearEvidence(nuclei) if nuclei else None,
    )
    evaluation = evaluate_tumor(FOLDER, network, settings=mask)
    write_image_png(OUTPUT.roc, roc_picture(evaluation))
    for name, picture in tumor_pictures(FOLDER, network, evaluation, mask).items():
        write_image_png(OUTPUT[name], picture)
    record = evaluation.to_json() | {"versions": versions(("torch", "numpy"))}
    write_json(OUTPUT.record, record)
    log.note(f"{len(record['images'])} images, AUC {record['pooled']['auc']:.3f}, Dice {record['pooled']['dice']:.3f}")
