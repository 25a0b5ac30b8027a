"""Make the patch pairs of a slide: H&E with what the registered Ki-67 slide shows at the same places."""

from contextlib import ExitStack

from ki67 import storage
from ki67.deformation import transform_from_json
from ki67.errors import SlideError
from ki67.prediction.pair_making import Ki67Side, MadePairs, PairSettings, make_pairs, needed_stains, unlabelled_reason
from ki67.prediction.pair_pictures import pairs_picture
from ki67.prediction.patch_pairs import write_patch_pairs
from ki67.provenance import stage_log
from ki67.slides import open_checked_slide

SLIDE, INPUT, OUTPUT, PARAMS = snakemake.wildcards.slide, snakemake.input, snakemake.output, snakemake.params
SETTINGS, DISTRIBUTIONS = PairSettings(**PARAMS.settings), ("numpy", "opencv-python-headless", "scikit-image", "zarr")


def make(stains: dict, tumor, record: dict, **known) -> MadePairs:
    """The pairs, from the slides that can be used and fit."""
    reason, opened = unlabelled_reason(stains, record["verdict"]), {}
    with ExitStack() as stack:
        for one in needed_stains(tumor, reason):
            opened[one] = stack.enter_context(open_checked_slide(PARAMS[one], stains[one], slide_id=SLIDE, stain=one))
        nuclei = storage.read_nuclei_parquet(INPUT.nuclei)
        ki67 = Ki67Side(opened["ki67"], nuclei, transform_from_json(record)) if "ki67" in opened else None
        return make_pairs(opened.get("he"), tumor, ki67, SETTINGS, unlabelled=reason, **known)


with stage_log(snakemake.log[0], stage="pairs", name=SLIDE) as log:
    check, record, index = (storage.read_json(INPUT[name]) for name in ("check", "transform", "index"))
    tumor, findings = storage.read_tumor_zarr(INPUT.tumor, "he"), []
    known = {"slide_id": SLIDE, "slide_index": index["index"], "patient": PARAMS.patient, "marker": PARAMS.marker}
    try:
        made = make(check["stains"], tumor, record, **known)
    except SlideError as error:
        made, findings = make_pairs(None, tumor, None, SETTINGS, **known), [error.finding]
    write_patch_pairs(OUTPUT.pairs, made.pairs, made.ki67)
    storage.write_image_png(OUTPUT.picture, pairs_picture(made))
    log.note(f"{len(made.pairs)} patches, {int(made.pairs.labelled.sum())} with a label")
    storage.write_json(OUTPUT.record, made.to_json() | {"findings": findings} | log.record(PARAMS, DISTRIBUTIONS))
