"""What the gate of registration lets through: right partners, whose transform is known, and wrong ones.

    python -m benchmarks.registration_partners DRAWN [--pairs PAIRS.csv] [--kinds right,other] [--out X.json]

DRAWN is a folder of benchmarks/registration_slides.sh. Kinds of partners:

- right: each drawn pair, its transform against the true one
- other: each drawn H&E with the Ki-67 slide of every other pair; each real one with other organs, perturbed
- mirrored: each pair with one slide mirrored and mirror images switched off, so that nothing right is in reach
- disjoint: of each H&E only what lies on one side of a line, of its partner only what lies on the other
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.errors import Stain
from ki67.geometry import RigidTransform
from ki67.landmarks import fit_rigid
from ki67.perturbation import glass_colour, perturb
from ki67.registration import FINEST_MPP, Registration, register
from ki67.registration_evaluation import LandmarkPair, read_landmark_pairs, seen_as_slide
from ki67.slides import open_slide
from ki67.storage import read_json, write_json
from ki67.tissue import find_tissue

RgbImage = NDArray[np.uint8]
KINDS = ("right", "other", "mirrored", "disjoint")
REAL_TURNS = 6  # perturbations of each real pair


@dataclass(frozen=True)
class Job:
    """One registration: of which kind, which H&E, which partner, and the number of the perturbation."""

    kind: str
    he: str
    ki67: str
    number: int


@cache
def drawn_thumbnail(folder: Path, stain: Stain) -> RgbImage:
    """A drawn slide at the resolution of registration."""
    with open_slide(folder / f"{stain}.tif", slide_id=folder.name, stain=stain) as slide:
        return slide.thumbnail(FINEST_MPP)


@cache
def real_pairs(table: Path) -> dict[str, LandmarkPair]:
    """The pairs of a table by name."""
    return {pair.name: pair for pair in read_landmark_pairs(table)}


def known_transform(job: Job, drawn: Path, table: Path | None) -> RigidTransform:
    """From the H&E of the job to its own partner; of real pairs the best rigid fit to the landmarks."""
    if (drawn / job.he).is_dir():
        return RigidTransform.from_json(read_json(drawn / job.he / "truth" / "transform.json"))
    assert table is not None
    pair = real_pairs(table)[job.he]
    matrix = fit_rigid(pair.fixed_landmarks_px * pair.mpp, pair.moving_landmarks_px * pair.mpp)
    return RigidTransform(matrix, "he", "ki67")


def thumbnails(job: Job, drawn: Path, table: Path | None) -> tuple[RgbImage, RgbImage]:
    """Both thumbnails of a job, as its kind wants them."""
    if (drawn / job.he).is_dir():
        he, ki67 = drawn_thumbnail(drawn / job.he, "he"), drawn_thumbnail(drawn / job.ki67, "ki67")
    else:
        assert table is not None
        one, other = (real_pairs(table)[name] for name in (job.he, job.ki67))
        rgb = other.moving_rgb
        if job.kind == "other":
            rgb = perturb(rgb, other.moving_landmarks_px, other.mpp, (job.number,)).rgb
        he, ki67 = (
            seen_as_slide(one.fixed_rgb, one.mpp, FINEST_MPP, "he")[0],
            seen_as_slide(rgb, other.mpp, FINEST_MPP, "ki67")[0],
        )
    if job.kind == "disjoint":
        return parted(he, ki67, known_transform(job, drawn, table), job.number)
    if job.kind == "mirrored" and not known_transform(job, drawn, table).mirror:
        ki67 = np.ascontiguousarray(ki67[:, ::-1])
    return he, ki67


def parted(he: RgbImage, ki67: RgbImage, transform: RigidTransform, number: int) -> tuple[RgbImage, RgbImage]:
    """The H&E on one side of a line through its tissue, and the Ki-67 slide on the other; the rest is glass."""
    angle = np.random.default_rng((number, 5)).uniform(0, 2 * np.pi)
    across = np.array([np.cos(angle), np.sin(angle)])
    rows, columns = np.nonzero(find_tissue(he, FINEST_MPP, "he").mask.pixels)
    middle = np.median(np.column_stack([columns, rows]) @ across)
    he, ki67 = he.copy(), ki67.copy()
    he[(pixel_centres(he) @ across > middle).reshape(he.shape[:2])] = glass_colour(he)
    back = transform.inverse().apply(pixel_centres(ki67) * FINEST_MPP) / FINEST_MPP
    ki67[(back @ across < middle).reshape(ki67.shape[:2])] = glass_colour(ki67)
    return he, ki67


def pixel_centres(image: RgbImage) -> NDArray[np.float64]:
    """x and y of every pixel's centre, ``(N, 2)``."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.column_stack([x.ravel(), y.ravel()])


def run(job: Job, drawn: Path, table: Path | None) -> dict[str, Any]:
    """Register the two slides of a job; for right partners with the distance to the known transform."""
    he, ki67 = thumbnails(job, drawn, table)
    tissue = find_tissue(he, FINEST_MPP, "he").mask, find_tissue(ki67, FINEST_MPP, "ki67").mask
    found = register(he, tissue[0], ki67, tissue[1], mpp=FINEST_MPP, mirror=job.kind != "mirrored")
    record = {name: value for name, value in found.to_json().items() if name not in ("deformation", "checked")}
    errors = _errors(found, known_transform(job, drawn, table), tissue[0].pixels) if job.kind == "right" else {}
    return vars(job) | record | errors


def _errors(found: Registration, truth: RigidTransform, tissue: NDArray[np.bool_]) -> dict[str, float | None]:
    if found.transform is None:
        return {"error_um": None, "largest_error_um": None}
    rows, columns = np.nonzero(tissue)
    places = (np.column_stack([columns, rows])[::97] + 0.5) * FINEST_MPP
    errors = np.linalg.norm(found.transform.apply(places) - truth.apply(places), axis=1)
    return {"error_um": float(np.median(errors)), "largest_error_um": float(errors.max())}


def jobs_of(kinds: list[str], drawn: Path, table: Path | None) -> list[Job]:
    """All registrations of these kinds."""
    slides = sorted(path.parent.parent.name for path in drawn.glob("*/truth/transform.json"))
    real = list(real_pairs(table)) if table else []
    jobs = [Job(kind, name, name, 0) for kind in kinds for name in slides if kind in ("right", "mirrored")]
    jobs += [Job(kind, name, name, turn) for kind in kinds for name in slides for turn in (0, 1) if kind == "disjoint"]
    jobs += [
        Job(kind, one, other, 0)
        for kind in kinds
        for one in slides
        for other in slides
        if kind == "other" and one != other
    ]
    for kind in set(kinds) - {"right"}:
        pairs = [(one, other) for one in real for other in real if (kind == "other") == (one[:3] != other[:3])]
        pairs = pairs if kind == "other" else [(name, name) for name in real]
        jobs += [Job(kind, *pair, turn) for pair in pairs for turn in range(1 if kind == "mirrored" else REAL_TURNS)]
    return jobs


def main(
    drawn: Annotated[Path, typer.Argument(help="Folder of drawn pairs.")],
    pairs: Annotated[Path | None, typer.Option(help="Table of real pairs with landmarks.")] = None,
    kinds: Annotated[str, typer.Option(help="Which partners, separated by commas.")] = ",".join(KINDS),
    every: Annotated[int, typer.Option(min=1, help="Take every n-th registration of a kind only.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file for every registration.")] = None,
) -> None:
    """Register right and wrong partners and count the verdicts."""
    jobs = [job for kind in kinds.split(",") for job in jobs_of([kind], drawn, pairs)[::every]]
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        started = [pool.submit(run, job, drawn, pairs) for job in jobs]
        records = [future.result() for future in tqdm(started, unit="pair")]
    for kind in kinds.split(","):
        chosen = [record for record in records if record["kind"] == kind]
        counts = Counter(record["verdict"] for record in chosen)
        seconds = [record["seconds"] for record in chosen]
        typer.echo(
            f"{kind}\t{len(chosen)}\t{dict(counts)}\tseconds: median {np.median(seconds):.1f}, most {max(seconds):.1f}"
        )
    for record in records:
        if record["kind"] == "right" or record["verdict"] != "rejected":
            numbers = (record.get("error_um"), record.get("largest_error_um"), record["estimated_error_um"])
            words = [record["kind"], record["he"], record["ki67"], *("-" if x is None else f"{x:.1f}" for x in numbers)]
            typer.echo("\t".join([*words, record["verdict"], record["reason"]]))
    if out:
        write_json(out, records)


if __name__ == "__main__":
    typer.run(main)
