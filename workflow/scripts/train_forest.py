"""Train the random forest that tells nuclei found by colour apart."""

from pathlib import Path

from ki67.provenance import stage_log
from ki67.training.forest import ForestOptions, train_forest

with stage_log(snakemake.log[0], stage="train", name="nuclei_forest") as log:
    options = ForestOptions(trees=snakemake.params.trees, workers=snakemake.threads)
    datasets = [Path(folder) for folder in snakemake.input.datasets]
    _, scores = train_forest(datasets, Path(snakemake.output.model).parent, options)
    log.note(", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
