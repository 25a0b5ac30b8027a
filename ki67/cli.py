"""The command line: ``python -m ki67 COMMAND``. Commands import what they need when they run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ki67.errors import Ki67Error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class FieldKindName(StrEnum):
    """Kinds of training fields."""

    NUCLEI = "nuclei"
    TUMOR_HE = "tumor_he"
    TUMOR_KI67 = "tumor_ki67"


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
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all processors if not given.")] = None,
) -> None:
    """Draw training fields into a new dataset folder."""
    from ki67.training.drawn import FieldOptions
    from ki67.training.drawn import draw_fields as draw

    options = FieldOptions(kind=kind.value, count=count, size_px=size_px, mpp=mpp, seed=seed)
    draw(options, out, nuclei_from=nuclei_from, workers=workers)


def main() -> None:
    """Run a command; mistakes of the user are one sentence on standard error."""
    try:
        app()
    except Ki67Error as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
