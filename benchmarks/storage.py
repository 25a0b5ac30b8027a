"""What files of a large cohort cost: seconds, processor seconds and peak memory, each in a process of its own.

    python -m benchmarks.storage nuclei [--count 2000000]      GeoJSON of so many drawn nuclei, from their GeoParquet
    python -m benchmarks.storage pyramid [--width-px 120000 --height-px 100000]    tumour mask of such a slide
    python -m benchmarks.storage cohort [--slides 3000]        records of slides to cohort.csv and cohort.zarr
    python -m benchmarks.storage checksum FILE [FILE ...]      checksum of samples beside that of whole files

Peak memory is that of the process from its start, with Python and the libraries; ``before_mb`` is what it had when the
work began.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import geopandas
import numpy as np
import shapely
import typer
from numpy.typing import NDArray

from ki67.checksum import file_checksum
from ki67.cohort import cohort_provenance, gather_records, patient_table
from ki67.errors import Flag
from ki67.geometry import Mask
from ki67.index import wilson_interval
from ki67.nuclei_geojson import write_nuclei_geojson
from ki67.outlines import OUTLINE_VERTICES, polygons
from ki67.storage import (
    read_json,
    to_plain,
    write_cohort_zarr,
    write_csv,
    write_json,
    write_nuclei_parquet,
    write_tumor_zarr,
)

app = typer.Typer(add_completion=False)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of some work, and what it returns."""
    before_mb, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
    told = work(*arguments)
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return spent | {"before_mb": before_mb, "peak_mb": peak_mb()} | (told if isinstance(told, dict) else {})


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def tell(result: dict[str, Any]) -> None:
    typer.echo(json.dumps({key: round(value, 3) for key, value in result.items()}))


def drawn_nuclei(count: int) -> geopandas.GeoDataFrame:
    """Round nuclei with uneven edges, from top to bottom of a slide of 30 x 25 mm."""
    random = np.random.default_rng(7)
    x_um, y_um = random.uniform(0, 30_000, count), np.sort(random.uniform(0, 25_000, count))
    angles = np.linspace(0, 2 * np.pi, OUTLINE_VERTICES, endpoint=False)
    radius = random.uniform(3, 6, (count, 1)) * random.uniform(0.9, 1.1, (count, OUTLINE_VERTICES))
    middle = np.stack([x_um, y_um], axis=1)[:, None]
    outlines = polygons(middle + radius[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    some = {name: random.random(count, dtype=np.float32) for name in ("probability", "dab_od", "hematoxylin_od")}
    columns: dict[str, NDArray[Any]] = {
        "nucleus_id": np.arange(1, count + 1),
        "x_um": x_um,
        "y_um": y_um,
        "positive": random.random(count) < 0.2,
        "area_um2": shapely.area(outlines).astype(np.float32),
        "uncertainty": 1 - some["probability"],
        "in_tumor": np.ones(count, dtype=bool),
        **some,
    }
    return geopandas.GeoDataFrame(columns, geometry=outlines)


def draw_table(path: Path, count: int) -> dict[str, Any]:
    nuclei = drawn_nuclei(count)
    return measured(write_nuclei_parquet, path, nuclei)


def stream_geojson(path: Path, table: Path) -> dict[str, Any]:
    return measured(lambda: write_nuclei_geojson(path, table, 0.25, slide_id="S1"))


@app.command()
def nuclei(count: int = 2_000_000) -> None:
    """GeoParquet of drawn nuclei, then GeoJSON of it."""
    with tempfile.TemporaryDirectory() as folder:
        table, detections = Path(folder) / "nuclei.parquet", Path(folder) / "nuclei.geojson.gz"
        written = in_own_process(draw_table, table, count)
        tell(written | {"parquet_mb": table.stat().st_size / 1e6})
        tell(in_own_process(stream_geojson, detections, table) | {"geojson_mb": detections.stat().st_size / 1e6})


def drawn_mask(height: int, width: int, mpp: float) -> Mask:
    """Nests of tumour of some 200 µm all over a slide."""
    random = np.random.default_rng(3)
    nest = max(1, round(200 / mpp))
    rows, columns = -(-height // nest), -(-width // nest)
    nests = random.random((rows, columns)) < 0.4
    return Mask(np.repeat(np.repeat(nests, nest, axis=0), nest, axis=1)[:height, :width].copy(), mpp, "ki67")


def write_pyramid(path: Path, height: int, width: int, mpp: float, with_probability: bool) -> dict[str, Any]:
    mask = drawn_mask(height, width, mpp)
    probability = mask.pixels.view(np.uint8) * np.uint8(250) if with_probability else None
    given_mb = (mask.pixels.nbytes + (0 if probability is None else probability.nbytes)) / 2**20
    return measured(write_tumor_zarr, path, mask, probability) | {"given_mb": given_mb}


@app.command()
def pyramid(width_px: int = 120_000, height_px: int = 100_000, mpp: float = 0.25, mask_mpp: float = 2.0) -> None:
    """OME-Zarr of the tumour mask of a slide, without and with the probability."""
    height, width = (round(size * mpp / mask_mpp) for size in (height_px, width_px))
    for with_probability in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tumor.ome.zarr"
            told = in_own_process(write_pyramid, path, height, width, mask_mpp, with_probability)
            files = [file for file in path.rglob("*") if file.is_file()]
            size_mb = sum(file.stat().st_size for file in files) / 1e6
            tell({"probability": with_probability, **told, "files": len(files), "size_mb": size_mb})


def drawn_record(number: int) -> dict[str, Any]:
    """A record such as ``ki67.json`` holds, with a finding and all that made it."""
    total = 100 + 37 * number % 40_000
    positive = total * (number % 60) // 100
    low, high = wilson_interval(positive, total)
    finding = {
        "flag": Flag.IN_SITU_COUNTED.value,
        "message": f"S{number}: in situ carcinoma is counted",
        "stain": "ki67",
    }
    stages = ("check", "tumor", "register", "transfer", "nuclei", "index")
    file = {"bytes": 2**31, "sampled_bytes": 2**22, "sha256": hashlib.sha256(b"%d" % number).hexdigest()}
    counts = {"index": positive / total, "index_low": low, "index_high": high, "positive": positive, "total": total}
    return to_plain(
        {"slide": f"S{number}", "patient": f"P{number // 2}", **counts, "category": "<10%", "tumor_mm2": 3.5}
        | {"tumor_source": "he", "tumor_he_mm2": 3.25, "flags": [finding["flag"]], "findings": [finding]}
        | {"reference_index": 0.15, "registration": {"verdict": "accepted", "ncc": 0.5, "estimated_error_um": 4.0}}
        | {"models": {"nuclei": {"name": "nuclei", "sha256": "a" * 64, "precision": "int8"}}}
        | {"versions": {"numpy": "2.4.6", "torch": "2.12.1"}, "inputs": {"he": file, "ki67": file}}
        | {"settings": {stage: {"mpp": 8.0} for stage in stages}, "code": dict.fromkeys(stages, "a" * 16)}
        | {"seconds": dict.fromkeys(stages, 1.5)}
    )


def aggregate(folder: Path, slides: int) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        records = gather_records([str(folder / f"{number}.json") for number in range(slides)], read_json)
        write_csv(folder / "cohort.csv", records.slides)
        write_csv(folder / "patients.csv", patient_table(records.slides))
        made = cohort_provenance(records, settings={}, versions={})
        write_cohort_zarr(folder / "cohort.zarr", records.slides.assign(**records.checksums), made)
        return {"rows": len(records.slides)}

    return measured(work)


@app.command()
def cohort(slides: int = 3000) -> None:
    """Records of slides to the tables of the cohort."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(slides):
            write_json(folder / f"{number}.json", drawn_record(number))
        tell(in_own_process(aggregate, folder, slides))


@app.command()
def checksum(files: Annotated[list[Path], typer.Argument(help="Slides.")]) -> None:
    """Checksum of samples, and for comparison of all bytes; from disk if nothing has read them lately."""
    for path in files:
        sampled = measured(file_checksum, path)
        entire = measured(lambda path=path: _all_bytes(path))
        size_mb = path.stat().st_size / 1e6
        tell(
            {
                "size_mb": size_mb,
                "sampled_s": sampled["wall_s"],
                "all_s": entire["wall_s"],
                "all_cpu_s": entire["cpu_s"],
            }
        )


def _all_bytes(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


if __name__ == "__main__":
    app()
