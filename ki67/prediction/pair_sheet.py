"""A sample sheet for a folder of H&E and Ki-67 slides that others published as pairs, by the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ki67.errors import STAIN_NAMES, Ki67Error, Stain
from ki67.storage import write_text

SLIDE_SUFFIXES = frozenset(
    {".bif", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu"}
)
HE_WORDS = r"h\s*(?:&|\+|and|[-_.])?\s*e"
KI67_WORDS = r"ki[-_ .]?67|mib[-_ .]?1|ihc"


@dataclass(frozen=True)
class FoundPairs:
    """What a folder holds.

    Attributes
    ----------
    pairs
        Paths by stain of every slide id, in the order of the ids.
    single
        Files whose partner was not found.
    unknown
        Slide files whose name and folders name no stain.
    """

    pairs: dict[str, dict[Stain, Path]]
    single: list[Path]
    unknown: list[Path]


@dataclass(frozen=True)
class _Named:
    """A slide file, the stain its name tells, and what is left of folders and name without it."""

    path: Path
    stain: Stain
    folders: tuple[str, ...]
    name: str

    @property
    def key(self) -> str:
        return "/".join((*self.folders, self.name)).lower()


def find_pairs(folder: Path, *, marker: str = "Ki-67") -> FoundPairs:
    """The pairs of slides in a folder and its subfolders.

    A file is H&E or Ki-67 by a word in its name, else by one in the names of the folders it lies in, the innermost
    first: ``HE``, ``H&E``, ``H_E``; ``Ki67``, ``Ki-67``, ``MIB1``, ``IHC`` or the marker's own name, in any case and
    not as part of a longer word. Two files are a pair if their paths are the same without this word.

    Parameters
    ----------
    marker
        Of the other slides, as the settings name it.

    Raises
    ------
    Ki67Error
        If there is no pair, or two files of a stain have the same name without it.
    """
    if not folder.is_dir():
        raise Ki67Error(f"{folder} is no folder; name the one that holds the H&E and {marker} slides")
    named, unknown = [], []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file()):
        found = _named(path, folder, marker)
        named += [found] if found else []
        unknown += [] if found else [path]
    sides: dict[str, dict[Stain, _Named]] = {}
    for one in named:
        side = sides.setdefault(one.key, {})
        if one.stain in side:
            both = f"{side[one.stain].path.relative_to(folder)} and {one.path.relative_to(folder)}"
            raise Ki67Error(f"{both} are both the {STAIN_NAMES[one.stain]} slide of {one.key}; move one of them away")
        side[one.stain] = one
    pairs = [(side["he"], {stain: side[stain].path for stain in side}) for side in sides.values() if len(side) == 2]
    if not pairs:
        raise Ki67Error(
            f"{folder} holds no H&E slide with a {marker} slide of the same name, such as 01_HE.tif and 01_Ki67.tif; "
            "rename the files, or write the sample sheet by hand"
        )
    single = [next(iter(side.values())).path for side in sides.values() if len(side) == 1]
    return FoundPairs(_with_ids(pairs), sorted(single), unknown)


def write_pair_sheet(
    path: Path, found: FoundPairs, *, mpp_he: float | None = None, mpp_ki67: float | None = None
) -> None:
    """Write the pairs as a sample sheet; paths count from its folder where they lie in it, else from the root.

    Parameters
    ----------
    mpp_he, mpp_ki67
        Microns per pixel of all slides of a stain, where the files do not say.

    Raises
    ------
    Ki67Error
        If the file is there already.
    """
    if path.exists():
        raise Ki67Error(f"{path} exists; name a new file or remove it first")
    scales = {name: f"{value:g}" for name, value in (("mpp_he", mpp_he), ("mpp_ki67", mpp_ki67)) if value}
    lines = ["\t".join(["slide", "he", "ki67", *scales])]
    for slide, files in found.pairs.items():
        paths = [_seen_from(files[stain], path.resolve().parent) for stain in ("he", "ki67")]
        lines.append("\t".join([slide, *paths, *scales.values()]))
    write_text(path, "\n".join(lines) + "\n")


def _named(path: Path, folder: Path, marker: str) -> _Named | None:
    """The stain that a file's name tells, or the innermost folder that tells any; None where none does."""
    words: dict[Stain, str] = {"he": HE_WORDS, "ki67": rf"{KI67_WORDS}|{re.escape(marker)}"}
    *folders, name = (*path.relative_to(folder).parts[:-1], path.stem)
    parts = [name, *reversed(folders)]
    for number, part in enumerate(parts):
        for stain, pattern in words.items():
            rest = _without_word(part, pattern)
            if rest is not None:
                parts[number] = rest
                name, *outwards = parts
                return _Named(path, stain, tuple(reversed([part for part in outwards if part])), name)
    return None


def _without_word(text: str, pattern: str) -> str | None:
    """A name without a word and the separators beside it; None where it does not hold the word."""
    parts = re.split(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", text, maxsplit=1, flags=re.IGNORECASE)
    if len(parts) == 1:
        return None
    return "-".join(filter(None, (part.strip(" -_.()[]") for part in parts)))


def _with_ids(pairs: list[tuple[_Named, dict[Stain, Path]]]) -> dict[str, dict[Stain, Path]]:
    """An id for every pair: its name, or its folders as well where names are used more than once."""
    names = [_as_id(he.name) for he, _ in pairs]
    several = len({name.lower() for name in names}) < len(names) or not all(names)
    ids = [_as_id("-".join((*he.folders, he.name))) for he, _ in pairs] if several else names
    numbered = [one if one and ids.count(one) == 1 else f"pair-{number + 1}" for number, one in enumerate(ids)]
    return dict(sorted((one, files) for one, (_, files) in zip(numbered, pairs, strict=True)))


def _as_id(text: str) -> str:
    """Text in the letters that an id of the sample sheet may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100]


def _seen_from(path: Path, folder: Path) -> str:
    resolved = path.resolve()
    return os.path.relpath(resolved, folder) if resolved.is_relative_to(folder) else str(resolved)


def pairs_sentences(found: FoundPairs, folder: Path) -> Iterator[str]:
    """What was found, for a person: one line, and one more each for what was left out."""
    yield f"{len(found.pairs)} pairs of slides"
    for paths, words in ((found.single, "without a partner"), (found.unknown, "whose names tell no stain")):
        if paths:
            shown = ", ".join(str(path.relative_to(folder)) for path in paths[:5])
            yield f"{len(paths)} files {words} were left out: {shown}{', ...' if len(paths) > 5 else ''}"
