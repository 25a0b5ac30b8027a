"""The tumour mask of one slide, as the stages tumor and transfer make it: by a network, in tissue and drawn regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Stain
from ki67.geometry import Mask, Transform
from ki67.slides import Slide
from ki67.transfer import TumorSource, carry_mask, draws_regions, excludes_regions, region_mask, within
from ki67.tumor_methods import TumorMethod, load_tumor_network

if TYPE_CHECKING:
    from ki67.networks import Precision


@dataclass(frozen=True)
class TumorSettings:
    """How a tumour mask is made.

    Attributes
    ----------
    mask_mpp
        Microns per pixel of the mask.
    threshold
        Probability from which a pixel is tumour; None takes the network's own.
    smallest_region_mm2, smallest_hole_mm2
        Smaller regions are dropped, smaller holes filled.
    regions
        Whether regions a person drew ``"limit"`` where tumour is looked for, or are themselves the ``"tumor"``.
    device, precision, batch_size, reader_threads
        How the network runs.
    method
        What kind of network looks for tumour.
    """

    mask_mpp: float
    threshold: float | None
    smallest_region_mm2: float
    smallest_hole_mm2: float
    regions: Literal["limit", "tumor"]
    device: str
    precision: Precision
    batch_size: int
    reader_threads: int
    method: TumorMethod = "unet_densenet121"


@dataclass(frozen=True)
class TumorMask:
    """A tumour mask and where it comes from.

    Attributes
    ----------
    mask
        In the slide's frame.
    source
        ``"he"`` or ``"ki67"`` for the network of that stain, ``"roi"`` for regions a person drew; None where the slide
        could not be used.
    probability
        uint8 of the mask's shape, 255 for certain tumour; None where no network ran.
    model, coarse_model, nuclei_model
        Name and hash of the network, of the one that looked first at a coarser scale, and of the one for nuclei.
    fine_share
        Share of the tissue's tiles that the finer of the two looked at.
    statistics
        Of their run.
    excluded
        Whether a person drew what is left out of it.
    limited
        Whether a person drew anything that it keeps to.
    """

    mask: Mask
    source: TumorSource | None = None
    probability: NDArray[np.uint8] | None = None
    model: Mapping[str, str] | None = None
    coarse_model: Mapping[str, str] | None = None
    nuclei_model: Mapping[str, str] | None = None
    fine_share: float | None = None
    statistics: Mapping[str, Any] | None = None
    excluded: bool = False
    limited: bool = False

    @classmethod
    def empty(cls, frame: Stain, mpp: float) -> Self:
        """No tumour, of a slide that cannot be used."""
        return cls(Mask.empty(frame, mpp))

    def to_json(self) -> dict[str, Any]:
        """What a stage's record says of the mask."""
        return {
            "segmented": self.source is not None,
            "tumor_source": self.source,
            "tumor_mm2": round(self.mask.area_mm2, 4),
            "model": None if self.model is None else dict(self.model),
            "coarse_model": None if self.coarse_model is None else dict(self.coarse_model),
            "nuclei_model": None if self.nuclei_model is None else dict(self.nuclei_model),
            "fine_share": None if self.fine_share is None else round(self.fine_share, 4),
            "statistics": None if self.statistics is None else dict(self.statistics),
            "excluded": self.excluded,
            "limited": self.limited,
        }


def make_tumor_mask(
    slide: Slide,
    tissue: Mask,
    settings: TumorSettings,
    *,
    model: Path | str,
    coarse_model: Path | str | None = None,
    nuclei_model: Path | str | None = None,
    geojson: str | None = None,
) -> TumorMask:
    """The tumour of a slide, inside its tissue and the regions a person drew.

    Parameters
    ----------
    tissue
        In the slide's frame, at any resolution.
    model, coarse_model, nuclei_model
        The ``model.json`` of the network, of one that looks first at a coarser scale, and of one for nuclei whose
        answer is weighed against the network's (``ki67.nuclear_evidence``); None if there is none.
    geojson
        Regions in pixels of level 0; None where there are none.

    Raises
    ------
    SlideError
        If the slide cannot be decoded somewhere, or the regions cannot be understood.
    Ki67Error
        If the model is none of the method.
    """
    allowed = tissue
    if geojson is not None:
        allowed = _within_regions(slide, tissue, geojson, settings.mask_mpp)
        if settings.regions == "tumor" and draws_regions(geojson):
            return TumorMask(allowed, "roi")
    folders = [Path(one).parent if one else None for one in (coarse_model, nuclei_model)]
    return replace(
        _segment(slide, allowed, settings, Path(model).parent, *folders),
        excluded=excludes_regions(geojson),
        limited=geojson is not None,
    )


def carry_tumor_mask(
    slide: Slide,
    tissue: Mask,
    settings: TumorSettings,
    *,
    tumor_he: Mask,
    transform: Transform,
    geojson: str | None = None,
) -> TumorMask:
    """The tumour of the H&E slide on the Ki-67 slide, inside the tissue and the drawn regions of the latter.

    Parameters
    ----------
    slide, tissue
        The Ki-67 slide and its tissue.
    tumor_he
        In the H&E frame.
    transform
        From the H&E to the Ki-67 frame.
    geojson
        Regions in pixels of level 0 of the Ki-67 slide.

    Raises
    ------
    SlideError
        If the regions cannot be understood.
    """
    if geojson is not None:
        tissue = _within_regions(slide, tissue, geojson, settings.mask_mpp)
        if settings.regions == "tumor" and draws_regions(geojson):
            return TumorMask(tissue, "roi")
    carried = carry_mask(tumor_he, transform, tissue, slide.size_um)
    return TumorMask(carried, "he", excluded=excludes_regions(geojson), limited=geojson is not None)


def _within_regions(slide: Slide, tissue: Mask, geojson: str, mpp: float) -> Mask:
    width, height = (max(1, int(np.ceil(size / mpp - 1e-6))) for size in slide.size_um)
    region = region_mask(
        geojson, shape=(height, width), mpp=mpp, level0_mpp=slide.mpp, slide_id=slide.slide_id, stain=slide.stain
    )
    return within(region, tissue)


def _segment(
    slide: Slide,
    allowed: Mask,
    settings: TumorSettings,
    folder: Path,
    coarse_folder: Path | None,
    nuclei_folder: Path | None,
) -> TumorMask:
    from ki67.inference import Running  # torch takes seconds to import, and many slides do not come this far
    from ki67.networks import load_network
    from ki67.nuclear_evidence import NuclearEvidence
    from ki67.tumor import Cascade, segment_tumor

    device, precision = settings.device, settings.precision
    load = partial(load_tumor_network, settings.method, device=device, precision=precision)
    network, coarse = load(folder), load(coarse_folder) if coarse_folder else None
    nuclei = load_network(nuclei_folder, device=device, precision=precision) if nuclei_folder else None
    found = segment_tumor(
        slide,
        allowed,
        network,
        cascade=Cascade(coarse) if coarse else None,
        evidence=NuclearEvidence(nuclei) if nuclei else None,
        mask_mpp=settings.mask_mpp,
        threshold=settings.threshold,
        smallest_region_mm2=settings.smallest_region_mm2,
        smallest_hole_mm2=settings.smallest_hole_mm2,
        running=Running(batch_size=settings.batch_size, reader_threads=settings.reader_threads),
    )
    return TumorMask(
        mask=found.mask,
        source=slide.stain,
        probability=found.probability,
        model=network.identity,
        coarse_model=coarse.identity if coarse else None,
        nuclei_model=nuclei.identity if nuclei else None,
        fine_share=found.fine_share,
        statistics=found.statistics.to_json(),
    )
