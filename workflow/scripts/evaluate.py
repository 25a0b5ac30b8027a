"""Put all evaluations of nuclei into one table."""

from ki67.accuracy_report import accuracy_table
from ki67.provenance import stage_log
from ki67.storage import read_json, write_text

with stage_log(snakemake.log[0], stage="evaluate", name="nuclei") as log:
    records = [read_json(path) for path in snakemake.input.records]
    write_text(snakemake.output.table, accuracy_table(records))
    log.note(f"{len(records)} evaluations")
