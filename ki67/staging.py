"""A slide copied to a disk of the machine that reads it, for file systems that are slow with many small reads."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ki67.errors import Stain
from ki67.slides import Slide, companion_files, open_checked_slide

log = logging.getLogger(__name__)


@contextmanager
def open_near(
    path: Path | str | Sequence[str],
    checked: Mapping[str, Any] | None,
    resources: Mapping[str, Any],
    *,
    slide_id: str,
    stain: Stain,
) -> Iterator[Slide]:
    """Open a slide as ``open_checked_slide`` does, or a copy of it if the job is to make one.

    Parameters
    ----------
    resources
        The job's: ``copy_slide``, 1 to copy, and ``tmpdir``, where to.
    path, checked, slide_id, stain
        As for ``open_checked_slide``, whose errors are raised.
    """
    folder = resources["tmpdir"] if resources["copy_slide"] else None
    with (
        local_copy(str(path or "absent"), folder) as near,
        open_checked_slide(near, checked, slide_id=slide_id, stain=stain) as slide,
    ):
        yield slide


@contextmanager
def local_copy(path: Path | str, folder: Path | str | None) -> Iterator[Path]:
    """The path of a copy of a slide, with all files that it consists of; the copy goes when the context ends.

    Where no copy is wanted or can be had, it is the path itself: nothing that is read depends on it.

    Parameters
    ----------
    path
        The slide file. One that does not exist is left to the reader, which has the words for it.
    folder
        Where copies go, such as a job's temporary folder; None wants none.
    """
    path = Path(path)
    if folder is None or not path.is_file():
        yield path
        return
    files = [path, *companion_files(path)]
    with ExitStack() as stack:
        try:
            size, free = sum(file.stat().st_size for file in files), shutil.disk_usage(folder).free
            if size > free:
                raise OSError(f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
            target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ki67-slide-", dir=folder)))
            for file in files:
                copy = target / file.relative_to(path.parent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            here = target / path.name
        except OSError as error:
            log.warning("the slide is read where it is, not copied: %s", error)
            stack.close()
            here = path
        yield here
