"""Predict the Ki-67 index of a slide of which there is an H&E alone, or say why there is no prediction."""

from pathlib import Path

from ki67.prediction.ensemble import load_ensemble
from ki67.prediction.patch_pairs import read_patch_pairs
from ki67.provenance import stage_log
from ki67.storage import write_json

SLIDE, INPUT, PARAMS = snakemake.wildcards.slide, snakemake.input, snakemake.params

with stage_log(snakemake.log[0], stage="predict", name=SLIDE) as log:
    ensemble = load_ensemble(
        Path(INPUT.model).parent,
        weights=Path(INPUT.weights) if INPUT.weights else None,
        nuclei_model=Path(INPUT.nuclei_model).parent if INPUT.nuclei_model else None,
        device=PARAMS.settings["device"],
    )
    found = ensemble.predict(read_patch_pairs(INPUT.pairs))
    told = {"predicted_index": found.index, "predicted_low": found.low, "predicted_high": found.high}
    record = {"slide": SLIDE, **told, "reason": found.reason, "patches": found.patches}
    made = log.record(PARAMS, ("numpy", "torch", "scikit-learn"))
    write_json(snakemake.output.prediction, {**record, "model": dict(ensemble.identity), **made})
    log.note(found.reason or f"{found.index:.1%} ({found.low:.1%} to {found.high:.1%}), from H&E alone")
