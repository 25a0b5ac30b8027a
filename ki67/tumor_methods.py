"""The ways of finding tumour, behind one interface: what ``tumor.method`` may be.

Every method is a network that gives the probability of tumour for windows of a slide, from which a mask is made in the
same way (``ki67.tumor``). This module imports torch only where a network is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ki67.errors import Ki67Error

if TYPE_CHECKING:
    from ki67.networks import Network, Precision

TumorMethod = Literal["unet_densenet121", "patches_googlenet"]


@dataclass(frozen=True)
class TumorModels:
    """The models of a method: keys in ``models`` of the configuration, and names of folders in ``resources/models``.

    Attributes
    ----------
    he, ki67
        Of the network for slides of each stain.
    he_coarse
        Of one that looks first at a coarser scale; None where the method has none.
    ki67_nuclei
        Of one for nuclei, which is weighed against that of tumour on Ki-67 slides.
    """

    he: str
    ki67: str
    he_coarse: str | None = None
    ki67_nuclei: str | None = None


MODELS: dict[TumorMethod, TumorModels] = {
    "unet_densenet121": TumorModels(
        "tumor_he", "tumor_ki67", he_coarse="tumor_he_coarse", ki67_nuclei="tumor_ki67_nuclei"
    ),
    "patches_googlenet": TumorModels("tumor_he_patches", "tumor_ki67_patches", ki67_nuclei="tumor_ki67_nuclei"),
}


def load_tumor_network(method: str, folder: Path, *, device: str = "auto", precision: Precision = "auto") -> Network:
    """The network of a folder, if it is one of the method.

    Parameters
    ----------
    method
        One of ``MODELS``.
    folder, device, precision
        See ``ki67.networks.load_network``.

    Raises
    ------
    Ki67Error
        If there is no such method, or the folder does not hold a network of it.
    """
    from ki67.networks import load_network

    check_fits(method, folder)
    return load_network(folder, device=device, precision=precision)


def check_fits(method: str, folder: Path) -> None:
    """That ``model.json`` in a folder describes a network of a method.

    Raises
    ------
    Ki67Error
        If it does not, or there is no such method.
    """
    if method not in MODELS:
        raise Ki67Error(f"tumor.method is {method!r}; write {' or '.join(MODELS)}")
    models = MODELS[method]
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        found, classes = str(record["architecture"]), tuple(record["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Ki67Error(
            f"tumor.method {method} needs a network, but {folder.name} holds no readable model.json; set "
            f"models.{models.he} or models.{models.ki67} to one, or train it with: snakemake train_{models.he} "
            f"train_{models.ki67}"
        ) from error
    if found != method or classes != ("tumor",):
        raise Ki67Error(
            f"tumor.method is {method}, but the model {folder.name} is a {found} of {len(classes)} classes; set "
            f"tumor.method to what the model is, or models.{models.he} and models.{models.ki67} to fitting ones"
        )
