"""Write the report of the cohort: one page, and above 300 slides one for each of them."""

import shutil
from pathlib import Path

from ki67.index import index_categories
from ki67.provenance import stage_log, versions
from ki67.report import PAGES_FOLDER, ReportSettings, prediction_data, report_html, slide_pages
from ki67.storage import read_json, whole, write_text

INPUT, OUTPUT = snakemake.input, snakemake.output
CUTOFFS, NAMES = index_categories(snakemake.params.settings["preset"], snakemake.params.settings["cutoffs"])

with stage_log(snakemake.log[0], stage="report", name="cohort") as log:
    records = [read_json(path) for path in INPUT.indices]
    told, agreement = map(read_json, INPUT.predictions), read_json(INPUT.agreement)
    predicted = prediction_data(read_json(INPUT.evaluation), told) if INPUT.evaluation else None
    shared = {"marker": snakemake.params.marker, "versions": versions(("jinja2",))}
    settings = ReportSettings(CUTOFFS, NAMES, agreement, predicted, **shared)
    pages, folder = map(read_json, INPUT.pages), OUTPUT.get("pages")
    shutil.rmtree(Path(OUTPUT.report).with_name(PAGES_FOLDER), ignore_errors=True)  # of a cohort that was larger
    if folder:
        with whole(folder) as partial:
            partial.mkdir()
            for name, text in slide_pages(records, pages, settings):
                Path(partial, name).write_text(text, encoding="utf-8")
    write_text(OUTPUT.report, report_html(records, None if folder else pages, settings))
    log.note(f"{len(records)} slides, {'a page each' if folder else 'one page'}")
