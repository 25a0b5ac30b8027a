"""Measure a prediction from H&E on what its models said of slides they had not seen, and draw it."""

from pathlib import Path

from ki67.index import index_categories
from ki67.prediction.folder_scores import evaluate_folder, evaluation_pictures, prediction_table
from ki67.provenance import stage_log
from ki67.report_pictures import PLOT, picture
from ki67.storage import write_image_png, write_json, write_text

OUTPUT, SETTINGS = snakemake.output, snakemake.params.settings

with stage_log(snakemake.log[0], stage="predict_evaluate", name="cohort") as log:
    folder = Path(snakemake.input.model).parent
    record = evaluate_folder(folder, index_categories(SETTINGS["preset"], SETTINGS["cutoffs"])[0])
    pictures = evaluation_pictures(folder, record)
    for name, image in pictures.items():
        write_image_png(OUTPUT[name], image)
    write_json(OUTPUT.page, {name: picture(image, PLOT) for name, image in pictures.items()})
    write_text(OUTPUT.table, prediction_table(record))
    write_json(OUTPUT.record, record)
    log.note(f"{record['slide']['slides']} slides of {record['slide']['patients']} patients")
