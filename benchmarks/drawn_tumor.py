"""How well tumour is found on drawn slides that no training saw, and how much is found where there is none.

    python -m benchmarks.drawn_tumor draw FOLDER [--slides 10]
    python -m benchmarks.drawn_tumor measure FOLDER [--he DIR] [--ki67 DIR] [--coarse DIR] [--nuclei DIR] [--alone]
    python -m benchmarks.drawn_tumor measure FOLDER --method patches_googlenet
    python -m benchmarks.drawn_tumor index FOLDER
    python -m benchmarks.drawn_tumor none SLIDE [SLIDE ...] [--stain he]

``draw`` makes pairs of 2 mm² from seeds that training never takes, with tumour shares, stains and damage of all kinds,
and one without tumour. ``measure`` finds the tumour on both slides of each, each by the network of its own stain, and
compares with what was drawn inside the tissue: Dice, and the false tumour as a share of the tissue. ``index`` runs the
whole workflow on the pairs, and on their Ki-67 slides alone, and compares the index with the truth. ``none`` gives the
share of the tissue that is taken for tumour on any slide, and a picture of where in the working directory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Stain
from ki67.figures import tumor_picture
from ki67.slides import open_slide
from ki67.storage import read_json, write_image_png
from ki67.tissue import StainCheck, check_slide
from ki67.transfer import region_mask
from ki67.tumor import at_resolution
from ki67.tumor_mask import TumorMask, TumorSettings, make_tumor_mask
from ki67.tumor_methods import MODELS

SETTINGS = TumorSettings(2.0, None, 0.003, 0.005, "limit", "auto", "auto", 4, 4)
FIRST_SEED = 9001
KINDS = (
    ["--tumor-share", "0.3"],
    ["--tumor-share", "0.5", "--stain-strength", "0.7"],
    ["--tumor-share", "0.2", "--stain-strength", "1.4"],
    ["--tumor-share", "0.4", "--fold"],
    ["--tumor-share", "0.6", "--pen-mark"],
    ["--tumor-share", "0.4", "--mpp", "0.25"],
    ["--tumor-share", "0.3", "--blur"],
    ["--tumor-share", "0.7"],
    ["--tumor-share", "0.1"],
    ["--tumor-share", "0.4", "--mpp", "0.4"],
)
NO_TUMOR, ALONE = "without", "_alone"
ROOT = Path(__file__).resolve().parents[1]
SHIPPED = Path("resources/models")
BESIDE: dict[Stain, str] = {"he": "coarse_model", "ki67": "nuclei_model"}


def draw(folder: Path, count: int) -> None:
    """Draw the slides that are not there yet."""
    fractions = np.linspace(0.02, 0.8, count)
    wanted = [(f"s{number:02d}", KINDS[number % len(KINDS)], fractions[number]) for number in range(count)]
    for number, (name, options, fraction) in enumerate([*wanted, (NO_TUMOR, ["--tumor-share", "0"], 0.1)]):
        if not (folder / name / "ki67.tif").exists():
            command = [sys.executable, "-m", "ki67", "phantom", "--out", str(folder / name), "--area-mm2", "2"]
            more = ["--seed", str(FIRST_SEED + number), "--ki67-fraction", f"{fraction:.3f}", *options]
            subprocess.run([*command, *more], check=True)


def found_on(path: Path, stain: Stain, model: Path, beside: Path | None) -> tuple[TumorMask, StainCheck]:
    """Tumour of a slide, and what else is known of it; ``beside``: what the workflow has beside the stain's network."""
    with open_slide(path, slide_id=path.parent.name, stain=stain) as slide:
        checked = check_slide(slide)
        models = {"model": model / "model.json", BESIDE[stain]: beside and beside / "model.json"}
        settings = replace(SETTINGS, method=read_json(models["model"])["architecture"])
        tumor = make_tumor_mask(slide, checked.tissue, settings, **models)
        return tumor, checked


def tissue_beside(tumor: TumorMask, checked: StainCheck) -> NDArray[np.bool_]:
    """Tissue at the resolution of the tumour mask."""
    height, width = tumor.mask.pixels.shape
    return at_resolution(checked.tissue, (height, width), tumor.mask.mpp)


def measure(folder: Path, models: dict[Stain, Path], beside: dict[Stain, Path | None]) -> None:
    """Print Dice of each slide, and the false tumour of that without any."""
    scores: dict[Stain, list[float]] = {"he": [], "ki67": []}
    for slide in sorted(path.parent for path in folder.glob("*/ki67.tif")):
        for stain, dice in scores.items():
            path = slide / f"{stain}.tif"
            tumor, checked = found_on(path, stain, models[stain], beside[stain])
            found, tissue = tumor.mask.pixels, tissue_beside(tumor, checked)
            if slide.name == NO_TUMOR:
                print(f"{slide.name} {stain}: {np.mean(found[tissue]):.2%} of the tissue taken for tumour", flush=True)
                continue
            geojson = (slide / "truth" / f"tumor_{stain}.geojson").read_text(encoding="utf-8")
            with open_slide(path, slide_id=slide.name, stain=stain) as opened:
                known = {"level0_mpp": opened.mpp, "slide_id": slide.name, "stain": stain}
                truth = region_mask(geojson, shape=found.shape, mpp=SETTINGS.mask_mpp, **known).pixels & tissue
            dice.append(2 * float(np.sum(found & truth)) / max(1.0, float(found.sum() + truth.sum())))
            print(f"{slide.name} {stain}: Dice {dice[-1]:.3f}", flush=True)
    for stain, dice in scores.items():
        print(f"{stain}: mean Dice {np.mean(dice):.3f}, lowest {np.min(dice):.3f} of {len(dice)}")


def indices(folder: Path) -> None:
    """Score the slides of a folder, with their H&E and without, and print how far each index is from what was drawn."""
    names = sorted(path.parent.name for path in folder.glob("*/ki67.tif") if path.parent.name != NO_TUMOR)
    rows = ["slide\tki67\the", *(f"{name}\t{name}/ki67.tif\t{name}/he.tif" for name in names)]
    rows += [f"{name}{ALONE}\t{name}/ki67.tif\t" for name in names]
    (folder / "slides.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    subprocess.run([*command, "--cores", "2", "--quiet", "rules", "--config", "slides=slides.tsv"], check=True)
    off: dict[str, list[float]] = {"": [], ALONE: []}
    for name in names:
        truth = read_json(folder / name / "truth" / "truth.json")["index"]
        for suffix, differences in off.items():
            record = read_json(folder / "results" / f"{name}{suffix}" / "ki67.json")
            found = record["index"]
            differences.append(1.0 if found is None else found - truth)
            said = "none" if found is None else f"{found:.3f}"
            print(f"{name}{suffix}: index {said}, drawn {truth:.3f}; {' '.join(record['flags'])}")
    for suffix, differences in off.items():
        what, errors = "Ki-67 alone" if suffix else "pairs", np.abs(differences)
        print(f"{what}: off by {errors.mean():.3f} in the mean, {errors.max():.3f} at most, of {len(errors)}")


def main() -> None:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("draw", "measure", "index", "none"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--slides", type=int, default=10)
    parser.add_argument("--stain", choices=("he", "ki67"), default="he")
    parser.add_argument("--method", choices=MODELS, default="unet_densenet121", help="whose networks: those that ship")
    parser.add_argument("--he", type=Path)
    parser.add_argument("--ki67", type=Path)
    parser.add_argument("--coarse", type=Path)
    parser.add_argument("--nuclei", type=Path, default=SHIPPED / "nuclei")
    parser.add_argument("--alone", action="store_true", help="without the coarse and the nucleus network")
    chosen = parser.parse_args()
    shipped = MODELS[chosen.method]
    coarse = chosen.coarse or (SHIPPED / shipped.he_coarse if shipped.he_coarse else None)
    beside: dict[Stain, Path | None] = {"he": coarse, "ki67": chosen.nuclei}
    if chosen.alone:
        beside = {"he": None, "ki67": None}
    models: dict[Stain, Path] = {"he": chosen.he or SHIPPED / shipped.he, "ki67": chosen.ki67 or SHIPPED / shipped.ki67}
    if chosen.action == "draw":
        draw(chosen.paths[0], chosen.slides)
    elif chosen.action == "measure":
        measure(chosen.paths[0], models, beside)
    elif chosen.action == "index":
        indices(chosen.paths[0])
    else:
        for path in chosen.paths:
            tumor, checked = found_on(path, chosen.stain, models[chosen.stain], beside[chosen.stain])
            tissue = tissue_beside(tumor, checked)
            share = np.mean(tumor.mask.pixels[tissue])
            print(f"{path.name}: {share:.2%} of {np.sum(tissue) * 4e-6:.2f} mm² of tissue taken for tumour")
            words = {"title": path.stem, "lines": [f"{share:.2%} of the tissue is taken for tumour"]}
            picture = tumor_picture(
                checked.thumbnail, checked.tissue, tumor.mask, probability=tumor.probability, **words
            )
            write_image_png(path.with_suffix(".tumor.png").name, picture)


if __name__ == "__main__":
    main()
