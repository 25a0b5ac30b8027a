"""VALIS, rigid with mirror images, over the jobs of a benchmark; all else as its version 1.1.0 comes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jobs import Found, Job, Matrix, main
from valis import registration, warp_tools  # type: ignore[import-not-found]

PROBES = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])


class TimedValis(registration.Valis):  # type: ignore[misc]
    """VALIS that knows how long its work on opened images took, and what it failed on.

    ``register`` reads the images, processes them, registers and measures its errors; it prints what is raised and goes
    on without it.
    """

    seconds: float = 0.0
    failure: Exception | None = None

    def process_imgs(self, *arguments: Any, **options: Any) -> Any:
        with self._watched():
            return super().process_imgs(*arguments, **options)

    def rigid_register(self) -> Any:
        with self._watched():
            return super().rigid_register()

    def extract_rigid_transforms_from_serial_rigid(self, rigid_registrar: Any) -> Any:
        """Correct where a mirrored image goes, then as VALIS does.

        It mirrors within what it cropped the image to, but undoes that within the whole image, so that the transform
        is off by as much as the tissue lies aside from the middle.
        """
        for image in rigid_registrar.img_obj_list:
            slide = self.get_slide(image.name)
            image.reflection_M = mirror_of_crop(
                image.reflection_M,
                np.asarray(slide.processed_crop_bbox[:2], dtype=float),
                slide.processed_img_shape_rc,
                slide.uncropped_processed_img_shape_rc,
            )
        return super().extract_rigid_transforms_from_serial_rigid(rigid_registrar)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.failure = error
            raise
        finally:
            self.seconds += time.perf_counter() - started


def mirror_of_crop(mirror: Matrix, corner: Matrix, shape_rc: Any, uncropped_shape_rc: Any) -> Matrix:
    """The mirror image of the whole, in pixels of a crop.

    Parameters
    ----------
    mirror
        ``(3, 3)``, which axes are mirrored.
    corner
        Of the crop, x and y in the uncropped image.
    shape_rc, uncropped_shape_rc
        Of the whole image as VALIS mirrors it and as VALIS cropped it, rows and columns.
    """
    axes = mirror[[0, 1], [0, 1]] < 0
    if not axes.any():
        return mirror
    scale = np.asarray(shape_rc, dtype=float) / np.asarray(uncropped_shape_rc, dtype=float)
    to_whole = np.array([[scale[0], 0, scale[0] * corner[0]], [0, scale[1], scale[1] * corner[1]], [0, 0, 1]])
    return np.linalg.inv(to_whole) @ warp_tools.get_reflection_M(*axes, shape_rc) @ to_whole


def register(job: Job) -> Found:
    """The moving image towards the fixed one."""
    with tempfile.TemporaryDirectory() as scratch:
        valis = TimedValis(
            str(Path(job.fixed).parent),
            scratch,
            name="pair",
            img_list=[job.fixed, job.moving],
            reference_img_f=Path(job.fixed).name,
            non_rigid_registrar_cls=None,
            check_for_reflections=True,
        )
        valis.register()
        if valis.failure is not None:
            raise valis.failure
        fixed, moving = valis.get_slide(job.fixed), valis.get_slide(job.moving)
        origin, right, down = fixed.warp_xy_from_to(PROBES, moving, non_rigid=False)
    # Whole numbers as corners: so an image and a copy of it turned by half a turn lie closer than as centres.
    matrix = np.column_stack([(right - origin) / PROBES[1, 0], (down - origin) / PROBES[2, 1], origin])
    return Found(np.vstack([matrix, [0, 0, 1]]), valis.seconds)


if __name__ == "__main__":
    main("VALIS rigid", version("valis-wsi"), register)
