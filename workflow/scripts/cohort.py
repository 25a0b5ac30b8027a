"""Put all slides together: a row a slide, a row a patient, and one picture."""

from ki67.cohort import cohort_provenance, gather_records, patient_table
from ki67.figures import cohort_overview
from ki67.index import index_categories
from ki67.provenance import stage_log, versions
from ki67.storage import read_json, write_cohort_zarr, write_csv, write_image_png

OUTPUT = snakemake.output
CUTOFFS, NAMES = index_categories(**snakemake.params.settings)

with stage_log(snakemake.log[0], stage="cohort", name="cohort") as log:
    records = gather_records(snakemake.input.indices, read_json)
    slides = records.slides
    patients = patient_table(slides, CUTOFFS, NAMES)
    settings = {**snakemake.params.settings, "cutoffs": CUTOFFS}
    provenance = cohort_provenance(records, settings=settings, versions=versions(("anndata", "pandas")))
    write_csv(OUTPUT.cohort, slides)
    write_csv(OUTPUT.patients, patients)
    write_cohort_zarr(OUTPUT.store, slides.assign(**records.checksums), provenance)
    write_image_png(OUTPUT.overview, cohort_overview(slides, CUTOFFS))
    log.note(f"{slides['index'].notna().sum()} of {len(slides)} slides scored, {len(patients)} patients")
