"""The documents say what the code does: settings, columns, files, messages, links."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from ki67.errors import Flag
from tests.conftest import ROOT, Finished

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "config" / "README.md", *sorted(DOCS.glob("*.md")))
LARGEST_PICTURE_BYTES = 200_000


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def table_rows(text: str, header: str) -> list[list[str]]:
    """Cells of every table whose header begins with ``header``."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and " | ".join(cells).startswith(header):
            inside = True
        elif not cells:
            inside = False
        elif inside and not set("".join(cells)) <= set("-:"):
            rows.append(cells)
    return rows


def quoted(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def test_every_setting_is_documented_with_its_default() -> None:
    settings = yaml.safe_load(text_of(ROOT / "config" / "config.yaml"))
    networks = settings.pop("train")
    text = text_of(ROOT / "config" / "README.md")
    documented = {quoted(key)[0]: quoted(default)[0] for key, default, _ in table_rows(text, "key | default")}
    assert {key: yaml.safe_load(default) for key, default in documented.items()} == dict(flat(settings))
    keys = [name for cell, _ in table_rows(text, "key | what it sets") for name in quoted(cell)]
    assert sorted(keys) == sorted({key for network in networks.values() for key in network})
    (drawn,) = [meaning for cell, meaning in table_rows(text, "key | what it sets") if cell == "`drawn`"]
    assert quoted(drawn) == list(networks["nuclei"]["drawn"])


def test_every_column_of_the_sheet_is_documented() -> None:
    schema = yaml.safe_load(text_of(ROOT / "workflow" / "schemas" / "slides.schema.yaml"))
    rows = table_rows(text_of(ROOT / "config" / "README.md"), "column | meaning")
    columns = [name for cell, _ in rows for name in quoted(cell)]
    assert sorted(columns) == sorted([*schema["properties"], "reference_index_<reader>"])


def columns_of(page: str, heading: str, header: str = "column") -> set[str]:
    """First cells of the tables under a heading, those of several columns apart."""
    part = text_of(DOCS / page).split(f"### `{heading}`\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    return {name for cells in table_rows(part, header) for name in quoted(cells[0])}


@pytest.mark.usefixtures("shipped_networks")
def test_every_column_of_the_tables_is_documented(scored: Finished) -> None:
    cohort = scored.workflow.folder / "results" / "cohort"
    expected = columns_of("outputs.md", "cohort.csv") - {"reference_index_<reader>"}
    assert set(pd.read_csv(cohort / "cohort.csv").columns) == expected
    assert set(pd.read_csv(cohort / "patients.csv").columns) == columns_of("outputs.md", "patients.csv")
    assert set(pd.read_csv(cohort / "agreement.csv").columns) == columns_of("outputs.md", "agreement.csv")
    nuclei = pd.read_parquet(scored.workflow.folder / "results" / "G1" / "nuclei.parquet")
    assert set(nuclei.columns) == columns_of("outputs.md", "nuclei.parquet")


@pytest.mark.usefixtures("shipped_networks")
def test_every_file_and_key_of_a_slide_is_documented(scored: Finished) -> None:
    text = text_of(DOCS / "outputs.md")
    results = scored.workflow.folder / "results"
    listed = {name for cells in table_rows(text, "file | written by") for name in quoted(cells[0])}
    assert {path.name for path in (results / "G1").iterdir()} == listed
    for path in (results / "cohort").iterdir():
        assert f"`{path.name}`" in text, path.name
    tables = columns_of("outputs.md", "cohort.csv") | columns_of("outputs.md", "ki67.json", "key")
    record = json.loads((results / "G1" / "ki67.json").read_text(encoding="utf-8"))
    assert set(record) <= tables, set(record) - tables


def test_every_flag_is_explained() -> None:
    flags = {flag.value for flag in Flag}
    for page, header in (("outputs.md", "flag | meaning"), ("troubleshooting.md", "flag | says")):
        rows = table_rows(text_of(DOCS / page), header)
        found = [name for cells in rows for name in quoted(cells[0])]
        assert sorted(found) == sorted(flags), page


LITERAL = r'f?"(?:[^"\\\n]|\\.)*"'


def strings(path: Path) -> Iterator[str]:
    """Every text in a file of Python or rules, with … for what is filled in."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield joined(node)
    else:
        yield from map(text_of_literals, re.findall(rf"{LITERAL}(?:\s+{LITERAL})*", text_of(path)))


def text_of_literals(source: str) -> str:
    """The text of literals that stand one after the other, with … for what is filled in."""
    node = ast.parse(f"({source})", mode="eval").body
    return joined(node) if isinstance(node, ast.JoinedStr) else str(ast.literal_eval(node))


def joined(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def sources() -> list[Path]:
    folders = ((ROOT / "ki67", "*.py"), (ROOT / "workflow" / "scripts", "*.py"), (ROOT / "workflow" / "rules", "*.smk"))
    return [ROOT / "Snakefile", *(path for folder, pattern in folders for path in folder.rglob(pattern))]


def messages(header: str) -> list[str]:
    """The messages that the first column of the tables of docs/troubleshooting.md quotes, with … for what is filled in."""
    rows = table_rows(text_of(DOCS / "troubleshooting.md"), header)
    return [message.replace("\\|", "|") for cells in rows for message in quoted(cells[0])]


def pieces(message: str) -> list[str]:
    """What a message says in words of its own."""
    return [piece.strip() for piece in re.split("…|; ", message) if len(piece.strip()) > 3]


def test_every_quoted_message_is_still_in_the_code() -> None:
    known = "\0".join(text for path in sources() for text in strings(path))
    found = messages("message | means")
    assert len(found) > 40
    for message in found:
        assert pieces(message), message
        for piece in pieces(message):
            assert piece in known, message


def test_every_quoted_message_of_snakemake_is_still_in_its_code() -> None:
    import snakemake

    folder = Path(snakemake.__file__).parent
    known = "\0".join(text for path in sorted(folder.rglob("*.py")) for text in strings(path))
    for message in messages("Snakemake says | means"):
        for piece in pieces(message):
            assert piece in known, message


REFUSALS = ("ConfigError", "WorkflowError", "Ki67Error")
EXPLAINED = (
    "sheet.py",
    "categories.py",
    "detectors.py",
    "tumor_methods.py",
    "networks.py",
    "random_forest.py",
    "stardist_model.py",
)


def refusals(path: Path) -> Iterator[str]:
    """Texts of the errors that a file raises."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSALS:
                (argument,) = node.args or [ast.Constant("")]
                if isinstance(argument, ast.JoinedStr):
                    yield joined(argument)
    else:
        raised = rf"(?:{'|'.join(REFUSALS)})\(\s*((?:{LITERAL}\s*)+)\)"
        yield from map(text_of_literals, re.findall(raised, text_of(path)))


def explained_files() -> list[Path]:
    return [
        *(ROOT / "ki67" / name for name in EXPLAINED),
        *(ROOT / "workflow" / "rules").glob("*.smk"),
        ROOT / "Snakefile",
    ]


@pytest.mark.parametrize("path", explained_files(), ids=lambda path: path.name)
def test_every_refusal_of_a_run_is_explained(path: Path) -> None:
    known = [pieces(message) for message in messages("message | means")]
    for refusal in filter(pieces, refusals(path)):
        assert any(all(piece in refusal for piece in message) for message in known), refusal


def headings(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md" and page.is_file():
            reached.add(page)
            targets = re.findall(r"\]\(([^)\s#]+)", text_of(page))
            waiting.extend((page.parent / target).resolve() for target in targets if "://" not in target)
    assert reached >= set(DOCS.glob("*.md"))


def test_pictures_are_small_and_shown() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert len(pictures) >= 4
    for path in pictures:
        assert path.stat().st_size < LARGEST_PICTURE_BYTES, path.name
        with Image.open(path) as image:
            image.verify()
        assert f"docs/pictures/{path.name}" in text_of(ROOT / "README.md"), path.name


def test_the_catalog_finds_what_it_looks_for() -> None:
    usage = yaml.safe_load(text_of(ROOT / ".snakemake-workflow-catalog.yml"))["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert usage["software-stack-deployment"] == {"conda": True, "apptainer": True, "apptainer+conda": False}
    assert usage["report"] is True
    for name in ("README.md", "LICENSE", "config/README.md", "config/config.yaml", "workflow/Snakefile"):
        assert (ROOT / name).is_file()
