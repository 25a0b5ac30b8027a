"""What made a result: the code a script runs on, the versions of the packages, and the log of a stage.

A digest of every module a script can import goes into the workflow as a parameter, so that a change in one module
makes exactly the rules run again whose results it can change.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ki67.errors import Ki67Error

LOGGER = logging.getLogger("ki67")
PACKAGE = "ki67"
DISK_REMEDIES = {
    errno.ENOSPC: "make room on the disk of the results",
    errno.EDQUOT: "make room in the quota of this account",
    errno.EROFS: "make the folder of the results writable",
    errno.EIO: "have the disk or the network share looked after",
    errno.ESTALE: "have the network share looked after",
}
"""What to do about errors of the system that no other slide or setting would spare."""


@cache
def code_digest(script: Path, root: Path, *, without: tuple[str, ...] = ()) -> str:
    """Digest of a script and of every module of the package that it imports, directly or through another.

    Imports inside functions count, those under ``if TYPE_CHECKING`` do not. Line endings do not matter.

    Parameters
    ----------
    script
        Python file.
    root
        Folder that holds the package ``ki67``.
    without
        Names of modules that do not count, though what they import does: those that only draw pictures.
    """
    digest = hashlib.sha256()
    for path in (script, *(path for path in import_closure(script, root) if path.stem not in without)):
        digest.update(path.name.encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def import_closure(script: Path, root: Path) -> list[Path]:
    """Files of the package ``ki67`` under ``root`` that run when ``script`` does, sorted; without the script itself."""
    found: set[Path] = set()
    waiting = list(_imported_files(script, root))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imported_files(path, root))
    return sorted(found)


@cache
def _imported_files(path: Path, root: Path) -> tuple[Path, ...]:
    tree = ast.parse(path.read_bytes(), filename=path.name)
    names = {name for node in _run_time_nodes(tree) for name in _imported_names(node, path, root)}
    return tuple(file for name in sorted(names) for file in _files_of_module(name, root))


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a module, at any depth, but those that only a type checker reads."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        only_typed = isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for name in ("orelse",) if only_typed else ("body", "orelse", "handlers", "finalbody", "cases"):
            inner = getattr(node, name, ())
            waiting.extend(inner if isinstance(inner, list) else ())


def _imported_names(node: ast.AST, path: Path, root: Path) -> Iterator[str]:
    """Dotted names a node imports from the package; ``from ki67 import slides`` gives both ki67 and ki67.slides."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = path.relative_to(root).with_suffix("").parts[: -node.level]
            base = ".".join((*parents, base)).rstrip(".")
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _files_of_module(name: str, root: Path) -> Iterator[Path]:
    """The module's file and the ``__init__`` of every package above it; nothing for names outside the package."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return
    for length in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:length])
        for file in (stem / "__init__.py", stem.with_suffix(".py")):
            if file.is_file():
                yield file


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of this package and of the installed distributions among those named."""
    from ki67 import __version__

    found = {"python": platform.python_version(), PACKAGE: __version__}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class StageLog:
    """What a stage has to tell about one slide: counts and amounts, and the seconds since it began."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Add a few words to the line that closes the stage."""
        self._notes.append(text)

    @property
    def seconds(self) -> float:
        """Seconds since the stage began, to a hundredth."""
        return round(time.monotonic() - self._started_s, 2)

    def record(self, params: Mapping[str, Any], distributions: Iterable[str]) -> dict[str, Any]:
        """What made the stage's results, as the record of the stage holds it.

        Parameters
        ----------
        params
            The rule's, of which ``settings`` (those of the configuration that the stage depends on) and ``code`` (the
            digest of the script and its modules) are told.
        distributions
            Those whose versions matter.
        """
        told = {"settings": dict(params["settings"]), "code": params["code"]}
        return {"seconds": self.seconds, "versions": versions(distributions), **told}

    def line(self, stage: str, name: str) -> str:
        """The line that closes the stage."""
        return f"{name} {stage}: {', '.join((*self._notes, f'{self.seconds:.1f} s'))}"


def slide_provenance(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What made the result of a slide, put together from the records of all its stages.

    Parameters
    ----------
    stages
        Records by the name of the stage; that of ``check`` tells of the files.

    Returns
    -------
    ``inputs`` (by stain, see ``ki67.checksum``), ``settings``, ``code`` and ``seconds`` (by stage), ``versions`` (by
    package, two with a comma between them where stages ran with different ones).
    """
    found: dict[str, list[str]] = {}
    for record in stages.values():
        for name, version in record.get("versions", {}).items():
            known = found.setdefault(name, [])
            known.extend([version] if version not in known else [])
    by_stage = {
        key: {stage: record[key] for stage, record in stages.items() if key in record}
        for key in ("settings", "code", "seconds")
    }
    files = stages.get("check", {}).get("stains", {})
    return {
        "inputs": {stain: checked and checked.get("file") for stain, checked in files.items()},
        "versions": {name: ", ".join(versions) for name, versions in found.items()},
        **by_stage,
    }


@contextmanager
def stage_log(path: str | Path, *, stage: str, name: str) -> Iterator[StageLog]:
    """Log a stage to a file and to the terminal, one line when it ends; what went wrong goes to the file in full.

    A failure that a sentence explains (``failure_sentence``) ends the process with that sentence alone.

    Parameters
    ----------
    path
        The log file; its folder exists.
    stage
        Name of the stage, such as ``check``.
    name
        Id of the slide, or ``cohort``.
    """
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers: tuple[logging.Handler, ...] = (file, terminal)
    LOGGER.setLevel(logging.INFO)
    for handler in handlers:
        LOGGER.addHandler(handler)
    log = StageLog()
    try:
        yield log
        LOGGER.info(log.line(stage, name))
    except BaseException as error:
        LOGGER.removeHandler(terminal)
        LOGGER.exception("%s %s failed after %.1f s", name, stage, log.seconds)
        if (sentence := failure_sentence(error)) is None:
            raise
        print(f"{name} {stage} failed: {sentence}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()


def failure_sentence(error: BaseException | None) -> str | None:
    """What a person reads of a failure that is no mistake of the program's: an error raised on purpose, or a disk's.

    None where only a traceback can tell.
    """
    while error is not None:
        if isinstance(error, Ki67Error):
            return str(error)
        if isinstance(error, OSError) and error.errno in DISK_REMEDIES:
            return f"{os.strerror(error.errno)}: {DISK_REMEDIES[error.errno]} and run the workflow again"
        error = error.__cause__ or error.__context__
    return None
