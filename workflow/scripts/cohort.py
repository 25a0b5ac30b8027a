"""Put all slides together: a row a slide, a row a patient, and one picture."""

from ki67.cohort import patient_table, slide_table
from ki67.figures import cohort_overview
from ki67.index import MEASURES
from ki67.provenance import stage_log, versions
from ki67.storage import read_json, write_cohort_zarr, write_csv, write_image_png

with stage_log(snakemake.log[0], stage="cohort", name="cohort") as log:
    records = [read_json(path) for path in snakemake.input.indices]
    slides = slide_table(records)
    patients = patient_table(slides, snakemake.params.settings["cutoffs"])
    write_csv(snakemake.output.cohort, slides)
    write_csv(snakemake.output.patients, patients)
    write_cohort_zarr(snakemake.output.store, slides, MEASURES, {"versions": versions(("anndata", "pandas"))})
    write_image_png(snakemake.output.overview, cohort_overview(slides))
    log.note(f"{slides['index'].notna().sum()} of {len(slides)} slides scored, {len(patients)} patients")
