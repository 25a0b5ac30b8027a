"""Put all evaluations of nuclei, or all of tumour, into one table."""

from ki67.accuracy_report import accuracy_table
from ki67.provenance import stage_log
from ki67.storage import read_json, write_text
from ki67.tumor_report import tumor_table

KIND = snakemake.wildcards.kind

with stage_log(snakemake.log[0], stage="evaluate", name=KIND) as log:
    records = [read_json(path) for path in snakemake.input.records]
    write_text(snakemake.output.table, {"nuclei": accuracy_table, "tumor": tumor_table}[KIND](records))
    log.note(f"{len(records)} evaluations")
