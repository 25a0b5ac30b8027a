"""What jobs ask for: memory and time by the size of the slide, threads by the cores and the slides."""

from __future__ import annotations

import re

import pytest

from tests.conftest import Workflow

GB = 10**9


def requests(workflow: Workflow, *arguments: str) -> dict[str, dict[str, int]]:
    """By rule and slide, what each job would ask for."""
    said = workflow.run("--dry-run", "--config", "slides=slides.tsv", *arguments).stdout
    found = {}
    for block in said.split("\nrule ")[1:]:
        rule, _, text = block.partition(":\n")
        slide = re.search(r"wildcards: slide=(\w+)", text)
        threads = re.search(r"threads: (\d+)", text)
        told = re.findall(r"(\w+)=(\d+)", text[text.index("resources:") :].splitlines()[0])
        asked = {name: int(value) for name, value in told} | {"threads": int(threads[1]) if threads else 1}
        found[f"{rule} {slide[1]}" if slide else rule] = asked
    assert found, said
    return found


@pytest.fixture
def sized(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """Slides of 0, 1 and 2 GB, the last in several files, which are holes on the disk."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parts = {"none.tif": 0, "one.tif": GB, "many.mrxs": 0, "many/Data0000.dat": GB, "many/Data0001.dat": GB}
    for name, size in parts.items():
        path = workflow.folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    workflow.write_sheet("slide | ki67", "A | none.tif", "B | one.tif", "C | many.mrxs")
    return workflow


def test_memory_and_time_follow_the_size_of_the_slide(sized: Workflow) -> None:
    asked = requests(sized, "--resources", "mem_mb=1000000")
    for rule in ("check", "register", "tumor", "transfer", "nuclei", "index", "page"):
        for name in ("mem_mb", "runtime"):
            none, one, two = (asked[f"{rule} {slide}"][name] for slide in "ABC")
            assert one > none
            assert two - one == one - none
    assert asked["check B"]["mem_mb"] == 3000
    assert asked["nuclei B"]["runtime"] == 180


@pytest.mark.parametrize(("cores", "threads"), [(2, 1), (8, 3), pytest.param(64, 8, marks=pytest.mark.slow)])
def test_without_a_gpu_slides_share_the_cores(sized: Workflow, cores: int, threads: int) -> None:
    asked = requests(sized, "--cores", str(cores))
    assert {asked[f"{rule} A"]["threads"] for rule in ("tumor", "transfer", "nuclei")} == {threads}
    assert asked["nuclei A"]["gpu"] == 0


def test_no_job_asks_for_more_memory_than_the_machine_has(sized: Workflow) -> None:
    asked = requests(sized, "--resources", "mem_mb=2500")
    assert asked["nuclei C"]["mem_mb"] == 2500
