"""Mistakes in the sheet or the settings: one sentence, no traceback, and no job starts."""

from __future__ import annotations

import pytest

from tests.conftest import Workflow

HEADER = "slide | ki67 | he | reference_index"


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        (
            HEADER,
            ["S01 | a.svs | |", "S01 | b.svs | |"],
            "slides.tsv row 3 (S01): the id is already used in row 2; give every slide an id of its own",
        ),
        (
            HEADER,
            ["S01/a | a.svs | |"],
            "slides.tsv row 2 (S01/a): slide is 'S01/a'; write an id of at most 100 letters, digits, dots, dashes",
        ),
        (HEADER, ["../x | a.svs | |"], "slides.tsv row 2 (../x): slide is '../x'; write an id"),
        (HEADER, ["cohort | a.svs | |"], "slides.tsv row 2 (cohort): the id 'cohort' is taken by the workflow itself"),
        (HEADER, ["S01 | a.svs | | 15"], "slides.tsv row 2 (S01): reference_index is 15; write 0.15"),
        (HEADER, ["S01 | | | 0.1"], "slides.tsv row 2 (S01): he (H&E) and ki67 (Ki-67) are both empty; write the path"),
        (
            "slide | ki67 | H&E",
            ["S01 | a.svs | b.svs"],
            "unknown column 'H&E' in slides.tsv; known are slide, ki67, he",
        ),
        (
            "slide | ki67 | mpp_ki76",
            ["S01 | a.svs | 0.5"],
            "unknown column 'mpp_ki76' in slides.tsv; did you mean 'mpp_ki67'?",
        ),
    ],
)
def test_a_mistake_in_the_sheet(workflow: Workflow, header: str, rows: list[str], sentence: str) -> None:
    sheet = workflow.write_sheet(header, *rows)
    refused(workflow, sentence, f"slides={sheet.name}")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("tumour={}", "unknown key 'tumour' of config.yaml; did you mean 'tumor'?"),
        ("keep=everything", "config.yaml: keep is 'everything'; write tables or masks or probabilities"),
        (
            'nuclei={"method": "cellpose"}',
            "config.yaml: nuclei.method is 'cellpose'; write unet_resnet34 or unet_resnet50 or color_threshold or random_f",
        ),
        (
            'nuclei={"method": "stardist", "second_opinion": "stardist"}',
            "nuclei.second_opinion is stardist, and so is nuclei.method; set one of them to another method, or nuclei",
        ),
        (
            'index={"second_opinion_differs": "often"}',
            "config.yaml: index.second_opinion_differs is 'often'; write a difference such as 0.05, or interval",
        ),
        (
            'index={"second_opinion_differs": 5}',
            "config.yaml: index.second_opinion_differs is '5'; write ",
        ),
        (
            'tumor={"method": "stardist"}',
            "config.yaml: tumor.method is 'stardist'; write unet_densenet121 or patches_googlenet",
        ),
        (
            'train={"tumor_he_patches": {"patches_per_slide": 0}}',
            "config.yaml: train.tumor_he_patches.patches_per_slide is '0'; write a whole number of at least 1",
        ),
        ("slides=absent.tsv", "there is no sample sheet absent.tsv; set slides to the path of one"),
        (
            "on_missing=stop",
            "slides.tsv row 2 (S01): ki67 names a.svs, which is not a file; correct the path, or set on_missing: row",
        ),
    ],
)
def test_a_mistake_in_the_settings(workflow: Workflow, setting: str, sentence: str) -> None:
    sheet = workflow.write_sheet("slide | ki67", "S01 | a.svs")
    refused(workflow, sentence, f"slides={sheet.name}", setting)


def test_a_tag_in_the_settings_runs_nothing(workflow: Workflow) -> None:
    """YAML may ask for objects of Python; only plain values are taken."""
    settings = workflow.folder / "tags.yaml"
    settings.write_text("keep: !!python/object/apply:os.system ['touch hacked']\n", encoding="utf-8")
    result = workflow.run("--configfile", str(settings))
    assert result.returncode != 0
    assert "Config file is not valid JSON or YAML" in result.stdout
    assert "Traceback" not in result.stdout
    assert not (workflow.folder / "hacked").exists()


def refused(workflow: Workflow, sentence: str, *settings: str) -> None:
    result = workflow.ask("--config", *settings)
    assert result.returncode != 0
    assert sentence in result.stdout
    assert "Traceback" not in result.stdout
    assert not (workflow.folder / "results").exists()
    assert not (workflow.folder / "logs").exists()
