"""Put all slides together: a row a slide, a row a patient, agreement with readers, and pictures."""

from ki67.agreement_figures import agreement_picture
from ki67.agreement_tables import agreement_table, cohort_agreement
from ki67.cohort import cohort_provenance, gather_records, patient_table
from ki67.figures import cohort_overview
from ki67.index import index_categories
from ki67.prediction.cohort_columns import with_predictions
from ki67.provenance import stage_log, versions
from ki67.storage import read_json, write_cohort_zarr, write_csv, write_image_png, write_json

OUTPUT, SETTINGS = snakemake.output, snakemake.params.settings
CUTOFFS, NAMES = index_categories(SETTINGS["preset"], SETTINGS["cutoffs"])

with stage_log(snakemake.log[0], stage="cohort", name="cohort") as log:
    records = gather_records(snakemake.input.indices, read_json)
    slides = records.slides
    patients = patient_table(slides, CUTOFFS, NAMES, certainty=SETTINGS["certainty"])
    made_by = versions(("anndata", "pandas", "scipy", "statsmodels"))
    provenance = cohort_provenance(records, settings={**SETTINGS, "cutoffs": CUTOFFS}, versions=made_by)
    agreement = cohort_agreement(slides, CUTOFFS, NAMES)
    predictions = list(map(read_json, snakemake.input.predictions))
    slides = with_predictions(slides, predictions) if predictions else slides
    write_csv(OUTPUT.cohort, slides)
    write_csv(OUTPUT.patients, patients)
    write_cohort_zarr(OUTPUT.store, slides.assign(**records.checksums), provenance)
    write_image_png(OUTPUT.overview, cohort_overview(slides, CUTOFFS, marker=snakemake.params.marker))
    write_json(OUTPUT.agreement_record, agreement)
    write_csv(OUTPUT.agreement, agreement_table(agreement))
    write_image_png(OUTPUT.agreement_picture, agreement_picture(slides, agreement))
    log.note(f"{slides['index'].notna().sum()} of {len(slides)} slides scored, {len(patients)} patients")
