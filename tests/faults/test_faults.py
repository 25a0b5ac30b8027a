"""What goes wrong on real machines, done on purpose: what is lost, what is said, and whether a second run completes it.

The table of docs/reliability.md has a line for each test. ``make faults`` runs them; they take minutes. The tumour is
drawn and nuclei are found by colour, as what is tested is the workflow around them: what a run with networks leaves when it
is killed is tested in ``tests/workflow/test_runs.py``.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.conftest import ROOT, Workflow, copy_clone, job_counts, kill_all

pytestmark = pytest.mark.faults

STAGES = ("check", "tumor", "register", "transfer", "nuclei", "index", "page")
ONCE = ("cohort", "report")
HEADER = "slide | ki67 | he | mpp_ki67 | roi_ki67 | roi_he"
PAIR = "slides/ki67.tif | slides/he.tif | | slides/ki67.geojson | slides/he.geojson"
ROWS = (f"G1 | {PAIR}", "B1 | slides/blank.tif | | 0.5 | |")
WITHOUT_NETWORKS = ('tumor={"regions": "tumor"}', 'nuclei={"method": "color_threshold"}')
SHEET = ("--config", "slides=slides.tsv", *WITHOUT_NETWORKS)
AN_HOUR_S = 3600


@dataclass(frozen=True)
class Cohort:
    """A good pair and a blank slide, in a folder of their own that a test may spoil."""

    workflow: Workflow
    table: bytes

    @property
    def folder(self) -> Path:
        return self.workflow.folder

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.workflow.run(*arguments, *SHEET, timeout_s=AN_HOUR_S)

    def completes(self, *arguments: str) -> dict[str, int]:
        """Run to the end, and compare the table with that of the undisturbed run; the jobs that ran, by rule."""
        result = self.run(*arguments)
        assert result.returncode == 0, result.stdout
        assert (self.folder / "results/cohort/cohort.csv").read_bytes() == self.table
        assert self.workflow.planned(*SHEET) == {}
        assert not list(self.folder.rglob(".partial*"))
        return job_counts(result.stdout)

    def rows(self) -> dict[str, dict[str, str]]:
        text = (self.folder / "results/cohort/cohort.csv").read_text(encoding="utf-8")
        return {row["slide"]: row for row in csv.DictReader(text.splitlines())}

    def files(self) -> dict[Path, tuple[int, int]]:
        """Size and date of every finished result."""
        found = (path for path in (self.folder / "results").rglob("*") if path.is_file())
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair and a blank slide."""
    folder = tmp_path_factory.mktemp("drawn") / "slides"
    options = ("--area-mm2", "1", "--workers", "1", "--seed", "11", "--ki67-fraction", "0.3", "--tumor-share", "0.6")
    command = [sys.executable, "-m", "ki67", "phantom", "--out", str(folder), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for stain in ("ki67", "he"):
        with tifffile.TiffFile(folder / f"{stain}.tif") as tiff:
            height, width = tiff.pages[0].shape[:2]
        corners = ((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3))
        ring = [[round(x * width), round(y * height)] for x, y in corners]
        (folder / f"{stain}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    blank = np.full((1024, 1024, 3), 244, dtype=np.uint8)
    tifffile.imwrite(folder / "blank.tif", blank, tile=(256, 256), photometric="rgb")
    return folder


@pytest.fixture(scope="session")
def scored(clone: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The cohort scored once without disturbance; tests take copies."""
    folder = tmp_path_factory.mktemp("scored") / "cohort"
    shutil.copytree(drawn, folder / "slides")
    workflow = Workflow(clone, folder)
    workflow.write_sheet(HEADER, *ROWS)
    result = workflow.run(*SHEET)
    assert result.returncode == 0, result.stdout
    return Cohort(workflow, (folder / "results/cohort/cohort.csv").read_bytes())


@pytest.fixture
def finished(scored: Cohort, tmp_path: Path) -> Cohort:
    """A copy of the scored cohort."""
    folder = tmp_path / "cohort"
    shutil.copytree(scored.folder, folder, symlinks=True)
    return Cohort(Workflow(scored.workflow.clone, folder), scored.table)


@pytest.fixture
def unscored(finished: Cohort) -> Cohort:
    """The same slides without results."""
    for name in ("results", "logs", ".snakemake"):
        shutil.rmtree(finished.folder / name)
    return finished


def wait_for(condition: Callable[[], object], run: subprocess.Popen[bytes]) -> None:
    """Wait until something is so while a run goes on."""
    for _ in range(60_000):
        if condition():
            return
        assert run.poll() is None, "the run ended before its time"
        time.sleep(0.01)
    raise AssertionError("waited for ten minutes")


def during(cohort: Cohort, condition: Callable[[], object], happens: Callable[[], object], *arguments: str) -> str:
    """Let something happen in the middle of a run, and tell what the run said to its end, which is a failure."""
    with cohort.workflow.started(*arguments, *SHEET) as run:
        wait_for(condition, run)
        happens()
        assert run.wait(timeout=900) != 0
    return (cohort.folder / "said").read_text(encoding="utf-8")


@contextmanager
def mounted(folder: Path, size_mb: int) -> Iterator[Path]:
    """A small disk of its own, where this account may mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def results_on_a_disk(cohort: Cohort, size_mb: int = 256) -> Iterator[Path]:
    """The results on a small disk of their own, all else where it was."""
    results, aside = cohort.folder / "results", cohort.folder / "aside"
    if results.exists():
        results.rename(aside)
    with mounted(results, size_mb) as disk:
        if aside.exists():
            shutil.copytree(aside, disk, dirs_exist_ok=True)
        yield disk


def fill(disk: Path) -> Path:
    """A file that takes all room that a disk has."""
    ballast = disk / "ballast"
    state = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize)
    return ballast


def test_a_run_killed_in_every_stage_goes_on_where_it_was(unscored: Cohort) -> None:
    """SIGKILL, nine times over, once in each stage; nothing that was finished is made again."""
    for stage in (*STAGES, *ONCE):
        log = unscored.folder / "logs" / stage / ("G1.log" if stage in STAGES else f"{stage}.log")
        before = set(unscored.folder.glob("results/*/*.json"))
        finished = {path: path.read_bytes() for path in before}
        assert not log.exists()  # no earlier run came to this stage, whatever the order of jobs
        with unscored.workflow.started("--cores", "1", "--until", stage, *SHEET) as run:
            wait_for(log.exists, run)
            kill_all(unscored.folder)
            assert run.wait(timeout=60) == -signal.SIGKILL
        assert {path: path.read_bytes() for path in before} == finished
        assert "--unlock" in unscored.run().stdout
        assert unscored.run("--unlock").returncode == 0
    assert set(unscored.completes()) <= {"report"}


def test_a_full_disk_stops_each_stage_with_one_sentence(unscored: Cohort) -> None:
    """The disk of the results is full when a stage writes; when there is room again, the next run goes on."""
    with results_on_a_disk(unscored) as disk:
        for stage in (*STAGES, *ONCE):
            name = "G1" if stage in STAGES else "cohort"
            before = unscored.files()
            ballast = fill(disk)
            # the check before the first job, which would refuse the run, is left out: the disk fills up later
            stopped = unscored.run("--no-hooks", "--until", stage)
            assert stopped.returncode != 0
            sentence = f"{name} {stage} failed: No space left on device: make room on the disk of the results and run"
            assert sentence in stopped.stdout, stopped.stdout
            assert "Traceback" not in stopped.stdout
            assert {path: state for path, state in unscored.files().items() if path in before} == before
            ballast.unlink()
            result = unscored.run("--until", stage)
            assert result.returncode == 0, result.stdout
            assert set(job_counts(result.stdout)) == {stage}
        unscored.completes()


def test_a_disk_without_room_is_refused_before_the_first_job(unscored: Cohort) -> None:
    with results_on_a_disk(unscored, size_mb=20):
        refused = unscored.run()
        assert refused.returncode != 0
        assert (
            "the disk of results/ has 20 MB left, less than a slide needs; make room before the run" in refused.stdout
        )
        assert unscored.files() == {}


def test_results_that_cannot_be_written_are_refused_before_the_first_job(finished: Cohort) -> None:
    """Snakemake itself refuses to write over files that it may not change."""
    with results_on_a_disk(finished) as disk:
        finished.workflow.write_sheet(HEADER, *ROWS, "B2 | slides/missing.tif | | | |")
        before = finished.files()
        remount(disk, "ro")
        refused = finished.run()
        assert refused.returncode != 0
        # of the two that would be written anew, Snakemake names the one that it comes to first
        assert re.search(r"Write-protected output files for rule (cohort|report):", refused.stdout), refused.stdout
        assert "Traceback" not in refused.stdout
        assert finished.files() == before
        finished.workflow.write_sheet(HEADER, *ROWS)
        assert finished.run().returncode == 0  # what is finished can still be asked for
        remount(disk, "rw")
        assert finished.completes() == {}


def test_a_new_folder_that_cannot_be_written_is_refused_before_the_first_job(unscored: Cohort) -> None:
    with results_on_a_disk(unscored) as disk:
        remount(disk, "ro")
        refused = unscored.run("--until", "check")
        assert refused.returncode != 0
        sentence = "nothing can be written to results/ (Read-only file system); make it writable or make room, or run"
        assert sentence in refused.stdout, refused.stdout
        assert "Traceback" not in refused.stdout
        remount(disk, "rw")
        assert unscored.run("--until", "check").returncode == 0


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_a_slide_deleted_during_the_run_costs_that_slide_alone_and_is_scored_when_it_is_back(unscored: Cohort) -> None:
    slide, kept = unscored.folder / "slides/he.tif", unscored.folder / "kept.tif"
    checked = unscored.folder / "results/G1/check.json"
    said = during(unscored, checked.exists, lambda: slide.rename(kept))
    assert "G1: the H&E slide was there when the run began and is gone; nothing is written of it" in said, said
    assert "Traceback" not in said
    assert checked.exists()
    assert not (unscored.folder / "results/G1/tumor_he.json").exists()
    assert (unscored.folder / "results/B1/ki67.json").exists()
    kept.rename(slide)
    assert "check" not in unscored.completes()


def test_a_slide_replaced_during_the_run_fails_its_stage_and_is_scored_anew(unscored: Cohort) -> None:
    """The other file is older than the first, so that its date tells nothing."""
    slide, other = unscored.folder / "slides/ki67.tif", unscored.folder / "slides/he.tif"
    checked = unscored.folder / "results/G1/check.json"

    def replace() -> None:
        shutil.copyfile(other, unscored.folder / "other.tif")
        os.utime(unscored.folder / "other.tif", (time.time() - AN_HOUR_S,) * 2)
        (unscored.folder / "other.tif").replace(slide)

    said = during(unscored, checked.exists, replace)
    assert "G1: the Ki-67 slide is not the file that the stage check saw; nothing is written of it" in said, said
    assert "Traceback" not in said
    assert (unscored.folder / "results/B1/ki67.json").exists()
    result = unscored.run()
    assert result.returncode == 0, result.stdout
    assert job_counts(result.stdout)["check"] == 1
    assert "wrong_stain" in unscored.rows()["G1"]["flags"]  # it is an H&E slide now


@pytest.mark.usefixtures("shipped_networks")
@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_damaged_weights_are_refused_before_the_first_job(unscored: Cohort, tmp_path: Path, damage: str) -> None:
    clone = copy_clone(tmp_path / "clone")
    models = clone / "resources/models"
    models.unlink()
    models.mkdir()
    for network in (ROOT / "resources/models").iterdir():
        (models / network.name).symlink_to(network)
    (models / "nuclei").unlink()
    shutil.copytree(ROOT / "resources/models/nuclei", models / "nuclei")
    weights = bytearray((models / "nuclei/weights.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (models / "nuclei/weights.safetensors").write_bytes(weights if damage == "altered" else weights[:-1])
    workflow, with_networks = Workflow(clone, unscored.folder), ("--config", "slides=slides.tsv")
    refused = workflow.run(*with_networks)
    assert refused.returncode != 0
    assert "network nuclei: weights.safetensors has sha256 " in refused.stdout, refused.stdout
    assert "the file was changed or cut off, fetch or train it again" in refused.stdout, refused.stdout
    assert not (unscored.folder / "results").exists()
    shutil.copy2(ROOT / "resources/models/nuclei/weights.safetensors", models / "nuclei")
    assert workflow.run("--until", "check", *with_networks).returncode == 0


def test_a_second_run_in_the_folder_is_refused_and_the_first_one_finishes(finished: Cohort) -> None:
    shutil.rmtree(finished.folder / "results/cohort")
    locks = finished.folder / ".snakemake/locks"
    with finished.workflow.started(*SHEET) as first:
        wait_for(lambda: any(locks.glob("*.output.lock")), first)
        second = finished.run()
        assert second.returncode != 0
        assert "Directory cannot be locked. Please make sure that no other Snakemake process" in second.stdout, (
            second.stdout
        )
        assert first.wait(timeout=300) == 0
    assert finished.completes() == {}


def test_a_slide_from_the_future_is_refused_before_the_first_job(unscored: Cohort) -> None:
    slide = unscored.folder / "slides/he.tif"
    os.utime(slide, (time.time() + AN_HOUR_S,) * 2)
    refused = unscored.run("--until", "check")
    assert refused.returncode != 0
    assert "G1: he.tif is dated " in refused.stdout, refused.stdout
    assert "which is in the future; correct the clock of this machine, or the date of the file" in refused.stdout, (
        refused.stdout
    )
    slide.touch()
    assert unscored.run("--until", "check").returncode == 0


def test_a_clock_set_back_during_the_run_costs_a_job_and_the_next_run_repeats_nothing_finished(
    unscored: Cohort,
) -> None:
    """The stage check was an hour ahead of the stages after it."""
    outputs = unscored.folder / "results/G1"

    def set_ahead() -> None:
        for path in outputs.iterdir():
            os.utime(path, (time.time() + AN_HOUR_S,) * 2)

    done = unscored.folder / "logs/tumor/G1.log"
    said = during(unscored, done.exists, set_ahead)
    assert "This could indicate a clock skew problem" in said, said
    assert (outputs / "check.json").exists()
    assert "check" not in unscored.completes()


def test_a_thousand_rows_of_which_fifty_are_broken_become_a_table_of_a_thousand(finished: Cohort) -> None:
    """Of the good ones 949 are copies of what the pair left; the broken ones and the tables are computed."""
    folder, count, broken = finished.folder, 1000, 50
    draw = random.Random(8)
    numbers = sorted(draw.sample(range(count), broken))
    whole = (folder / "slides/ki67.tif").read_bytes()
    rows, reasons = [], {}
    for number in range(count):
        slide = f"S{number:04d}"
        if number in numbers:
            name, content, flag = BROKEN[len(reasons) % len(BROKEN)]
            if content is not None:
                (folder / "slides" / f"{slide}_{name}").write_bytes(content(whole))
            rows.append(f"{slide} | slides/{slide}_{name} | | | |")
            reasons[slide] = flag
        else:
            copy_results(folder, "G1", slide)
            rows.append(f"{slide} | {PAIR}")
    finished.workflow.write_sheet(HEADER, *rows)
    # the copies were made by no job: dates alone decide what is to be done
    result = finished.run("--rerun-triggers", "mtime")
    assert result.returncode == 0, result.stdout
    assert job_counts(result.stdout) == dict.fromkeys(STAGES, broken) | dict.fromkeys(ONCE, 1)
    table = finished.rows()
    assert list(table) == [f"S{number:04d}" for number in range(count)]
    assert {slide: row["flags"].split(";")[0] for slide, row in table.items() if not row["index"]} == reasons
    assert len({row["index"] for row in table.values() if row["index"]}) == 1
    assert all(slide in row["reasons"] for slide, row in table.items() if slide in reasons)


BROKEN: tuple[tuple[str, Callable[[bytes], bytes] | None, str], ...] = (
    ("cut.tif", lambda whole: whole[: len(whole) // 2], "unreadable"),
    ("empty.svs", lambda whole: b"", "unreadable"),
    ("text.svs", lambda whole: b"This is no slide.\n" * 50, "unreadable"),
    ("missing.svs", None, "missing_file"),
    ("head.tif", lambda whole: whole[:16] + bytes(2048) + whole[2064:], "unreadable"),
)


def copy_results(folder: Path, slide: str, name: str) -> None:
    """What a slide left, under another id; files that do not tell the id are the same ones."""
    target = folder / "results" / name
    shutil.copytree(folder / "results" / slide, target, copy_function=os.link)
    for path in (target / "ki67.json", target / "check.json", target / "page.json"):
        state, record = path.stat(), json.loads(path.read_text(encoding="utf-8"))
        record |= {"slide": name} | ({"patient": name} if "patient" in record else {})
        path.unlink()
        path.write_text(json.dumps(record), encoding="utf-8")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


WEIRD = (
    "two  spaces.tif",
    "-rf.tif",
    "$(touch hacked).tif",
    "`touch hacked`;.tif",
    "a'b\"c.tif",
    "[1] *?.tif",
    "back\\slash.tif",
    "100%25 #1.tif",
    "Präparat Ωß 切片 🔬.tif",
    f"{'long' * 60}.tif",
    "no suffix",
)


def test_slides_may_be_called_anything(clone: Path, drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's {a} $HOME; folder"
    folder.mkdir()
    workflow = Workflow(clone, folder)
    for name in WEIRD:
        shutil.copyfile(drawn / "blank.tif", folder / name)
    workflow.write_sheet(HEADER, *(f"W{number} | {quoted(name)} | | 0.5 | |" for number, name in enumerate(WEIRD)))
    result = workflow.run("--until", "check", *SHEET)
    assert result.returncode == 0, result.stdout
    for number in range(len(WEIRD)):
        record = json.loads((folder / f"results/W{number}/check.json").read_text(encoding="utf-8"))
        assert [finding["flag"] for finding in record["findings"]] == ["no_he", "no_tissue"]
    assert not list(tmp_path.rglob("hacked"))
    assert workflow.planned("--until", "check", *SHEET) == {}


def quoted(name: str) -> str:
    """A cell of the sheet that holds a quotation mark, as spreadsheets write it."""
    return '"' + name.replace('"', '""') + '"' if '"' in name else name
