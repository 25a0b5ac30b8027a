"""Learn the Ki-67 index from H&E: the models of all folds, and what each says of slides it has not seen."""

from pathlib import Path

from ki67.prediction.methods import predict_options
from ki67.prediction.training import train_prediction
from ki67.provenance import stage_log

INPUT, SETTINGS = snakemake.input, snakemake.params.settings

with stage_log(snakemake.log[0], stage="predict_train", name="cohort") as log:
    options = predict_options(
        SETTINGS,
        weights=Path(INPUT.weights) if INPUT.weights else None,
        nuclei_model=Path(INPUT.nuclei_model).parent if INPUT.nuclei_model else None,
    )
    validated = train_prediction(
        [Path(path) for path in INPUT.pairs],
        Path(snakemake.output.model).parent,
        options,
        folds=SETTINGS["folds"],
        seed=SETTINGS["seed"],
        workers=snakemake.threads,
    )
    log.note(f"{options.method}, {len(validated.models)} folds of {len(validated.slides)} slides")
