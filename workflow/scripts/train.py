"""Train a network on annotated images and drawn fields."""

from pathlib import Path

from ki67.networks import NETWORK_SPECS
from ki67.provenance import stage_log
from ki67.training.fit import FitOptions, fit

NETWORK = snakemake.wildcards.network

with stage_log(snakemake.log[0], stage="train", name=NETWORK) as log:
    options = FitOptions(
        spec=NETWORK_SPECS[NETWORK], workers=max(1, snakemake.threads // 2), **snakemake.params.settings
    )
    datasets = [Path(folder) for folder in snakemake.input.datasets]
    fitted = fit(options, datasets, Path(snakemake.output.model).parent)
    log.note(
        f"{fitted.steps} steps in {fitted.seconds:.0f} s, "
        + ", ".join(f"{k} {v:.3f}" for k, v in fitted.scores.items())
    )
