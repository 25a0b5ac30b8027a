"""Draw the fields that a network learns from."""

from pathlib import Path

from ki67.provenance import stage_log
from ki67.training.drawn import FieldOptions, draw_fields

NETWORK, DRAWN = snakemake.wildcards.network, snakemake.params.drawn

with stage_log(snakemake.log[0], stage="draw_fields", name=NETWORK) as log:
    kind = NETWORK.removesuffix("_coarse")  # the same fields, which a coarse network sees reduced
    options = FieldOptions(kind=kind, count=DRAWN["count"], size_px=DRAWN["size_px"], seed=DRAWN["seed"])
    nuclei_from = DRAWN["nuclei_from"] and Path(DRAWN["nuclei_from"])
    draw_fields(options, Path(snakemake.output.fields), nuclei_from=nuclei_from, workers=snakemake.threads)
    log.note(f"{options.count} fields of {options.size_px} px")
