"""The command line: ``python -m ki67 COMMAND``. Commands import what they need when they run."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ki67.errors import Ki67Error

if TYPE_CHECKING:
    from ki67.detection import Detector
    from ki67.predictors import Precision
    from ki67.stardist_nuclei import StarDetector

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
evaluate = typer.Typer(no_args_is_help=True, help="Accuracy on images of which the answer is known.")
app.add_typer(evaluate, name="evaluate")
benchmark = typer.Typer(no_args_is_help=True, help="Speed and memory, beside what cannot be avoided.")
app.add_typer(benchmark, name="benchmark")


class FieldKindName(StrEnum):
    """Kinds of training fields."""

    NUCLEI = "nuclei"
    TUMOR_HE = "tumor_he"
    TUMOR_KI67 = "tumor_ki67"


class AnnotationForm(StrEnum):
    """Forms in which annotated nuclei are found."""

    SHIDC = "shidc"
    BCDATA = "bcdata"
    QUPATH = "qupath"


class PrecisionName(StrEnum):
    """In which numbers a network computes."""

    AUTO = "auto"
    INT8 = "int8"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class RefineName(StrEnum):
    """What follows the rigid transform of a registration."""

    NONE = "none"
    AFFINE = "affine"
    BSPLINE = "bspline"


@app.callback()
def describe() -> None:
    """Ki-67 index of whole slides: drawing, measuring and timing beside the workflow."""


@app.command("draw-fields")
def draw_fields(
    out: Annotated[Path, typer.Option(help="New dataset folder.")],
    kind: Annotated[FieldKindName, typer.Option(help="What the fields teach.")],
    count: Annotated[int, typer.Option(min=1, help="Number of fields.")],
    size_px: Annotated[int, typer.Option(min=64, help="Side of a field in pixels.")] = 512,
    mpp: Annotated[float, typer.Option(min=0.1, max=2.0, help="Microns per pixel.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    nuclei_from: Annotated[Path | None, typer.Option(help="Dataset of instances whose nuclei are re-stained.")] = None,
    tissue_from: Annotated[list[Path] | None, typer.Option(help="H&E dataset whose tissue is re-stained.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Network that finds the nuclei of tissue_from.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all processors if not given.")] = None,
) -> None:
    """Draw training fields into a new dataset folder."""
    from ki67.training.drawn import FieldOptions, Sources
    from ki67.training.drawn import draw_fields as draw

    options = FieldOptions(kind=kind.value, count=count, size_px=size_px, mpp=mpp, seed=seed)
    draw(options, out, sources=Sources(nuclei_from, tuple(tissue_from or ()), teacher), workers=workers)


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder for he.tif, ki67.tif and truth/.")],
    area_mm2: Annotated[float, typer.Option(help="Area of the tissue, 1 to 1000 mm².")],
    tumor_share: Annotated[float, typer.Option(help="Share of the tissue that is tumour.")] = 0.4,
    ki67_fraction: Annotated[float, typer.Option(help="Share of tumour nuclei that are positive.")] = 0.2,
    rotation_deg: Annotated[float | None, typer.Option(help="Rotation from H&E to Ki-67; drawn if not given.")] = None,
    shift_um: Annotated[
        tuple[float, float] | None, typer.Option(help="How far the Ki-67 tissue is off centre.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="The Ki-67 section is a mirror image.")] = False,
    control_tissue: Annotated[bool, typer.Option("--control-tissue", help="Control tissue beside Ki-67.")] = False,
    pen_mark: Annotated[bool, typer.Option("--pen-mark", help="Ink on both slides.")] = False,
    fold: Annotated[bool, typer.Option("--fold", help="A fold in both sections.")] = False,
    blur: Annotated[bool, typer.Option("--blur", help="A defocused patch in the Ki-67 slide.")] = False,
    missing_part: Annotated[bool, typer.Option("--missing-part", help="A missing part of the Ki-67 section.")] = False,
    stain_strength: Annotated[float | None, typer.Option(help="1 as usual; drawn if not given.")] = None,
    proliferation: Annotated[
        float | None, typer.Option(help="How much the H&E looks like it, 0 as the average tumour, 1 a deviation more.")
    ] = None,
    laboratory: Annotated[
        int | None, typer.Option(min=0, help="Number of who stains and scans; drawn if not given.")
    ] = None,
    mpp: Annotated[float, typer.Option(help="Microns per pixel.")] = 0.5,
    stains: Annotated[str, typer.Option(help="Slides to write: he, ki67 or he,ki67.")] = "he,ki67",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all processors if not given.")] = None,
) -> None:
    """Draw a pair of slides of consecutive sections, with everything known about them."""
    from typing import cast

    from ki67.errors import Stain
    from ki67.phantom import PhantomOptions, draw_slides

    options = PhantomOptions(
        area_mm2=area_mm2,
        tumor_share=tumor_share,
        ki67_fraction=ki67_fraction,
        rotation_deg=rotation_deg,
        shift_um=shift_um,
        flip=flip,
        control_tissue=control_tissue,
        pen_mark=pen_mark,
        fold=fold,
        blur=blur,
        missing_part=missing_part,
        stain_strength=stain_strength,
        proliferation=proliferation,
        laboratory=laboratory,
        mpp=mpp,
        stains=cast(tuple[Stain, ...], tuple(stains.split(","))),
        seed=seed,
    )
    draw_slides(options, out, workers=workers)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained network.")],
    datasets: Annotated[list[Path], typer.Argument(help="Folders of images such as it was trained on.")],
) -> None:
    """Let a network compute in 8-bit integers: write the ranges of its activations into its folder."""
    from ki67.training.calibration import calibrate_folder

    calibrate_folder(model, datasets)


@app.command()
def agreement(
    table: Annotated[Path, typer.Argument(help="CSV with a column index and reference_index columns, as cohort.csv.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for all measures.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file with a row for each pair and measure.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file with every reader beside the index.")] = None,
    preset: Annotated[str, typer.Option(help="Cut-offs as index.preset of the config.")] = "breast",
    cutoffs: Annotated[
        tuple[float, float] | None, typer.Option(help="Two fractions of your own instead of the preset's.")
    ] = None,
) -> None:
    """How far the index agrees with readers, and readers with each other, in any table of slides."""
    from ki67.agreement_figures import agreement_picture
    from ki67.agreement_tables import agreement_table, cohort_agreement, read_indices
    from ki67.index import index_categories
    from ki67.storage import write_csv, write_image_png, write_json

    slides = read_indices(table)
    record = cohort_agreement(slides, *index_categories(preset, cutoffs))
    rows = agreement_table(record)
    typer.echo(rows.drop(columns="reason").to_csv(sep="\t", index=False, float_format="%.3f"), nl=False)
    if out:
        write_json(out, record)
    if csv:
        write_csv(csv, rows)
    if picture:
        write_image_png(picture, agreement_picture(slides, record))


@app.command("add-scores")
def add_scores(
    sheet: Annotated[Path, typer.Argument(help="The sample sheet, such as config/slides.tsv.")],
    scores: Annotated[Path, typer.Argument(help="scores.csv as the report saves it in blind mode.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the sheet; left out, it is changed in place.")
    ] = None,
) -> None:
    """Put scores that readers saved from the report into the reference columns of the sample sheet."""
    import yaml

    from ki67 import sheet as sheets
    from ki67.storage import write_text

    schema_path = Path(__file__).parents[1] / "workflow" / "schemas" / "slides.schema.yaml"
    schema = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    rows, saved = (sheets.decode_sheet(path.read_bytes(), name=path.name) for path in (sheet, scores))
    write_text(out or sheet, sheets.add_scores(rows, saved, schema, name=sheet.name, scores_name=scores.name))


@app.command("import-annotations")
def import_annotations(
    form: Annotated[AnnotationForm, typer.Argument(help="How they are stored: see docs/training.md.")],
    source: Annotated[Path, typer.Argument(help="Folder with the images and their annotations.")],
    out: Annotated[Path, typer.Argument(help="New dataset folder.")],
    mpp: Annotated[float, typer.Option(min=0.05, max=2.0, help="Microns per pixel of the images.")],
    licence: Annotated[str, typer.Option(help="Licence of the images and annotations.")] = "",
    use: Annotated[str, typer.Option(help="What they may be used for, such as: training allowed.")] = "",
    part: Annotated[list[str] | None, typer.Option(help="Only images in subfolders of this name.")] = None,
) -> None:
    """Make a dataset folder of nuclei annotated in QuPath, or published as SHIDC-B-Ki-67 or BCData."""
    from ki67.training.annotation_import import import_annotations as write
    from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

    written = write(form.value, source, out, mpp=mpp, licence=licence, use=use, parts=part or ())
    positive, negative, other = (written.nuclei[kind] for kind in (POSITIVE, NEGATIVE, OTHER))
    typer.echo(
        f"{out}: {written.images} images of {written.groups} groups (kind {written.kind}), {positive} positive, "
        f"{negative} negative and {other} other nuclei"
    )


@app.command("import-pairs")
def import_pairs(
    folder: Annotated[Path, typer.Argument(help="Folder of H&E and Ki-67 slides, such as 01_HE.tif and 01_Ki67.tif.")],
    out: Annotated[Path, typer.Option(help="New sample sheet.")],
    marker: Annotated[str, typer.Option(help="What the other slides are stained for.")] = "Ki-67",
    mpp_he: Annotated[float | None, typer.Option(min=0.05, max=2.0, help="Where the files do not say.")] = None,
    mpp_ki67: Annotated[float | None, typer.Option(min=0.05, max=2.0, help="Where the files do not say.")] = None,
) -> None:
    """Make a sample sheet of pairs of slides that others published, by the names of their files."""
    from ki67.prediction.pair_sheet import find_pairs, pairs_sentences, write_pair_sheet

    found = find_pairs(folder, marker=marker)
    write_pair_sheet(out, found, mpp_he=mpp_he, mpp_ki67=mpp_ki67)
    for sentence in pairs_sentences(found, folder):
        typer.echo(sentence)


@app.command("fine-tune")
def fine_tune(
    datasets: Annotated[list[Path], typer.Argument(help="Folders of annotated images.")],
    out: Annotated[Path, typer.Option(help="Folder for the network.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="How long it takes, about.")] = 10.0,
    steps: Annotated[int | None, typer.Option(min=1, help="This many steps instead of minutes.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a network; resources/models/nuclei of this project if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    allow_unlicensed: Annotated[
        bool, typer.Option("--allow-unlicensed", help="Even if their use does not allow training; share no weights.")
    ] = False,
) -> None:
    """Let a trained network go on learning from annotated fields of your own; goes on where it was stopped."""
    from ki67.training.fine_tuning import SHIPPED_NUCLEI
    from ki67.training.fine_tuning import fine_tune as train

    fitted = train(
        datasets,
        out,
        start_from=start_from or SHIPPED_NUCLEI,
        minutes=minutes,
        steps=steps,
        seed=seed,
        allow_unlicensed=allow_unlicensed,
    )
    for name, value in fitted.scores.items():
        typer.echo(f"{name}\t{value:.3f}")
    typer.echo(f"{fitted.steps} steps in {fitted.seconds:.0f} s; to use it, set models.{fitted.spec.name}: {out}/")


@evaluate.command("stain")
def evaluate_stain(
    sources: Annotated[
        list[str],
        typer.Argument(help="Dataset folders whose dataset.yaml says stain: he or ki67; or he=PATH, ki67=PATH."),
    ],
    out: Annotated[Path | None, typer.Option(help="JSON file for the result of every image.")] = None,
) -> None:
    """How often the check names the right stain."""
    from ki67.stain_evaluation import evaluate_stain as measure
    from ki67.stain_evaluation import stained_images
    from ki67.storage import write_json

    result = measure([stained_images(source) for source in sources])
    columns = ("images", "right", "wrong", "unknown", "share_right", "least_confidence")
    typer.echo("\t".join(("folder", "expected", *columns)))
    for row in [*result["folders"], {"folder": "all", "expected": "", **result["pooled"]}]:
        typer.echo("\t".join(str(row[name]) for name in ("folder", "expected", *columns)))
    if out:
        write_json(out, result)


@evaluate.command("nuclei")
def evaluate_nuclei(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders of kind nuclei or instances.")],
    model: Annotated[Path | None, typer.Option(help="Folder of a model; the shipped one if absent.")] = None,
    method: Annotated[str, typer.Option(help="As nuclei.method in the config.")] = "unet_resnet34",
    out: Annotated[Path | None, typer.Option(help="JSON file for all results; of several datasets a list.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for the best, median and worst field.")] = None,
    changes: Annotated[bool, typer.Option("--changes", help="Other stain, focus, scale and compression too.")] = False,
    review: Annotated[bool, typer.Option(help="Look at all nuclei of a field together, as of a slide.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="In which numbers.")] = PrecisionName.AUTO,
) -> None:
    """How well nuclei are found and told apart on annotated fields, and how far the index is off."""
    from ki67.accuracy_report import accuracy_table, measured
    from ki67.storage import write_image_png, write_json

    detector = _nucleus_detector(method, model, device=device, precision=precision.value)
    detector = detector if review else replace(detector, review=None)
    records = []
    for folder in datasets:
        record, drawn = measured(folder, detector, method, changes=changes)
        for name, changed in record.get("changes", {}).items():
            moves = ", ".join(f"{kind} {value:+.3f}" for kind, value in changed["f1_moves"].items())
            typer.echo(f"{record['dataset']}\t{name}\t{moves}\trmse {changed['rmse']:.3f}")
        for name, picture in drawn.items() if pictures else ():
            write_image_png((pictures or Path()) / f"{record['dataset']}_{method}_{name}.png", picture)
        records.append(record)
    typer.echo(accuracy_table(records))
    if out:
        write_json(out, records[0] if len(records) == 1 else {"evaluations": records})


def _nucleus_detector(method: str, model: Path | None, *, device: str, precision: Precision) -> Detector | StarDetector:
    """The detector of a method; StarDist's, without a part of PyTorch being imported."""
    if method == "stardist":
        from ki67.stardist_nuclei import load_star_detector

        return load_star_detector(model, device=device, precision=precision)
    from ki67.detectors import load_detector

    return load_detector(method, model, device=device, precision=precision)


@evaluate.command("tumor")
def evaluate_tumor(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders of kind tumor, or with roi_masks.")],
    model: Annotated[Path, typer.Option(help="Folder of a tumour network, such as resources/models/tumor_he.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for all results; of several datasets a list.")] = None,
    coarse: Annotated[
        Path | None, typer.Option(help="Folder of the coarser network beside it; MODEL_coarse where there is one.")
    ] = None,
    nuclei: Annotated[
        Path | None,
        typer.Option(help="Folder of a nucleus network beside one for Ki-67; nuclei beside MODEL where there is one."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Without any network beside it.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for ROC curves and the best, median and worst image.")
    ] = None,
    images: Annotated[list[str] | None, typer.Option(help="Only images of this name or pattern, such as 10*.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="In which numbers.")] = PrecisionName.AUTO,
) -> None:
    """How well tumour is found: per pixel, per patch of 64 µm, and as the workflow's mask.

    As in the workflow, a coarser network that lies beside the network answers as well, and for Ki-67 one for nuclei.
    """
    from ki67.networks import Network, load_network
    from ki67.nuclear_evidence import NuclearEvidence
    from ki67.storage import write_image_png, write_json
    from ki67.tumor import Cascade
    from ki67.tumor_evaluation import MaskSettings
    from ki67.tumor_evaluation import evaluate_tumor as measure
    from ki67.tumor_report import roc_picture, tumor_pictures, tumor_table

    def beside(chosen: Path | None, name: str) -> Network | None:
        folder = chosen or model.resolve().with_name(name)
        there = not alone and (chosen is not None or (folder / "model.json").is_file())
        return load_network(folder, device=device, precision=precision.value) if there else None

    network = load_network(model, device=device, precision=precision.value)
    coarser = beside(coarse, f"{model.resolve().name}_coarse")
    nucleus = beside(nuclei, "nuclei") if network.spec.stain == "ki67" else None
    settings = MaskSettings(
        cascade=Cascade(coarser) if coarser else None, evidence=NuclearEvidence(nucleus) if nucleus else None
    )
    records = []
    for folder in datasets:
        evaluation = measure(folder, network, images=images or (), settings=settings)
        if pictures:
            drawn = {"roc": roc_picture(evaluation), **tumor_pictures(folder, network, evaluation, settings)}
            for name, picture in drawn.items():
                write_image_png(pictures / f"{evaluation.dataset}_{network.spec.name}_{name}.png", picture)
        records.append(evaluation.to_json())
    typer.echo(tumor_table(records))
    if out:
        write_json(out, records[0] if len(records) == 1 else {"evaluations": records})


@evaluate.command("registration")
def evaluate_registration(
    pairs: Annotated[Path, typer.Argument(help="Table of image pairs with landmarks (pairs.csv).")],
    out: Annotated[Path | None, typer.Option(help="JSON file for the result of every pair.")] = None,
    perturb: Annotated[int, typer.Option(min=0, help="Register each pair again, made harder, this often.")] = 0,
    refine: Annotated[RefineName, typer.Option(help="What follows the rigid transform.")] = RefineName.NONE,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """How far landmarks lie apart after registration, beside the best rigid and affine fit."""
    from ki67.registration_evaluation import evaluate_registration as measure
    from ki67.registration_evaluation import read_landmark_pairs
    from ki67.storage import write_json

    result = measure(read_landmark_pairs(pairs), perturbations=perturb, refine=refine.value, workers=workers)
    columns = (
        *("pair", "median_px", "best_rigid_median_px", "best_affine_median_px", "p90_px", "max_px", "median_um"),
        *("estimated_error_um", "ncc", "verdict", "seconds"),
    )
    typer.echo("\t".join(columns))
    for row in result["pairs"]:
        typer.echo(
            "\t".join(f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in columns)
        )
    for name, value in result["perturbed"].items() if perturb else ():
        typer.echo(f"{name.replace('_', ' ')}\t{value}")
    if out:
        write_json(out, result)


@evaluate.command("prediction")
def evaluate_prediction(
    folder: Annotated[Path, typer.Argument(help="What `snakemake predict_train` wrote, such as prediction/forest.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for all results.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of slides, patches, correlations.")] = None,
    preset: Annotated[str, typer.Option(help="Cut-offs as index.preset of the config.")] = "breast",
    cutoffs: Annotated[
        tuple[float, float] | None, typer.Option(help="Two fractions of your own instead of the preset's.")
    ] = None,
) -> None:
    """How well the index is predicted from H&E alone: slides and patches that the models had not seen."""
    from ki67.index import index_categories
    from ki67.prediction.folder_scores import evaluate_folder, evaluation_pictures, prediction_table
    from ki67.storage import write_image_png, write_json

    record = evaluate_folder(folder, index_categories(preset, cutoffs)[0])
    typer.echo(prediction_table(record))
    for name, picture in evaluation_pictures(folder, record).items() if pictures else ():
        write_image_png((pictures or Path()) / f"{record['method']}_{name}.png", picture)
    if out:
        write_json(out, record)


@benchmark.command("inference")
def benchmark_inference(
    slide: Annotated[Path, typer.Argument(help="A slide of the network's stain.")],
    model: Annotated[Path, typer.Option(help="Folder of a network, such as resources/models/nuclei.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for all that was measured.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel, where the file does not say.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All of the slide, not only its tissue.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="In which numbers.")] = PrecisionName.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; one a core if not given.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows that a GPU is given at once.")] = 4,
    loop_seconds: Annotated[float, typer.Option(min=0, help="How long each bare loop is timed.")] = 4.0,
) -> None:
    """Time a network's stage on a slide: tiles a second, and how near it comes to the network and decoding alone."""
    import os

    from ki67.benchmark import benchmark_inference as measure
    from ki67.inference import Running
    from ki67.storage import write_json

    threads = threads or len(os.sched_getaffinity(0))
    running = Running(batch_size=batch_size, reader_threads=threads, threads=threads)
    result = measure(
        slide,
        model,
        mpp=mpp,
        everything=everything,
        device=device,
        precision=precision.value,
        running=running,
        loop_seconds=loop_seconds,
    )
    for name, value in result.items():
        if not isinstance(value, list):
            typer.echo(f"{name}\t{value:.4g}" if isinstance(value, float) else f"{name}\t{value}")
    if out:
        write_json(out, result)


def main() -> None:
    """Run a command; mistakes of the user are one sentence on standard error."""
    try:
        app()
    except Ki67Error as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
