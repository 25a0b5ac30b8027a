from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.stain import HED_VECTORS
from ki67.stain_evaluation import evaluate_stain, stained_images

GROUND = {"he": (0.1, 0.25, 0), "ki67": (0.15, 0, 0.02)}


def write_field(path, stain):
    amounts = np.array(GROUND[stain]) * np.random.default_rng(0).lognormal(0, 0.5, (256, 256, 1))
    Image.fromarray((255 * 10 ** -(amounts @ HED_VECTORS)).astype(np.uint8)).save(path)
    return path


def write_dataset(folder, stains, **record):
    (folder / "images").mkdir(parents=True)
    for number, stain in enumerate(stains):
        write_field(folder / "images" / f"{number}.png", stain)
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    return str(folder)


def test_right_and_wrong_stains_are_counted_by_folder(tmp_path):
    he = write_dataset(tmp_path / "fields_he", ["he", "he"], stain="he", mpp=0.5)
    mixed = write_dataset(tmp_path / "fields_ki67", ["ki67", "he", "ki67", "ki67"], stain="ki67", mpp=0.5)
    result = evaluate_stain([stained_images(he), stained_images(mixed)])
    assert [row["share_right"] for row in result["folders"]] == [1.0, 0.75]
    assert {name: result["pooled"][name] for name in ("images", "right", "wrong", "unknown")} == {
        "images": 6,
        "right": 5,
        "wrong": 1,
        "unknown": 0,
    }
    assert result["images"][3] | {"confidence": 1, "score": 0} == {
        "folder": "fields_ki67",
        "name": "1.png",
        "expected": "ki67",
        "found": "he",
        "confidence": 1,
        "score": 0,
        "flags": ["wrong_stain"],
    }


def test_a_single_image_without_a_scale_is_taken_with_its_stain(tmp_path):
    path = write_field(tmp_path / "field.png", "ki67")
    assert evaluate_stain([stained_images(f"ki67={path}")])["pooled"]["right"] == 1


def test_an_unreadable_image_is_counted_and_not_right(tmp_path):
    (tmp_path / "field.png").write_text("no image")
    result = evaluate_stain([stained_images(f"he={tmp_path}")])
    assert result["images"][0]["found"] == "unreadable"
    assert (result["pooled"]["right"], result["pooled"]["unknown"]) == (0, 1)


def test_a_folder_of_unknown_stain_is_refused(tmp_path):
    folder = write_dataset(tmp_path / "mixed", ["he"], stain="he or hematoxylin", mpp=0.5)
    with pytest.raises(Ki67Error, match="mixed: no dataset.yaml says whether its stain is he or ki67; write he=PATH"):
        stained_images(folder)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(Ki67Error, match="holds no image; give a slide, an image, or a folder with images"):
        stained_images(f"he={tmp_path}")


def test_the_command_prints_a_table_and_writes_every_image(tmp_path):
    folder = write_dataset(tmp_path / "fields_he", ["he"], stain="he", mpp=3.5)
    result = CliRunner().invoke(app, ["evaluate", "stain", folder, "--out", str(tmp_path / "stain.json")])
    assert result.exit_code == 0
    assert result.output.splitlines()[1].split("\t")[:4] == ["fields_he", "he", "1", "1"]
    assert json.loads((tmp_path / "stain.json").read_text())["images"][0]["found"] == "he"
