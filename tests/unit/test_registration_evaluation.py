from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.registration import Registration
from ki67.registration_evaluation import LandmarkPair, evaluate_pair, read_landmark_pairs

REAL_PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "registration" / "pairs.csv"
POINTS = np.random.default_rng(3).uniform([60, 50], [190, 150], (12, 2))
COLUMNS = "pair,fixed,moving,fixed_landmarks,moving_landmarks,landmark_scale,mpp"


def drawn_image():
    """A section of 1.2 mm with dense nests, at 8 µm/px."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:200, :260]
    tissue = np.hypot((x - 130) / 100, (y - 100) / 80) + 0.3 * gaussian_filter(generator.normal(size=x.shape), 8) < 1
    nests = gaussian_filter(generator.normal(size=x.shape), 4) > 0.03
    texture = gaussian_filter(generator.normal(size=x.shape), 1)
    density = tissue[..., None] * (0.12 + nests[..., None] * [0.3, 0.4, 0.2] + 0.1 * texture[..., None])
    return (245 * 10.0 ** -np.clip(density, 0, 2)).astype(np.uint8)


def quarter_turned(points):
    """Where ``np.rot90`` takes points of the drawn image."""
    return np.column_stack([points[:, 1], 260 - points[:, 0]])


def write_points(path, points):
    rows = "".join(f"{number},{x:.3f},{y:.3f}\n" for number, (x, y) in enumerate(points, start=1))
    path.write_text(",X,Y\n" + rows, encoding="utf-8")


@pytest.fixture
def pairs_table(tmp_path):
    image = drawn_image()
    Image.fromarray(image).save(tmp_path / "one.png")
    Image.fromarray(np.rot90(image)).save(tmp_path / "two.png")
    write_points(tmp_path / "one.csv", POINTS * 2)
    write_points(tmp_path / "two.csv", np.vstack([quarter_turned(POINTS), [[1, 1]]]) * 2)
    table = tmp_path / "pairs.csv"
    table.write_text(f"{COLUMNS}\nturned,one.png,two.png,one.csv,two.csv,0.5,8\n", encoding="utf-8")
    return table


def test_landmarks_of_a_turned_image_meet_and_the_record_has_every_key(pairs_table, tmp_path):
    out = tmp_path / "X.json"
    result = CliRunner().invoke(app, ["evaluate", "registration", str(pairs_table), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (record,) = json.loads(out.read_text())["pairs"]
    assert record["pair"] == "turned"
    assert record["median_px"] < 0.5
    assert record["median_um"] == pytest.approx(8 * record["median_px"])
    assert record["max_px"] >= record["p90_px"] >= record["median_px"]
    assert record["best_rigid_median_px"] < 0.01
    assert record["best_affine_median_px"] < 0.01
    assert record["initial_median_px"] > 50
    assert record["landmarks"] == 12
    assert record["verdict"] == "accepted"
    assert record["estimated_error_um"] < 10
    assert record["seconds"] > 0
    assert record["perturbed"] == []
    assert "turned" in result.output


def test_landmarks_outside_an_image_do_not_count(monkeypatch):
    monkeypatch.setattr(
        "ki67.registration_evaluation.register", lambda *_, **__: Registration(None, "rejected", "for the test")
    )
    image = drawn_image()
    outside = np.vstack([POINTS, [[300.0, 20.0]], [[-1.0, 5.0]]])
    record = evaluate_pair(LandmarkPair("p", image, np.rot90(image), outside, quarter_turned(outside), 8.0))
    assert record["landmarks"] == 12
    assert record["median_px"] is None
    assert record["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "two.png").write_text("no image"), "two.png cannot be read as an image"),
        (lambda folder: (folder / "one.csv").unlink(), "one.csv cannot be read as a table"),
        (lambda folder: write_cell(folder, "mpp", ""), "pairs.csv, pair turned: mpp is ''; it must be above 0"),
        (lambda folder: write_cell(folder, None, None), "pairs.csv has no row with mpp; it needs the columns pair"),
        (lambda folder: (folder / "one.csv").write_text("X,Y\n1,a\n"), "one.csv: a landmark is not a number"),
    ],
)
def test_a_mistake_in_the_table_is_one_sentence(pairs_table, change, message):
    change(pairs_table.parent)
    with pytest.raises(Ki67Error, match=message):
        list(read_landmark_pairs(pairs_table))


def write_cell(folder, column, value):
    """Set a cell of the table of pairs, or drop its last column."""
    with (folder / "pairs.csv").open() as file:
        (record,) = csv.DictReader(file)
    record = record | {column: value} if column else {name: record[name] for name in list(record)[:-1]}
    (folder / "pairs.csv").write_text(f"{','.join(record)}\n{','.join(record.values())}\n")


@pytest.mark.skipif(not REAL_PAIRS.is_file(), reason="the shared dataset of real serial sections is not here")
@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))])
def test_real_serial_sections_come_near_the_best_rigid_fit(number):
    pair = list(read_landmark_pairs(REAL_PAIRS))[number]
    record = evaluate_pair(pair)
    assert record["verdict"] in {"accepted", "doubtful"}, record["reason"]
    assert record["median_px"] < 1.25 * record["best_rigid_median_px"]
