"""Draw the fields that a network learns from."""

from pathlib import Path

from ki67.provenance import stage_log
from ki67.training.drawn import FieldOptions, Sources, draw_fields

NETWORK, DRAWN = snakemake.wildcards.network, snakemake.params.drawn

with stage_log(snakemake.log[0], stage="draw_fields", name=NETWORK) as log:
    options = FieldOptions(
        kind=snakemake.params.kind, count=DRAWN["count"], size_px=DRAWN["size_px"], seed=DRAWN["seed"]
    )
    nuclei_from, teacher = (DRAWN[key] and Path(DRAWN[key]) for key in ("nuclei_from", "teacher"))
    sources = Sources(nuclei_from or None, tuple(Path(folder) for folder in DRAWN["tissue_from"]), teacher or None)
    draw_fields(options, Path(snakemake.output.fields), sources=sources, workers=snakemake.threads)
    log.note(f"{options.count} fields of {options.size_px} px")
