"""Put all slides together: a row a slide, a row a patient, agreement with readers, and pictures."""

from ki67.agreement_figures import agreement_picture
from ki67.agreement_tables import agreement_table, cohort_agreement
from ki67.cohort import cohort_provenance, patient_table, slide_table
from ki67.figures import cohort_overview
from ki67.index import MEASURES, index_categories
from ki67.provenance import stage_log, versions
from ki67.storage import read_json, write_cohort_zarr, write_csv, write_image_png, write_json

OUTPUT, SETTINGS = snakemake.output, snakemake.params.settings
CUTOFFS, NAMES = index_categories(SETTINGS["preset"], SETTINGS["cutoffs"])

with stage_log(snakemake.log[0], stage="cohort", name="cohort") as log:
    records = [read_json(path) for path in snakemake.input.indices]
    slides = slide_table(records)
    patients = patient_table(slides, CUTOFFS, NAMES, certainty=SETTINGS["certainty"])
    provenance = cohort_provenance(
        records, cutoffs=CUTOFFS, versions=versions(("anndata", "pandas", "scipy", "statsmodels"))
    )
    agreement = cohort_agreement(slides, CUTOFFS, NAMES)
    write_csv(OUTPUT.cohort, slides)
    write_csv(OUTPUT.patients, patients)
    write_cohort_zarr(OUTPUT.store, slides, MEASURES, provenance)
    write_image_png(OUTPUT.overview, cohort_overview(slides, CUTOFFS))
    write_json(OUTPUT.agreement_record, agreement)
    write_csv(OUTPUT.agreement, agreement_table(agreement))
    write_image_png(OUTPUT.agreement_picture, agreement_picture(slides, agreement))
    log.note(f"{slides['index'].notna().sum()} of {len(slides)} slides scored, {len(patients)} patients")
