"""Patch pairs of drawn slides, from the sample sheet to the disk; tumour is given and nuclei are found by colour."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from ki67.geometry import RigidTransform
from ki67.prediction.patch_pairs import PatchPairs, read_patch_pairs
from tests.conftest import Workflow, copy_clone, draw, run_in

HEADER = "slide | patient | he | ki67 | roi_he | roi_ki67"
SMALL = "Präparat 1/H&E.tif | Präparat 1/Ki 67.tif | pair/truth/tumor_he.geojson | pair/truth/tumor_ki67.geojson"
ROWS = (
    "A | P1 | large/he.tif | large/ki67.tif | large/truth/tumor_he.geojson | large/truth/tumor_ki67.geojson",
    f"B | P2 | {SMALL}",
    "C | P3 | large/he.tif | | large/truth/tumor_he.geojson |",
    "D | P4 | absent.tif | large/ki67.tif | | large/truth/tumor_ki67.geojson",
)
SETTINGS = ("slides=slides.tsv", "tumor={'regions': 'tumor'}", "nuclei={'method': 'color_threshold'}")
MARKER = "marker={'name': 'ER'}"


@dataclass(frozen=True)
class Made:
    """A folder in which pairs were made."""

    folder: Path

    def pairs(self, slide: str) -> PatchPairs:
        return read_patch_pairs(self.folder / "results" / slide / "pairs.zarr")

    def record(self, slide: str, name: str = "pairs") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "results" / slide / f"{name}.json").read_text())
        return found


@pytest.fixture(scope="module")
def made(slides: Path, shipped_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pairs")
    workflow = run_in(copy_clone(folder / "clone"), slides, folder / "run", ())
    turned = ("--area-mm2", "2", "--tumor-share", "0.5", "--ki67-fraction", "0.3", "--rotation-deg", "50")
    draw(workflow.folder / "large", *turned, "--stain-strength", "1", "--seed", "1", "--mpp", "0.5")
    workflow.write_sheet(HEADER, *ROWS)
    finish(workflow)
    return Made(workflow.folder)


def finish(workflow: Workflow) -> None:
    result = workflow.run("--config", *SETTINGS, MARKER, "--", "predict_pairs")
    assert result.returncode == 0, result.stdout


def test_labels_follow_the_true_nuclei_at_the_same_place(made: Made) -> None:
    pairs = made.pairs("A")
    truth = made.folder / "large" / "truth"
    transform = RigidTransform.from_json(json.loads((truth / "transform.json").read_text()))
    nuclei = pd.read_parquet(truth / "nuclei.parquet").query("kind == 'tumor'")
    on_he = transform.inverse().apply(nuclei[["x_um", "y_um"]].to_numpy())
    half = pairs.mpp * pairs.he.shape[1] / 2
    shares = []
    for center in pairs.center_um[pairs.labelled]:
        shares.append(nuclei["positive"][(np.abs(on_he - center) < half).all(axis=1)].mean())
    assert pairs.labelled.sum() >= 15
    assert np.corrcoef(pairs.label[pairs.labelled], shares)[0, 1] > 0.6
    assert np.abs(pairs.label[pairs.labelled] - shares).mean() < 0.1


def test_only_a_slide_whose_registration_was_accepted_has_labels(made: Made) -> None:
    assert made.record("A", "transform")["verdict"] == "accepted"
    assert made.record("A")["labelled"] == made.pairs("A").labelled.sum() > 0
    assert made.record("B", "transform")["verdict"] == "doubtful"
    for slide, reason in (("B", "registration_doubtful"), ("C", "no_ki67")):
        pairs = made.pairs(slide)
        assert len(pairs) > 10
        assert not pairs.labelled.any()
        assert pairs.rejected == {reason: len(pairs)} == made.record(slide)["rejected"]
    np.testing.assert_array_equal(
        sorted(made.pairs("C").center_um.tolist()), sorted(made.pairs("A").center_um.tolist())
    )


def test_a_slide_without_an_h_and_e_has_no_patches(made: Made) -> None:
    assert len(made.pairs("D")) == 0
    assert made.record("D")["patches"] == 0


def test_pairs_know_patient_marker_and_index_of_the_slide(made: Made) -> None:
    pairs, index = made.pairs("A"), made.record("A", "ki67")
    assert (pairs.slide, pairs.patient, pairs.marker) == ("A", "P1", "ER")
    assert pairs.slide_index == index["index"]
    assert index["marker"] == "ER"
    assert made.pairs("C").slide_index is None


def test_the_ki67_slide_is_kept_where_it_fits(made: Made) -> None:
    stores = {slide: zarr.open_group(made.folder / "results" / slide / "pairs.zarr", mode="r") for slide in "AB"}
    assert stores["A"]["ki67"].shape == stores["A"]["he"].shape
    assert "ki67" not in stores["B"]
