"""Write the report of a drawn cohort, with pictures of drawn slides, to see how large it is and how it looks.

    python -m benchmarks.report_size FOLDER [--slides 200] [--phantoms 3] [--seed 1] [--open]

Results, flags and readers are drawn from the seed; pictures are those of a few drawn slides, taken in turn. Prints the
bytes and the seconds, with ``--open`` those until headless Chromium has drawn it. Slides above 300 go to pages of their
own, as in the workflow.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely

from benchmarks.browser import seconds_to_open, start_browser
from ki67.cohort import slide_table
from ki67.errors import Flag
from ki67.geometry import Mask, RigidTransform
from ki67.index import CUTOFFS, category_names, category_of, wilson_interval
from ki67.phantom.draw import draw_slides
from ki67.phantom.pair import PhantomOptions
from ki67.provenance import versions
from ki67.report import MOST_SLIDES_IN_ONE_FILE, PAGES_FOLDER, ReportSettings, report_html, slide_pages
from ki67.report_pictures import SlideFiles, slide_page
from ki67.slides import open_slide
from ki67.storage import read_json, to_plain, write_text
from ki67.transfer import region_mask

OVERVIEW_PX = 1440  # as many as the thumbnail of a slide of 12 mm has
LOOKS = (
    {"ki67_fraction": 0.15, "tumor_share": 0.5},
    {"ki67_fraction": 0.35, "tumor_share": 0.7, "flip": True},
    {"ki67_fraction": 0.06, "tumor_share": 0.4, "fold": True},
    {"ki67_fraction": 0.6, "tumor_share": 0.6},
)
MESSAGES = {
    Flag.FOLD: "0.31 mm² of folds were left out of the tissue; look at the overlay",
    Flag.PEN_MARK: "pen covers 4 % of the tissue, which is left out",
    Flag.NO_HE: "the sample sheet gives no H&E slide, so the tumour is looked for on the Ki-67 slide",
    Flag.REGISTRATION_DOUBTFUL: "18 of 44 places of the tissue were found where they should be; see there",
    Flag.IN_SITU_COUNTED: "in situ carcinoma is not told from invasive and is counted if there is any; draw polygons "
    "of the class Exclude around it and name their file in roi_ki67 or roi_he",
    Flag.UNLIKE_TRAINING: "31 % of the nuclei are of a size or stain that the network was not trained on",
    Flag.FEWER_THAN_500_NUCLEI: "only 412 tumour nuclei were counted, fewer than 500; add tissue or read the interval",
    Flag.BLURRED_PART: "0.8 mm² are far less sharp than the rest of the slide and were left out",
}
CHANCES = dict(zip(MESSAGES, (0.12, 0.04, 0.06, 0.09, 0.9, 0.04, 0.05, 0.07), strict=True))


def drawn_page(folder: Path, number: int, *, area_mm2: float) -> dict[str, Any]:
    """What the report shows of a slide drawn for it."""
    draw_slides(PhantomOptions(area_mm2, seed=500 + number, **LOOKS[number % len(LOOKS)]), folder)
    truth = folder / "truth"
    nuclei = drawn_nuclei(pd.read_parquet(truth / "nuclei.parquet"))
    stains, thumbnails = {}, {}
    with (
        open_slide(folder / "he.tif", slide_id="drawn", stain="he") as he,
        open_slide(folder / "ki67.tif", slide_id="drawn", stain="ki67") as ki67,
    ):
        for stain, slide in (("he", he), ("ki67", ki67)):
            mpp = max(slide.size_um) / OVERVIEW_PX
            thumbnails[stain] = slide.thumbnail(mpp)
            stains[stain] = {"usable": True, "mpp": 0.5, "tissue_mpp": mpp}
        transform = RigidTransform.from_json(read_json(truth / "transform.json")).to_json()
        outlines = {stain: read_json(truth / f"tumor_{stain}.geojson") for stain in stains}
        files = SlideFiles(
            check={"stains": stains},
            transform=transform | {"reason": "44 of 44 places of the tissue were found where they should be"},
            thumbnails=thumbnails,
            tumor=outlines,
            tumor_mask=drawn_tumor(json.dumps(outlines["ki67"]), ki67.size_um),
            hot_spots=drawn_hot_spots(nuclei),
        )
        return slide_page(files, nuclei, ki67.read, slide_id="drawn")


def drawn_nuclei(table: pd.DataFrame) -> geopandas.GeoDataFrame:
    """The nuclei that were drawn, with discs of their areas for outlines."""
    radius = np.sqrt(table["area_um2"].to_numpy() / math.pi)
    outlines = shapely.buffer(shapely.points(table["x_um"], table["y_um"]), radius, quad_segs=4)
    return geopandas.GeoDataFrame(table, geometry=outlines)


def drawn_tumor(geojson: str, size_um: tuple[float, float]) -> Mask:
    """The tumour that was drawn, at 2 µm per pixel."""
    shape = (math.ceil(size_um[1] / 2), math.ceil(size_um[0] / 2))
    return region_mask(geojson, shape=shape, mpp=2.0, level0_mpp=0.5, slide_id="drawn", stain="ki67")


def drawn_hot_spots(nuclei: pd.DataFrame) -> dict[str, Any]:
    """A disc where most nuclei are positive, as GeoJSON in pixels of 0.5 µm."""
    positive = nuclei[nuclei["in_tumor"] & nuclei["positive"]]
    squares, number = np.unique(np.floor(positive[["x_um", "y_um"]] / 400), axis=0, return_counts=True)
    x, y = (squares[number.argmax()] + 0.5) * 400
    ring = shapely.get_coordinates(shapely.Point(2 * x, 2 * y).buffer(500)).round(1).tolist()
    return {"features": [{"geometry": {"type": "Polygon", "coordinates": [ring]}}]}


def drawn_records(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    """Records of slides as ``ki67.json`` holds them, drawn from a seed: some without an index, most with readers."""
    rng = np.random.default_rng(seed)
    software = versions(("numpy", "geopandas"))
    return [to_plain(drawn_record(rng, number) | {"versions": software}) for number in range(1, count + 1)]


def drawn_record(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """One of ``drawn_records``."""
    slide = f"S{number:04d}"
    scored = rng.random() > 0.04
    total = int(rng.lognormal(9, 1.1)) + 120 if scored else 0
    positive = int(rng.binomial(total, rng.beta(1.3, 5))) if scored else 0
    index = positive / total if total else math.nan
    low, high = wilson_interval(positive, total)
    half = 1.9 * (high - low) / 2 + 0.008
    block = (np.maximum(0.0, index - half), np.minimum(1.0, index + half))
    flags = [flag for flag in Flag if flag in MESSAGES and rng.random() < CHANCES[flag]] if scored else [Flag.NO_TUMOR]
    words = MESSAGES | {Flag.NO_TUMOR: "no tumour was found, so there is no index; see whether the overlay shows any"}
    hot = np.minimum(1.0, index + abs(rng.normal(0.06, 0.05)))
    category = category_of(index)
    return {
        "slide": slide,
        "patient": f"P{(number + 1) // 2:04d}",
        "index": index,
        "index_low": block[0],
        "index_high": block[1],
        "interval": "block_bootstrap",
        "wilson_low": low,
        "wilson_high": high,
        "positive": positive,
        "total": total,
        "category": category if not scored or rng.random() > 0.1 else "indeterminate",
        "point_category": category,
        "tumor_mm2": total / 3900 if scored else 0.0,
        "nuclei_per_mm2": 3900.0 if scored else math.nan,
        "tumor_source": "he" if Flag.NO_HE not in flags else "ki67",
        "tumor_he_mm2": total / 3800 if scored else 0.0,
        "index_global_unweighted": index * 0.97,
        "index_global_weighted": index * 0.99,
        "index_hot_spot": hot,
        "hot_spot_gap": hot - index,
        "index_area": np.minimum(1.0, index * 1.08),
        **{f"p_above_{at}": float(np.clip(0.5 + (index - at / 100) / (2 * half), 0, 1)) for at in (5, 10, 14, 20, 30)},
        "flags": [flag.value for flag in flags],
        "findings": [{"flag": flag.value, "message": f"{slide}: {words[flag]}", "stain": "ki67"} for flag in flags],
        "reference_index": float(np.clip(round(index + rng.normal(0.01, 0.035), 2), 0, 1)) if scored else None,
        "reference_index_bo": float(np.clip(round(index + rng.normal(-0.01, 0.05), 2), 0, 1)) if number % 3 else None,
        "registration": {"verdict": "accepted", "ncc": 0.74, "estimated_error_um": 4.2},
        "models": {
            "nuclei": {"method": "unet_resnet34", "name": "nuclei", "sha256": "648a82fd" * 8, "precision": "int8"}
        },
        "seconds": {"check": 1.9, "tumor": 46.6, "register": 12.1, "transfer": 2.2, "nuclei": 71.2},
    }


def write_report(folder: Path, records: Sequence[dict[str, Any]], pages: Sequence[dict[str, Any]]) -> Path:
    """Write the report of some records, whose pictures are those of the pages in turn; return its path."""
    shown = [pages[number % len(pages)] for number in range(len(records))]
    settings = ReportSettings(CUTOFFS, category_names(), versions=versions(("jinja2",)))
    paged = len(records) > MOST_SLIDES_IN_ONE_FILE
    write_text(folder / "report.html", report_html(records, None if paged else shown, settings))
    for name, text in slide_pages(records, shown, settings) if paged else ():
        write_text(folder / PAGES_FOLDER / name, text)
    slide_table(records).to_csv(folder / "cohort.csv", index=False)
    return folder / "report.html"


def main() -> None:
    """Draw, write and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--phantoms", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--open", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pages = [drawn_page(Path(scratch) / str(number), number, area_mm2=4) for number in range(options.phantoms)]
    started = time.monotonic()
    report = write_report(options.folder, drawn_records(options.slides, seed=options.seed), pages)
    seconds = time.monotonic() - started
    files = [report, *report.with_name(PAGES_FOLDER).glob("*.html")]
    largest = max(path.stat().st_size for path in files)
    total = sum(path.stat().st_size for path in files)
    print(f"{options.slides} slides: {report.name} {report.stat().st_size / 1e6:.1f} MB, written in {seconds:.1f} s")
    print(f"{len(files)} files, {total / 1e6:.1f} MB in all, the largest {largest / 1e6:.1f} MB")
    if options.open:
        with tempfile.TemporaryDirectory() as scratch:
            driver = start_browser(Path(scratch))
            opened = [f"{seconds_to_open(driver, report):.2f}" for _ in range(5)]
            driver.quit()
        print(f"opened five times, drawn after {', '.join(opened)} s")


if __name__ == "__main__":
    main()
