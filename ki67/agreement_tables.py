"""Agreement over a cohort: which raters there are, every pair of them and all together, as a record and as a table.

Agreement is of slides, not of patients: several slides of a patient count as often as there are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki67.agreement import CONFIDENCE, Estimate, confusion_matrix, group_agreement, pair_agreement
from ki67.cohort import REFERENCE
from ki67.errors import ConfigError
from ki67.index import CUTOFFS, category_names

if TYPE_CHECKING:
    import pandas

INDEX = "index"
COLUMNS = ("comparison", "first", "second", "measure", "value", "low", "high", "n", "reason")
SEPARATORS = "\t;,"


def reader_columns(columns: Iterable[str]) -> list[str]:
    """Columns that hold readers' indices, ``reference_index`` first and the others by name.

    >>> reader_columns(["slide", "reference_index_bo", "index", "reference_index"])
    ['reference_index', 'reference_index_bo']
    """
    return sorted(name for name in columns if name == REFERENCE or name.startswith(f"{REFERENCE}_"))


def cohort_agreement(
    slides: pandas.DataFrame, cutoffs: Sequence[float] = CUTOFFS, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Agreement of the computed index with every reader, of the readers with each other, and of all together.

    Parameters
    ----------
    slides
        Table with the columns ``index`` and ``reference_index``, ``reference_index_<reader>``: fractions, NaN where
        there is none. Slides without an index are left out of every comparison, also of that among readers.
    cutoffs
        Fractions between the categories, ascending.
    names
        Of the categories; None names them by percent.

    Returns
    -------
    dict
        The record that ``agreement.json`` holds (docs/outputs.md). Columns without any value are no reader.
    """
    scored = slides[slides[INDEX].notna()]
    readers = [name for name in reader_columns(slides.columns) if slides[name].notna().any()]
    raters = [INDEX, *readers] if readers else []
    ratings = {name: scored[name].to_numpy(dtype="float64") for name in raters}
    categories = list(names or category_names(cutoffs))
    groups = {"readers": readers, "all": raters}
    return {
        "confidence": CONFIDENCE,
        "cutoffs": list(cutoffs),
        "categories": categories,
        "slides": len(slides),
        "without_index": len(slides) - len(scored),
        "raters": [{"name": name, "slides": int(scored[name].notna().sum())} for name in raters],
        "pairs": [
            {
                "first": first,
                "second": second,
                "n": int(table.sum()),
                "left_out": len(scored) - int(table.sum()),
                "measures": pair_agreement(ratings[first], ratings[second], cutoffs),
                "confusion": table.tolist(),
            }
            for first, second in combinations(raters, 2)
            for table in [confusion_matrix(ratings[first], ratings[second], cutoffs)]
        ],
        "groups": {
            group: {"raters": members, "measures": group_agreement(scored[members].to_numpy(dtype="float64"))}
            for group, members in groups.items()
            if len(members) >= 2
        },
    }


def agreement_table(record: dict[str, Any]) -> pandas.DataFrame:
    """A row for each measure of each pair of raters, then of the readers together and of all raters together.

    Parameters
    ----------
    record
        Of ``cohort_agreement``.

    Returns
    -------
    pandas.DataFrame
        The columns of ``agreement.csv`` (docs/outputs.md); no row where there are no readers.
    """
    import pandas as pd

    rows = [row for pair in record["pairs"] for row in _rows("pair", pair["first"], pair["second"], pair["measures"])]
    for group, found in record["groups"].items():
        rows.extend(_rows(group, "", "", found["measures"]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("value", "low", "high"), "float64") | {"n": "int64"})


def _rows(comparison: str, first: str, second: str, measures: dict[str, Estimate]) -> list[dict[str, Any]]:
    where = {"comparison": comparison, "first": first, "second": second}
    return [where | {"measure": name} | vars(estimate) for name, estimate in measures.items()]


def read_indices(path: str | Path) -> pandas.DataFrame:
    """The computed and the readers' indices of any CSV with a column ``index`` and columns ``reference_index*``.

    Parameters
    ----------
    path
        Text with tabs, semicolons or commas between the columns, UTF-8.

    Returns
    -------
    pandas.DataFrame
        ``index`` and the readers' columns as float64, NaN where a cell is empty.

    Raises
    ------
    ConfigError
        If the file is no such table, or a cell is no fraction from 0 to 1.
    """
    import pandas as pd

    name = Path(path).name
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name} cannot be read ({error.strerror}); give the path of a CSV file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text; save it as CSV in UTF-8") from error
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    try:
        cells = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ConfigError(f"{name} is no table ({str(error).strip()}); save it as CSV again") from error
    header = [cell.strip() for cell in cells.iloc[0]]
    wanted = [INDEX, *dict.fromkeys(reader_columns(header))]
    for column in wanted:
        if header.count(column) != 1:
            raise ConfigError(f"{name} has {header.count(column) or 'no'} columns {column}; it needs one")
    if len(wanted) == 1:
        raise ConfigError(f"{name} has no column {REFERENCE} or {REFERENCE}_<reader>; add one for each reader")
    columns = {column: cells.iloc[1:, header.index(column)] for column in wanted}
    return pd.DataFrame(
        {
            column: [_fraction(cell.strip(), f"{name} row {row}: {column}") for row, cell in enumerate(texts, 2)]
            for column, texts in columns.items()
        },
        dtype="float64",
    )


def _fraction(cell: str, where: str) -> float:
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if 0 <= value <= 1:
        return value
    remedy = f"write {value / 100:g}" if 1 < value <= 100 else "write a fraction from 0 to 1 such as 0.15, or nothing"
    raise ConfigError(f"{where} is '{cell}'; {remedy}")
