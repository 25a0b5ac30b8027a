"""Damaged and hostile slide files through the check stage: whatever they hold, each must become a row with a reason.

    .venv/bin/python -m benchmarks.fuzz_slides [--count 3000] [--seed 1] [--also SLIDE ...] [--keep FOLDER]

Small slides are drawn in the formats that are read most, and their bytes changed: tags of the TIFF tables get other
types, counts and values, tables point at themselves, bits flip, pieces are cut out, repeated or overwritten.
Every file goes through ``ki67.tissue.check_slide_file``, and what that calls usable is then decoded whole, as later
stages do. Ends with an error if one raises, takes more than 60 s of processor time or 2 GB of memory.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from ki67.errors import SlideError
from ki67.guarded import GuardedError, run_guarded
from ki67.slides import open_slide
from ki67.tissue import CPU_S, MEMORY_BYTES, check_slide_file

LONGEST_CPU_S, MOST_MEMORY_MB = 60.0, 2048.0
SIDE_PX = 768
BIT_FLIPS = (1, 8, 64)
VALUES = (0, 1, 2, 7, 8, 255, 256, 65535, 65536, 4_000_000, 2**31 - 1, 2**31, 2**32 - 1)
TAG_TYPES = (0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 18, 255)
TAG_BYTES = 12

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``usable``, ``usable, but not decoded`` or the flag, what was said, and its seconds."""

    kind: str
    message: str
    cpu_s: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=3000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--also", type=Path, nargs="*", default=[], help="further slides to change")
    arguments.add_argument("--keep", type=Path, help="folder for files that crash the decoder or take long")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        originals = {path.name: path.read_bytes() for path in [*draw_slides(Path(folder)), *options.also]}
        outcomes = []
        for name, path in mutated(originals, Path(folder), options.count, options.seed):
            outcome = look_at(path)
            outcomes.append((name, outcome))
            if options.keep and (outcome.cpu_s > LONGEST_CPU_S / 10 or "crashes" in outcome.message):
                options.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, options.keep / f"{len(outcomes)}-{path.name}")
    report(outcomes)


def report(outcomes: list[tuple[str, Outcome]]) -> None:
    """Print what became of all files; ends with an error where a limit was passed."""
    print("| outcome | files |\n|---|---:|")
    for kind, count in Counter(outcome.kind for _, outcome in outcomes).most_common():
        print(f"| {kind} | {count} |")
    reasons = Counter(outcome.message for _, outcome in outcomes if "decoder" in outcome.message)
    for message, count in reasons.most_common():
        print(f"{count} x {message}")
    longest = max(outcomes, key=lambda pair: pair[1].cpu_s)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"longest: {longest[1].cpu_s:.1f} s of processor time ({longest[0]}); most memory: {peak_mb:.0f} MB")
    if longest[1].cpu_s > LONGEST_CPU_S + 10 or peak_mb > MOST_MEMORY_MB:
        raise SystemExit("a limit was passed")


def look_at(path: Path) -> Outcome:
    """Check a file as the check stage does, and decode it whole where that finds it usable."""
    before = children_cpu_s()
    checked = check_slide_file(path, slide_id="F", stain="ki67", mpp=0.5, tissue_mpp=8.0)
    kind = "usable" if checked.usable else str(checked.findings[0].flag)
    message = "; ".join(finding.message for finding in checked.findings)
    if not all(finding.message.startswith("F: ") for finding in checked.findings) or not (message or checked.usable):
        raise AssertionError(f"{path.name}: {checked.findings}")
    if checked.usable:
        try:
            kind = run_guarded(lambda: decode(path), cpu_s=CPU_S, memory_bytes=MEMORY_BYTES)
        except GuardedError as error:
            kind, message = "usable, but not decoded", str(error)
    return Outcome(kind, message, children_cpu_s() - before)


def decode(path: Path) -> str:
    """Read all of a slide as the networks do; damage that the check did not meet is a finding of the later stage."""
    try:
        with open_slide(path, slide_id="F", stain="ki67", mpp=0.5) as slide:
            slide.thumbnail(0.5)
    except SlideError as error:
        return f"usable, then {error.finding.flag}"
    return "usable"


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw_slides(folder: Path) -> list[Path]:
    """A section with nuclei as a plain tiled TIFF, as Aperio's, as BigTIFF in deflate and as PNG and JPEG."""
    pixels = section()
    levels = [pixels, pixels[::4, ::4]]
    plain, aperio, big, png, jpeg = (folder / f"drawn{suffix}" for suffix in (".tif", ".svs", ".btf", ".png", ".jpg"))
    description = "Aperio Image Library v12\n768x768 [0,0 768x768] (256x256) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
    for path, options, text in (
        (plain, {"compression": "jpeg"}, None),
        (aperio, {"compression": "jpeg"}, description),
        (big, {"compression": "deflate"}, None),
    ):
        with tifffile.TiffWriter(path, bigtiff=path is big) as tiff:
            for number, level in enumerate(levels):
                tiff.write(
                    level,
                    tile=(256, 256),
                    photometric="rgb",
                    subfiletype=0 if text else int(number > 0),
                    resolution=(2e4 / 4**number,) * 2,
                    resolutionunit="CENTIMETER",
                    description=text,
                    metadata=None,
                    **options,
                )
    Image.fromarray(pixels).save(png)
    Image.fromarray(pixels).save(jpeg, quality=80)
    return [plain, aperio, big, png, jpeg]


def section() -> np.ndarray:
    """Brown and blue discs on pale tissue, glass around, uint8 ``(SIDE_PX, SIDE_PX, 3)``."""
    draw = np.random.default_rng(0)
    pixels = np.full((SIDE_PX, SIDE_PX, 3), 244.0)
    pixels[96:-96, 96:-96] = np.array((205, 198, 214)) + draw.normal(0, 6, (SIDE_PX - 192, SIDE_PX - 192, 3))
    y, x = np.indices((SIDE_PX, SIDE_PX))
    for number, (row, column) in enumerate(draw.integers(110, SIDE_PX - 110, (300, 2))):
        disc = (y - row) ** 2 + (x - column) ** 2 < 64
        pixels[disc] = ((120, 78, 48), (96, 108, 168))[number % 2] + draw.normal(0, 5, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def mutated(originals: dict[str, bytes], folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """So many changed files, one at a time, and how each came about."""
    names = sorted(originals)
    for number in range(count):
        draw = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        content, changes = originals[name], []
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            is_tiff = content[:2] in (b"II", b"MM")
            change = draw.choice(MUTATIONS if is_tiff else MUTATIONS[2:])
            content = change(content, draw)
            changes.append(change.__name__)
        path = folder / f"mutated{Path(name).suffix}"
        path.write_bytes(content)
        yield f"{number}: {name}, {', '.join(changes)}", path


def change_tag(content: bytes, draw: np.random.Generator) -> bytes:
    """A tag of a TIFF table gets another number, type, count or value."""
    tables = list(tiff_tables(content))
    if not tables:
        return flip_bits(content, draw)
    start, tags = tables[draw.integers(len(tables))]
    offset = start + TAG_BYTES * int(draw.integers(max(tags, 1)))
    order = "<" if content[:2] == b"II" else ">"
    field = draw.integers(4)
    value = int(draw.choice(VALUES))
    place, form, number = (
        (0, "H", int(draw.integers(250, 350))),
        (2, "H", int(draw.choice(TAG_TYPES))),
        (4, "I", value),
        (8, "I", value),
    )[field]
    return replaced(content, offset + place, struct.pack(order + form, number))


def bend_chain(content: bytes, draw: np.random.Generator) -> bytes:
    """The table after a TIFF table is itself, the header, or nowhere."""
    tables = list(tiff_tables(content))
    if not tables:
        return flip_bits(content, draw)
    start, tags = tables[draw.integers(len(tables))]
    order = "<" if content[:2] == b"II" else ">"
    following = int(draw.choice([start - 2, 0, 4, 8, len(content) - 4, 2**32 - 1]))
    return replaced(content, start + TAG_BYTES * tags, struct.pack(order + "I", following))


def flip_bits(content: bytes, draw: np.random.Generator) -> bytes:
    """Bits flip anywhere, half of the time in the first kilobyte or the last."""
    changed = np.frombuffer(content, np.uint8).copy()
    if not len(changed):
        return content
    near = int(draw.integers(4))
    reach = min(1024, len(changed))
    for _ in range(int(draw.choice(BIT_FLIPS))):
        place = int(draw.integers(reach)) if near < 2 else int(draw.integers(len(changed)))
        changed[-1 - place if near == 1 else place] ^= 1 << int(draw.integers(8))
    return changed.tobytes()


def cut(content: bytes, draw: np.random.Generator) -> bytes:
    """The end is missing."""
    return content[: int(draw.integers(len(content) + 1))]


def repeat(content: bytes, draw: np.random.Generator) -> bytes:
    """A piece comes twice, or is missing."""
    start, end = sorted(int(place) for place in draw.integers(len(content) + 1, size=2))
    piece = content[start : min(end, start + 4096)]
    return content[:start] + piece * int(draw.choice([0, 2])) + content[start + len(piece) :]


def overwrite(content: bytes, draw: np.random.Generator) -> bytes:
    """A piece becomes noise, zeros or ones."""
    start = int(draw.integers(len(content) + 1))
    length = int(draw.integers(1, 512))
    noise = draw.integers(256, size=length, dtype=np.uint8).tobytes()
    return replaced(content, start, (noise, bytes(length), b"\xff" * length)[draw.integers(3)])


MUTATIONS: list[Mutation] = [change_tag, bend_chain, flip_bits, cut, repeat, overwrite]


def tiff_tables(content: bytes) -> Iterator[tuple[int, int]]:
    """Where the tags of each table of a TIFF start, and how many there are; nothing for BigTIFF."""
    order = "<" if content[:2] == b"II" else ">"
    if len(content) < 8 or struct.unpack_from(order + "H", content, 2)[0] != 42:
        return
    (offset,) = struct.unpack_from(order + "I", content, 4)
    for _ in range(16):
        if not 0 < offset <= len(content) - 6:
            return
        (tags,) = struct.unpack_from(order + "H", content, offset)
        yield offset + 2, tags
        following = offset + 2 + TAG_BYTES * tags
        if following > len(content) - 4:
            return
        (offset,) = struct.unpack_from(order + "I", content, following)


def replaced(content: bytes, start: int, piece: bytes) -> bytes:
    """The content with a piece written over it, no longer than before."""
    return content[:start] + piece[: max(0, len(content) - start)] + content[start + len(piece) :]


if __name__ == "__main__":
    main()
