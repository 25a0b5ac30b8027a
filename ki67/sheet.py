"""The sample sheet and the settings: read from text and plain values, checked, and explained in one sentence each.

Nothing here opens a file: the caller passes the bytes of the sheet and the loaded schemas. Only the standard library
is imported when the module is, as every job of the workflow reads the sheet; jsonschema comes in where a check runs.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ki67.errors import STAIN_NAMES, ConfigError, Stain

STAINS: tuple[Stain, Stain] = ("he", "ki67")
RESERVED_IDS = frozenset({"all", "cohort", "logs", "patients", "report"})
COMMENT = "#"
_TEXT_HINT = "; within the braces of --config numbers are text, so write it into a file and name that with --configfile"
_QUOTED = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|true|false|null", re.IGNORECASE)


@dataclass(frozen=True)
class SlideRow:
    """One row of the sample sheet.

    Attributes
    ----------
    slide
        Id of the slide, the wildcard of the workflow.
    row
        Line of the sheet, as a spreadsheet numbers it (the header is row 1).
    patient
        Id of the patient; the slide's own id where the column is empty.
    files, regions
        Paths of the slide files and of the GeoJSON regions by stain, as written in the sheet; without empty cells.
    mpp
        Microns per pixel by stain, where the sheet gives them.
    references
        Reference indices (fractions) by column name, ``reference_index`` and ``reference_index_<reader>``.
    """

    slide: str
    row: int
    patient: str
    files: dict[Stain, str] = field(default_factory=dict)
    regions: dict[Stain, str] = field(default_factory=dict)
    mpp: dict[Stain, float] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)


def decode_sheet(content: bytes, *, name: str) -> str:
    """Text of a sheet saved as UTF-8 (with or without byte order mark) or as "Unicode text" by a spreadsheet program.

    Raises
    ------
    ConfigError
        If the bytes are a workbook or no such text.
    """
    if content.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{name} is an Excel workbook; save it as text with tabs between the columns (TSV)")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name} row {line} holds a byte that is not UTF-8; save the sheet as UTF-8 text") from error


def read_rows(text: str, schema: Mapping[str, Any], *, name: str, check: bool = True) -> list[SlideRow]:
    """The rows of a tab-separated sample sheet, in its order; lines that begin with ``#`` are skipped.

    Parameters
    ----------
    text
        Content of the sheet.
    schema
        JSON schema of one row, see ``workflow/schemas/slides.schema.yaml``.
    name
        What to call the sheet in an error.
    check
        Whether to compare every row with the schema. The jobs of a run leave it out: the run has checked the sheet,
        and thousands of jobs would each check thousands of rows.

    Raises
    ------
    ConfigError
        If a column, a cell or an id is wrong; the sentence names row, column and remedy.
    """
    lines = _cells(text)
    _, header = next(lines, (1, []))
    while header and not header[-1]:  # spreadsheet programs leave tabs behind columns that were deleted
        header.pop()
    _check_header(header, schema, name=name)
    records = [_record(cells, header, row, schema, name=name) for row, cells in lines]
    if check:
        for row, record in records:
            _check_record(record, row, schema, name=name)
    rows = [_slide_row(record, row) for row, record in records]
    if check:
        _check_unique(rows, name=name)
    return rows


def add_scores(
    sheet: str, scores: str, schema: Mapping[str, Any], *, name: str = "slides.tsv", scores_name: str = "scores.csv"
) -> str:
    """A sample sheet with the scores that readers saved from the report, in the columns named like theirs.

    Parameters
    ----------
    sheet
        Content of the sample sheet; its lines stay as they are where no score is added, comments included.
    scores
        Content of the saved file: ``slide``, then ``reference_index`` and ``reference_index_<reader>``, separated by
        commas, semicolons or tabs.
    schema
        JSON schema of one row of the sheet.
    name, scores_name
        What to call both in an error.

    Raises
    ------
    ConfigError
        If either is no such table, or a score is of no slide of the sheet, no fraction, or differs from a cell.
    """
    found = _read_scores(scores, schema, name=scores_name)
    rows = read_rows(sheet, schema, name=name)
    unknown = next((slide for slide in found if slide not in {row.slide for row in rows}), None)
    if unknown is not None:
        raise ConfigError(f"{scores_name} has a score of {unknown!r}, which is no slide of {name}; remove its row")
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    lines: list[str] = []
    header: list[str] = []
    for line in sheet.splitlines():
        cells = next(csv.reader([line], delimiter="\t"), [])
        if not any(cell.strip() for cell in cells) or cells[0].strip().startswith(COMMENT):
            lines.append(line)
        elif not header:
            header = [cell.strip() for cell in cells]
            while not header[-1]:
                header.pop()
            header += [column for column in columns if column not in header]
            lines.append("\t".join(header))
        else:
            lines.append(_with_scores(cells, header, found, name=name, scores_name=scores_name))
    return "\n".join(lines) + "\n"


def _with_scores(
    cells: list[str], header: list[str], scores: Mapping[str, Mapping[str, float]], *, name: str, scores_name: str
) -> str:
    """A line of the sheet with the scores of its slide."""
    cells = [*cells, *[""] * (len(header) - len(cells))][: len(header)]
    slide = cells[header.index("slide")].strip()
    for column, score in scores.get(slide, {}).items():
        place = header.index(column)
        if cells[place].strip() and float(cells[place]) != score:
            raise ConfigError(
                f"{name} ({slide}): {column} is {cells[place].strip()}, but {scores_name} says {score:g}; "
                "empty the cell to take the saved score"
            )
        cells[place] = f"{score:.6g}"
    line = io.StringIO()
    csv.writer(line, delimiter="\t", lineterminator="").writerow(cells)
    return line.getvalue()


def _read_scores(text: str, schema: Mapping[str, Any], *, name: str) -> dict[str, dict[str, float]]:
    """Scores by slide and column."""
    first = text.lstrip("\ufeff").splitlines()[:1]
    separator = max("\t;,", key=(first or [""])[0].count)
    reader = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=separator)
    header = [cell.strip() for cell in next(reader, [])]
    for column in header[1:] or [""]:
        if header[:1] != ["slide"] or not column.startswith("reference_index") or not _property_schema(column, schema):
            raise ConfigError(f"{name} is no file of scores; its first line must be slide,reference_index or the like")
    found: dict[str, dict[str, float]] = {}
    for cells in reader:
        slide = cells[0].strip() if cells else ""
        if slide:
            pairs = {column: cell.strip() for column, cell in zip(header[1:], cells[1:], strict=False) if cell.strip()}
            found[slide] = {
                column: _fraction(cell, column, _where(slide, reader.line_num, name=name))
                for column, cell in pairs.items()
            }
    return found


def _fraction(cell: str, column: str, where: str) -> float:
    value = _number(cell, column, where)
    if not 0 <= value <= 1:
        raise ConfigError(f"{where}: {column} is {value:g}; {_fraction_remedy(value)}")
    return value


def _fraction_remedy(value: float) -> str:
    return f"write {value / 100:g}" if 1 < value <= 100 else "write a fraction from 0 to 1"


def check_settings(settings: Mapping[str, Any], schema: Mapping[str, Any], *, name: str = "config.yaml") -> None:
    """Compare the settings with their schema.

    Raises
    ------
    ConfigError
        At the first wrong key or value, with a sentence that says what to write.
    """
    for sentence in _sentences(settings, schema, name=name):
        raise ConfigError(sentence)


def with_defaults(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every key they lack taken from the defaults, section by section.

    >>> with_defaults({"tumor": {"batch_size": 4}}, {"keep": "masks", "tumor": {"batch_size": 16, "threshold": 0.5}})
    {'keep': 'masks', 'tumor': {'batch_size': 4, 'threshold': 0.5}}
    """
    merged = dict(defaults) | dict(settings)
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = with_defaults(merged[key], default)
    return merged


def missing_file_sentence(row: SlideRow, column: str, path: str, *, name: str) -> str:
    """What a person reads when a file of the sheet is absent and ``on_missing`` is ``stop``."""
    return (
        f"{name} row {row.row} ({row.slide}): {column} names {path}, which is not a file; correct the path, "
        "or set on_missing: row to list the slide as flagged"
    )


def _cells(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and stripped cells of every line that is neither empty nor a comment."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped) and not stripped[0].startswith(COMMENT):
            yield reader.line_num, stripped


def _check_header(header: list[str], schema: Mapping[str, Any], *, name: str) -> None:
    if len(header) <= 1:
        for separator, word in ((",", "commas"), (";", "semicolons")):
            if header and separator in header[0]:
                raise ConfigError(f"{name} has {word} between its columns; save it with tabs instead (TSV)")
    if "slide" not in header:
        raise ConfigError(f"{name} has no column slide in its first line; write one, columns are separated by tabs")
    for column in header:
        if not column:
            raise ConfigError(f"{name} has a column without a name; name it or remove it")
        if header.count(column) > 1:
            raise ConfigError(f"{name} has the column {column} twice; remove one")
    unknown = {column: "" for column in header if not _property_schema(column, schema)}
    for column in unknown:
        raise ConfigError(f"unknown column '{column}' in {name}; {_suggestion(column, schema['properties'])}")


def _record(
    cells: list[str], header: list[str], row: int, schema: Mapping[str, Any], *, name: str
) -> tuple[int, dict[str, Any]]:
    """Cells by column, numbers as numbers, without the empty ones."""
    if any(cells[len(header) :]):
        raise ConfigError(
            f"{name} row {row} has {len(cells)} cells under {len(header)} columns; remove the tabs that are too many"
        )
    pairs = {column: cell for column, cell in zip(header, cells, strict=False) if cell}
    where = _where(pairs.get("slide", ""), row, name=name)
    return row, {
        column: _number(cell, column, where) if _property_schema(column, schema).get("type") == "number" else cell
        for column, cell in pairs.items()
    }


def _number(cell: str, column: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    with_point = cell.replace(",", ".", 1).removesuffix("%").strip()
    remedy = f"write {with_point}" if _is_number(with_point) and "%" not in cell else "write a number such as 0.15"
    raise ConfigError(f"{where}: {column} is '{cell}'; {remedy}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_record(record: dict[str, Any], row: int, schema: Mapping[str, Any], *, name: str) -> None:
    slide = record.get("slide", "")
    where = _where(slide, row, name=name)
    if not slide:
        raise ConfigError(f"{where}: the column slide is empty; give the slide an id")
    if slide.lower() in RESERVED_IDS:
        raise ConfigError(f"{where}: the id '{slide}' is taken by the workflow itself; choose another")
    for column, value in record.items():
        if column.startswith("reference_index") and not 0 <= value <= 1:
            raise ConfigError(f"{where}: {column} is {value:g}; {_fraction_remedy(value)}")
    for sentence in _sentences(record, schema, name=where):
        raise ConfigError(sentence)
    for column in (*STAINS, *(f"roi_{stain}" for stain in STAINS)):
        if re.search("[{}]", record.get(column, "")):  # in every path, Snakemake takes them for wildcards
            raise ConfigError(f"{where}: {column} is '{record[column]}'; rename the file, as paths cannot hold braces")
    if not any(stain in record for stain in STAINS):
        names = " and ".join(f"{stain} ({STAIN_NAMES[stain]})" for stain in STAINS)
        raise ConfigError(f"{where}: {names} are both empty; write the path of at least one slide file")


def _slide_row(record: dict[str, Any], row: int) -> SlideRow:
    return SlideRow(
        slide=record["slide"],
        row=row,
        patient=record.get("patient", record["slide"]),
        files={stain: record[stain] for stain in STAINS if stain in record},
        regions={stain: record[f"roi_{stain}"] for stain in STAINS if f"roi_{stain}" in record},
        mpp={stain: record[f"mpp_{stain}"] for stain in STAINS if f"mpp_{stain}" in record},
        references={column: value for column, value in record.items() if column.startswith("reference_index")},
    )


def _check_unique(rows: list[SlideRow], *, name: str) -> None:
    """Ids must differ in more than case: some file systems keep ``s1`` and ``S1`` in one folder."""
    first: dict[str, SlideRow] = {}
    for row in rows:
        known = first.setdefault(row.slide.lower(), row)
        if known is row:
            continue
        if known.slide == row.slide:
            problem = f"the id is already used in row {known.row}"
        else:
            problem = f"the id differs from '{known.slide}' in row {known.row} only by case"
        raise ConfigError(f"{_where(row.slide, row.row, name=name)}: {problem}; give every slide an id of its own")


def _where(slide: str, row: int, *, name: str) -> str:
    return f"{name} row {row} ({slide})" if slide else f"{name} row {row}"


def _property_schema(column: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Schema of one column or key, empty if there is none."""
    properties = schema.get("properties", {})
    if column in properties:
        return properties[column]
    patterns = schema.get("patternProperties", {})
    return next((patterns[pattern] for pattern in patterns if re.search(pattern, column)), {})


def _sentences(record: Mapping[str, Any], schema: Mapping[str, Any], *, name: str) -> Iterator[str]:
    """A sentence for each thing in the record that the schema does not allow, unknown keys first."""
    from jsonschema import Draft202012Validator  # slow to import, and of use where something is checked only

    errors = list(Draft202012Validator(schema).iter_errors(record))
    for error in sorted(errors, key=lambda one: (one.validator != "additionalProperties", [str(p) for p in one.path])):
        yield _sentence(error, name=name)


def _sentence(error: Any, *, name: str) -> str:
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        unknown = next(one for one in error.instance if not _property_schema(one, error.schema))
        section = f" in section {key}" if key else ""
        return f"unknown key '{unknown}'{section} of {name}; {_suggestion(unknown, error.schema['properties'])}"
    if error.validator == "required":
        missing = next(one for one in error.validator_value if one not in error.instance)
        return f"{name}: {key + '.' if key else ''}{missing} is missing; write {_expected(_property(error, missing))}"
    hint = _TEXT_HINT if "." in key and _is_quoted(error.instance) else ""
    return f"{name}: {key or 'the whole'} is {error.instance!r}; write {_expected(error.schema)}{hint}"


def _is_quoted(value: Any) -> bool:
    """Whether a value is a text that would be a number, true, false or null without its quotation marks."""
    return isinstance(value, str) and bool(_QUOTED.fullmatch(value))


def _property(error: Any, key: str) -> Mapping[str, Any]:
    return error.schema.get("properties", {}).get(key, {})


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"


def _expected(schema: Mapping[str, Any]) -> str:
    """What a schema asks for, in words: its own ``x-write``, or derived from its type and limits."""
    if "x-write" in schema:
        return str(schema["x-write"])
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    types = schema.get("type", "a value")
    names = {
        "number": "a number",
        "integer": "a whole number",
        "string": "a text",
        "boolean": "true or false",
        "array": "a list",
        "object": "a section of keys",
        "null": "nothing",
    }
    words = " or ".join(names.get(one, one) for one in ([types] if isinstance(types, str) else types))
    lower, upper = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if lower is not None and upper is not None:
        return f"{words} from {lower:g} to {upper:g}"
    if lower is not None:
        return f"{words} of at least {lower:g}" if "minimum" in schema else f"{words} above {lower:g}"
    return f"{words} of at most {upper:g}" if upper is not None else words
