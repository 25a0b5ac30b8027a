"""A checksum of files of several GB that takes milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SAMPLES = 64
SAMPLE_BYTES = 64 * 1024


def file_checksum(path: str | Path, companions: Sequence[str | Path] = ()) -> dict[str, Any] | None:
    """Size and SHA-256 of samples of a file, in milliseconds however large it is; None where it cannot be read.

    Slides have several GB, so the first and last ``SAMPLE_BYTES`` and as many at even distances between them are read,
    ``SAMPLES`` in all. Another slide, another scan, a file cut short or compressed anew gives another digest; a few
    bytes changed on purpose need not. Of a file no larger than all samples it is the SHA-256 of the whole file.

    Parameters
    ----------
    path
        The file.
    companions
        Further files of a slide that consists of many; they follow in the digest in this order.

    Returns
    -------
    ``bytes`` (of all files), ``sampled_bytes`` (of these, how many are in the digest), ``sha256``.
    """
    digest, size, sampled = hashlib.sha256(), 0, 0
    try:
        for name in (path, *companions):
            with Path(name).open("rb", buffering=0) as file:
                length = file.seek(0, 2)
                size += length
                for start, count in _samples(length):
                    file.seek(start)
                    part = file.read(count)
                    digest.update(part)
                    sampled += len(part)
    except OSError:
        return None
    return {"bytes": size, "sampled_bytes": sampled, "sha256": digest.hexdigest()}


def _samples(length: int) -> Iterator[tuple[int, int]]:
    """Start and length of the samples of a file; all of it where it is no larger than they are together."""
    if length <= SAMPLES * SAMPLE_BYTES:
        yield 0, length
        return
    last = length - SAMPLE_BYTES
    for number in range(SAMPLES):
        yield number * last // (SAMPLES - 1), SAMPLE_BYTES
