"""Train StarDist on annotated outlines of nuclei and drawn fields."""

from pathlib import Path

from ki67.provenance import stage_log
from ki67.training.star_fit import StarFitOptions, fit_star

with stage_log(snakemake.log[0], stage="train", name="stardist") as log:
    options = StarFitOptions(threads=snakemake.threads, **snakemake.params.settings)
    datasets = [Path(folder) for folder in snakemake.input.datasets]
    fitted = fit_star(options, datasets, Path(snakemake.output.model).parent)
    log.note(
        f"{fitted.steps} steps in {fitted.seconds:.0f} s, "
        + ", ".join(f"{name} {value:.3f}" for name, value in fitted.scores.items())
    )
