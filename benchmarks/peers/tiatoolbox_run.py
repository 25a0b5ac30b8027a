"""Score the nuclei of a whole slide with TIAToolbox's SemanticSegmentor and our network; runs in its own environment.

``--mode defaults`` is what its documentation gives: the batch size and workers of ``SemanticSegmentor`` (8 and 0), the
patches of its own segmentation model ``fcn_resnet50_unet-bcss`` (1024 px in, the middle 512 px out, every 450 px), and
its ``qupath`` output, which makes an outline of every object of a class (its ``annotationstore`` does the same, but not
with a Python whose SQLite loads no extensions).

``--mode best`` is the fastest it can be asked for: windows edge to edge without halo, more of them at once, workers
for reading ("set to multiprocessing.cpu_count() for maximum usage"), torch.compile where it supports the device, and
bfloat16, for which it has no option of its own; its merged map of classes is labelled with scikit-image.

Both analyse the whole slide (``auto_get_mask=False``). It is handed to TIAToolbox under a name that ends in .svs: it
opens a .tif without a scanner's marks as one picture in memory, once for each worker, and anything else by OpenSlide.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiatoolbox
import torch
import zarr
from measurement import (
    NEGATIVE_NUCLEUS,
    POSITIVE_NUCLEUS,
    Description,
    Measurement,
    chosen,
    device,
    measured,
    parser,
    read_description,
    read_network,
    record,
    write_record,
)
from numpy.typing import NDArray
from shapely.geometry import shape
from skimage.measure import find_contours, label, regionprops
from tiatoolbox import rcParam
from tiatoolbox.models import IOSegmentorConfig, SemanticSegmentor
from tiatoolbox.models.architecture.utils import is_torch_compile_compatible
from tiatoolbox.models.models_abc import ModelABC
from tiatoolbox.wsicore.wsireader import WSIReader

MODES: dict[str, dict[str, Any]] = {
    "defaults": {
        "input_px": 1024,
        "output_px": 512,
        "stride_px": 450,
        "batch": 8,
        "workers": 0,
        "autocast": False,
        "compile": True,
        "nuclei": "qupath",
    },
    "best": {
        "input_px": 1024,
        "output_px": 1024,
        "stride_px": 1024,
        "batch": 16,
        "workers": os.cpu_count(),
        "autocast": True,
        "compile": True,
        "nuclei": "regionprops",
    },
}
CLASS_NAMES = {POSITIVE_NUCLEUS: "positive", NEGATIVE_NUCLEUS: "negative"}


class NucleusModel(ModelABC):
    """Our network as TIAToolbox takes one: windows in ``(N, H, W, 3)``, probabilities out ``(N, h, w, 5)``."""

    def __init__(self, weights: Path, description: Description, *, output_px: int, autocast: bool) -> None:
        super().__init__()
        self.network = read_network(weights)
        self.register_buffer("scale", 255 * torch.tensor(description.std).view(1, 3, 1, 1))
        self.register_buffer("shift", 255 * torch.tensor(description.mean).view(1, 3, 1, 1))
        self.class_dict = dict(enumerate(description.classes))
        self.output_px = output_px
        self.autocast = autocast

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Probabilities ``(N, 5, H, W)`` of RGB windows 0-255 ``(N, 3, H, W)``."""
        return self.network((windows - self.shift) / self.scale).float().softmax(dim=1)

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> NDArray[np.float32]:
        """Probabilities of the middle of every window."""
        own = getattr(model, "_orig_mod", model)
        windows = batch_data.to(device).permute(0, 3, 1, 2).float()
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=own.autocast):
            probabilities = model(windows)
        halo = (windows.shape[-1] - own.output_px) // 2
        middle = probabilities[..., halo : halo + own.output_px, halo : halo + own.output_px]
        return middle.permute(0, 2, 3, 1).float().cpu().numpy()

    @staticmethod
    def postproc(image: Any) -> Any:
        """Classes of a merged map of probabilities."""
        return image.argmax(axis=-1).astype(np.uint8)


class TimedSegmentor(SemanticSegmentor):
    """The segmentor, which says when the answers of a slide are merged."""

    measurement: Measurement

    def infer_wsi(self, *args: Any, **kwargs: Any) -> Any:
        """As the segmentor does it."""
        result = super().infer_wsi(*args, **kwargs)
        self.measurement.end_network_stage()
        return result


def segment(
    slide: Path, model: NucleusModel, mpp: float, settings: dict[str, Any], measurement: Measurement, folder: Path
) -> Path:
    """Run the segmentor over the whole slide; the path of what it wrote."""
    rcParam["torch_compile_mode"] = "default" if settings["compile"] else "disable"
    segmentor = TimedSegmentor(
        model, batch_size=settings["batch"], num_workers=settings["workers"], device=device(), verbose=False
    )
    segmentor.measurement = measurement
    resolution = [{"units": "mpp", "resolution": mpp}]
    configuration = IOSegmentorConfig(
        input_resolutions=resolution,
        output_resolutions=resolution,
        patch_input_shape=(settings["input_px"], settings["input_px"]),
        patch_output_shape=(settings["output_px"], settings["output_px"]),
        stride_shape=(settings["stride_px"], settings["stride_px"]),
        ignore_index=0,
    )
    output = segmentor.run(
        [slide],
        ioconfig=configuration,
        patch_mode=False,
        auto_get_mask=False,
        save_dir=folder / "out",
        output_type="qupath" if settings["nuclei"] == "qupath" else "zarr",
    )
    return Path(output[slide])


def outlined_nuclei(path: Path, smallest_px: int) -> tuple[list[Any], list[Any]]:
    """Centres and outlines of positive and of negative nuclei in a QuPath file, which holds a feature an object."""
    found: dict[str, list[Any]] = {"positive_nucleus": [], "negative_nucleus": []}
    for feature in json.loads(path.read_text(encoding="utf-8"))["features"]:
        kind = feature["properties"]["classification"]["name"]
        if kind not in found:
            continue
        outline = shape(feature["geometry"])
        if outline.area >= smallest_px:
            found[kind].append((outline.centroid.coords[0], outline))
    return found["positive_nucleus"], found["negative_nucleus"]


def labelled_nuclei(classes: NDArray[np.uint8], kind: int, smallest_px: int) -> list[Any]:
    """Centre and outline, in pixels, of every object of a class in a map ``(H, W)``."""
    result = []
    for region in regionprops(label(classes == kind, connectivity=1)):
        if region.area < smallest_px:
            continue
        corner = np.array(region.bbox[:2]) - 1
        outline = max(find_contours(np.pad(region.image, 1), 0.5), key=len) + corner
        result.append((region.centroid, outline))
    return result


def find_nuclei(path: Path, settings: dict[str, Any], smallest_px: int) -> tuple[list[Any], list[Any]]:
    """Positive and negative nuclei of what the segmentor wrote."""
    if settings["nuclei"] == "qupath":
        return outlined_nuclei(path, smallest_px)
    classes = zarr.open(str(path), mode="r")["predictions"][:]
    positive, negative = (labelled_nuclei(classes, kind, smallest_px) for kind in CLASS_NAMES)
    return positive, negative


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Analyse the slide and return the record."""
    settings = chosen(arguments, MODES[arguments.mode])
    settings["compile"] = settings["compile"] and is_torch_compile_compatible()
    description = read_description(arguments.weights)
    model = NucleusModel(arguments.weights, description, output_px=settings["output_px"], autocast=settings["autocast"])
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as folder:
        slide = Path(folder) / "slide.svs"
        slide.symlink_to(arguments.slide.resolve())
        with measured() as measurement:
            written = segment(slide, model, description.mpp, settings, measurement, Path(folder))
            positive, negative = find_nuclei(written, settings, arguments.smallest_px)
        width, height = WSIReader.open(slide).slide_dimensions(resolution=description.mpp, units="mpp")
    return record(
        tool="TIAToolbox",
        version=tiatoolbox.__version__,
        mode=arguments.mode,
        settings=settings,
        measurement=measurement,
        size_px=(int(width), int(height)),
        mpp=description.mpp,
        positive=len(positive),
        negative=len(negative),
    )


def main() -> None:
    """Read the command line, run, write the record."""
    options = parser(__doc__)
    options.add_argument("--input-px", type=int, help="side of the windows")
    options.add_argument("--output-px", type=int, help="side of the middle of a window that counts")
    options.add_argument("--stride-px", type=int)
    options.add_argument("--nuclei", choices=("qupath", "regionprops"), help="how nuclei are found")
    arguments = options.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_record(arguments.out, run(arguments))


if __name__ == "__main__":
    main()
