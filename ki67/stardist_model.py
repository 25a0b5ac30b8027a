"""A StarDist model on disk and in TensorFlow: what can be read, what is refused, and how it answers.

A folder is as StarDist itself writes it (``config.json``, ``thresholds.json``, ``weights_best.h5``), so that its own
models can be used too; those that this project trains have a ``model.json`` besides, with the digest of the weights.
Weights are arrays: reading them runs no code.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.devices import claim_gpu, gpu_names
from ki67.errors import Ki67Error
from ki67.predictors import STRIDE_PX, NamedDevice, Precision

log = logging.getLogger(__name__)

ARCHITECTURE = "stardist"
CONFIG_FILE, THRESHOLDS_FILE, MODEL_FILE = "config.json", "thresholds.json", "model.json"
WEIGHTS_FILE = "weights_best.h5"
USUAL_MPP = 0.5
GRIDS = (1, 2, 4)
INPUTS = (1, 3)
_LARGEST_HALO_PX, _HALO_STEP_PX = 96, 16
_TRAIN = "set models.stardist to a folder of a StarDist model, or train one with: snakemake train_stardist"


@dataclass(frozen=True)
class StarSpec:
    """What has to be known of a StarDist model.

    Attributes
    ----------
    name
        Of its folder.
    rays
        Directions in which distances are told.
    grid_px
        Width of the cells that are answered for.
    inputs
        Channels of the images it takes: 1, or 3 for colours.
    depth, convolutions, kernel_px
        Of its U-Net: halvings, convolutions at each depth, and their width.
    probability, overlap
        Its thresholds.
    mpp
        Microns per pixel of the images it learned from.
    sha256
        Of the weights.
    config
        ``config.json`` as it is.
    training
        What it was trained on and how well it does; empty where nobody says.
    """

    name: str
    rays: int
    grid_px: int
    inputs: int
    depth: int
    convolutions: int
    kernel_px: int
    probability: float
    overlap: float
    mpp: float
    sha256: str
    config: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stride_px(self) -> int:
        """Sides of what it is shown are multiples of this."""
        return int(self.grid_px * 2**self.depth)

    @property
    def halo_px(self) -> int:
        """How far beyond a window it is shown what lies around: as far as it sees, but at most 96 px."""
        return min(_LARGEST_HALO_PX, -(-self._reach_px() // _HALO_STEP_PX) * _HALO_STEP_PX)

    def _reach_px(self) -> int:
        """How far it sees: a convolution by half its width at its scale, a halving and its way back by a pixel each."""
        step, scale, reach = self.convolutions * (self.kernel_px // 2), 1, 0
        while scale < self.grid_px:
            reach, scale = reach + step * scale + scale, scale * 2
        for _ in range(self.depth):
            reach, scale = reach + 2 * step * scale + 2 * scale, scale * 2
        return reach + step * scale + self.grid_px


def read_star_spec(folder: Path) -> StarSpec:
    """What the files of a model's folder say of it.

    Raises
    ------
    Ki67Error
        If a file is missing or damaged, the model is of a kind that cannot be read, or its weights are not those that
        ``model.json`` describes.
    """
    config = _read_json(folder, CONFIG_FILE)
    described = _read_json(folder, MODEL_FILE) if (folder / MODEL_FILE).exists() else {}
    thresholds = _read_json(folder, THRESHOLDS_FILE)
    _refuse_other_kinds(folder.name, config)
    try:
        spec = StarSpec(
            name=folder.name,
            rays=int(config["n_rays"]),
            grid_px=int(config["grid"][0]),
            inputs=int(config["n_channel_in"]),
            depth=int(config["unet_n_depth"]),
            convolutions=int(config["unet_n_conv_per_depth"]),
            kernel_px=int(config["unet_kernel_size"][0]),
            probability=_share(thresholds["prob"]),
            overlap=_share(thresholds["nms"]),
            mpp=_positive(described.get("mpp", USUAL_MPP)),
            sha256=_checked_digest(folder, described.get("sha256")),
            config=config,
            training=dict(described.get("training") or {}),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Ki67Error(
            f"StarDist model {folder.name}: {CONFIG_FILE}, {THRESHOLDS_FILE} or {MODEL_FILE} lacks what is needed "
            f"({error!r:.80}); fetch it again or train it anew"
        ) from error
    if STRIDE_PX % spec.stride_px:
        raise Ki67Error(
            f"StarDist model {spec.name}: its grid and unet_n_depth need windows in multiples of {spec.stride_px} px, "
            f"and only divisors of {STRIDE_PX} can be had; {_TRAIN}"
        )
    return spec


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Ki67Error(
            f"nuclei.method stardist needs a model, but {folder.name} holds no readable {name}; {_TRAIN}"
        ) from error
    if not isinstance(record, dict):
        raise Ki67Error(f"nuclei.method stardist needs a model, but {name} in {folder.name} is no record; {_TRAIN}")
    return record


def _refuse_other_kinds(name: str, config: Mapping[str, Any]) -> None:
    """That the model is one of StarDist in two dimensions, on a U-Net, for one or three channels.

    Raises
    ------
    Ki67Error
        With what it is and what it should be.
    """
    wanted: dict[str, tuple[Any, ...]] = {
        "n_dim": (2,),
        "n_channel_in": INPUTS,
        "backbone": ("unet",),
        "grid": tuple([side, side] for side in GRIDS),
        "unet_pool": ([2, 2],),
    }
    for key, known in wanted.items():
        if config.get(key) not in known:
            raise Ki67Error(
                f"StarDist model {name}: its {key} is {config.get(key)!r}, and only {' or '.join(map(str, known))} can "
                f"be read; {_TRAIN}"
            )


def _checked_digest(folder: Path, described: str | None) -> str:
    """The digest of the weights, which is the one that ``model.json`` gives, if it gives any."""
    try:
        found = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise Ki67Error(
            f"StarDist model {folder.name}: {WEIGHTS_FILE} is missing; fetch it again or train it anew"
        ) from error
    if described is not None and found != described:
        raise Ki67Error(
            f"StarDist model {folder.name}: {WEIGHTS_FILE} has sha256 {found[:12]}... where {MODEL_FILE} says "
            f"{str(described)[:12]}...; the file was changed or cut off, fetch or train it again"
        )
    return found


def _share(value: Any) -> float:
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError(f"threshold {value}")
    return share


def _positive(value: Any) -> float:
    number = float(value)
    if not number > 0:
        raise ValueError(f"mpp {value}")
    return number


# ---------------------------------------------------------------------------------------------- TensorFlow


def start_tensorflow(device: str = "auto", *, threads: int = 1) -> Any:
    """Import TensorFlow, once for a process, and say where and with how many threads it computes.

    Parameters
    ----------
    device
        ``"auto"`` (a GPU where there is one that TensorFlow can use), ``"cpu"`` or ``"cuda"``.
    threads
        Of each operation on a processor.

    Raises
    ------
    Ki67Error
        If PyTorch is in the process already, TensorFlow is not installed, or there is no GPU though it is asked for.
    """
    if "torch" in sys.modules:
        raise Ki67Error(
            "StarDist needs TensorFlow, which cannot run beside PyTorch in one process; run it on its own, with python "
            "-m ki67 evaluate nuclei or the workflow"
        )
    if device != "cpu":
        claim_gpu(gpu_names())
    with quiet_start():
        try:
            import_module("stardist.models")
            import tensorflow
        except ImportError as error:
            raise Ki67Error(
                "StarDist needs TensorFlow, which is not installed here; install requirements.lock, or run the "
                "workflow with --sdm conda"
            ) from error
        _configure(tensorflow, device, threads)
        gpus = tensorflow.config.get_visible_devices("GPU")
    if device.startswith("cuda") and not gpus:
        raise Ki67Error(f"device {device!r} cannot be used by TensorFlow on this machine; set device to auto or cpu")
    return tensorflow


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keep from the terminal what TensorFlow's libraries say when they are loaded; where that fails it is shown.

    They write to the file descriptor of standard error before any setting of theirs can stop them.
    """
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(terminal, said.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _configure(tensorflow: Any, device: str, threads: int) -> None:
    """What can only be said before TensorFlow computes for the first time; later it stays as it is."""
    try:
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        if device == "cpu":
            tensorflow.config.set_visible_devices([], "GPU")
        for gpu in tensorflow.config.get_visible_devices("GPU"):
            tensorflow.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        log.debug("TensorFlow computes already; its devices and threads stay as they are")


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in instructions of its own."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def choose_precision(wanted: Precision, *, on_gpu: bool) -> Precision:
    """In which numbers to compute; ``"auto"`` is bfloat16 where the machine computes in it, else float32."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if on_gpu or computes_bfloat16() else "float32"


def star_model(config: Mapping[str, Any], name: str, precision: Precision = "float32") -> Any:
    """StarDist's own model in memory, with random weights.

    Parameters
    ----------
    config
        As in ``config.json``.
    name
        By which people know it.
    precision
        ``"bfloat16"`` computes in it, with weights in float32.
    """
    import keras
    from stardist.models import Config2D, StarDist2D

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        with redirect_stdout(io.StringIO()):  # it prints its usual thresholds
            model = StarDist2D(Config2D(**config), name=name, basedir=None)
    finally:
        keras.config.set_dtype_policy(before)
    for layer in ("prob", "dist"):  # answers have more digits than bfloat16
        model.keras_model.get_layer(layer).dtype_policy = "float32"
    return model


class StarNetwork:
    """A StarDist model ready to answer.

    Parameters
    ----------
    folder
        Of the model.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    precision
        ``"auto"`` takes bfloat16 where the machine computes in it, else float32.

    Raises
    ------
    Ki67Error
        If the model cannot be read or its weights do not fit; see ``read_star_spec`` and ``start_tensorflow``.
    """

    def __init__(self, folder: Path, *, device: str = "auto", precision: Precision = "auto") -> None:
        self.spec = read_star_spec(folder)
        if precision == "int8":
            raise Ki67Error(
                f"StarDist model {folder.name} does not compute in 8-bit integers; set network.precision to auto"
            )
        self._tensorflow = start_tensorflow(device)
        on_gpu = bool(self._tensorflow.config.get_visible_devices("GPU"))
        self.device = NamedDevice("cuda" if on_gpu else "cpu")
        self.precision = choose_precision(precision, on_gpu=on_gpu)
        try:
            model = star_model(self.spec.config, self.spec.name, self.precision)
            model.keras_model.load_weights(str(folder / WEIGHTS_FILE))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Ki67Error(
                f"StarDist model {folder.name}: {WEIGHTS_FILE} does not fit the model that {CONFIG_FILE} "
                "describes; fetch or train it again"
            ) from error
        self._answer = self._compiled(model.keras_model)

    def _compiled(self, keras_model: Any) -> Any:
        """One graph for windows of all sizes."""
        shape = self._tensorflow.TensorSpec([None, None, None, self.spec.inputs], self._tensorflow.float32)

        def answer(images: Any) -> Any:
            probability, distances = keras_model([images], training=False)[:2]
            return tuple(self._tensorflow.cast(part, self._tensorflow.float32) for part in (probability, distances))

        return self._tensorflow.function(answer, input_signature=[shape])

    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probability ``(N, h, w)`` and distances in pixels ``(N, h, w, rays)`` of every cell of the grid.

        Parameters
        ----------
        images
            float32 ``(N, H, W, inputs)``, 0 to about 1, both sides multiples of ``spec.stride_px``.
        """
        probability, distances = self._answer(self._tensorflow.constant(images))
        return probability.numpy()[..., 0], distances.numpy()
