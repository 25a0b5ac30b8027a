"""Make the pictures and outlines that the report shows of a slide."""

from ki67.errors import SlideError
from ki67.provenance import stage_log
from ki67.report_pictures import SlideFiles, slide_page
from ki67.slides import open_checked_slide
from ki67.storage import read_image, read_json, read_nuclei_parquet, read_tumor_zarr, write_json

SLIDE, INPUT = snakemake.wildcards.slide, snakemake.input


def make_page(files: SlideFiles, nuclei) -> dict:
    """The page; without fields where the Ki-67 slide cannot be read."""
    checked = files.check["stains"]["ki67"]
    try:
        with open_checked_slide(snakemake.params.ki67, checked, slide_id=SLIDE, stain="ki67") as slide:
            return slide_page(files, nuclei, slide.read, slide_id=SLIDE)
    except SlideError:  # the stage that met it first has told
        return slide_page(files, nuclei, None, slide_id=SLIDE)


with stage_log(snakemake.log[0], stage="page", name=SLIDE) as log:
    files = SlideFiles(
        check=read_json(INPUT.check),
        transform=read_json(INPUT.transform),
        thumbnails={stain: read_image(INPUT[f"thumbnail_{stain}"]) for stain in ("he", "ki67")},
        tumor={stain: read_json(INPUT[f"tumor_{stain}"]) for stain in ("he", "ki67")},
        hot_spots=read_json(INPUT.hot_spots),
        tumor_mask=read_tumor_zarr(INPUT.tumor_mask, "ki67"),
    )
    page = make_page(files, read_nuclei_parquet(INPUT.nuclei))
    write_json(snakemake.output.page, page)
    log.note(f"{len(page['fields'])} fields")
