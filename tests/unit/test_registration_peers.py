import sys

import numpy as np
import pytest
import typer

from benchmarks.registration_peers.cases import Case, make_cases
from benchmarks.registration_peers.compare import Tool, command_of, parse_tools, run_tool
from benchmarks.registration_peers.jobs import Found, Job, answer, from_centres, mirrored
from benchmarks.registration_peers.table import HEADER, measure, summaries, summary, summary_table
from ki67.errors import Ki67Error
from ki67.landmarks import distances, fit_rigid
from ki67.registration_evaluation import LandmarkPair

JOB = Job("fixed.png", "moving.png", 4.0)
FIXED = np.array([[10.0, 10.0], [90.0, 10.0], [90.0, 60.0], [10.0, 60.0], [40.0, 30.0]])
SHIFT = np.array([[1.0, 0.0, 5.0], [0.0, 1.0, -3.0], [0.0, 0.0, 1.0]])


def case(noise=1.0):
    """Landmarks shifted by 5 and -3 px, the first four of them moved 1 px to either side."""
    outwards = np.array([[-1.0, 0], [1, 0], [-1, 0], [1, 0], [0, 0]]) * noise
    return Case("A", 0, JOB, FIXED, FIXED + SHIFT[:2, 2] + outwards, {"mirror": False})


def answered(matrix, seconds=2.0, error=None):
    return {"matrix": matrix, "seconds": seconds, "error": error, "details": {}}


def run(ratio, pair="A", seconds=1.0):
    return {"pair": pair, "ratio": ratio, "seconds": seconds, "error": None if ratio is not None else "raised"}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_best_rigid_transform_has_ratio_one_and_another_one_more():
    record = measure(answered(SHIFT.tolist()), case())
    assert record["median_px"] == pytest.approx(1)
    assert record["ratio"] == pytest.approx(record["median_px"] / record["best_rigid_median_px"])
    further = SHIFT + np.array([[0, 0, 10], [0, 0, 0], [0, 0, 0]])
    assert measure(answered(further.tolist()), case())["ratio"] > 5
    assert record["perturbed_by"] == {"mirror": False}
    assert record["landmarks"] == 5


def test_a_run_without_a_transform_has_no_error_but_a_sentence():
    record = measure(answered(None, None, "RuntimeError: too few samples"), case())
    assert record["median_px"] is None
    assert record["ratio"] is None
    assert record["best_rigid_median_px"] > 0
    assert record["error"] == "RuntimeError: too few samples"


def test_a_run_without_a_transform_counts_as_further_off_than_any_other():
    found = summary([run(1.0), run(1.5), run(None, seconds=None)])
    assert found["share_near"] == pytest.approx(1 / 3)
    assert found["share_far"] == pytest.approx(2 / 3)
    assert found["median_ratio"] == 1.5
    assert found["median_seconds"] == 1.0
    assert found["no_transform"] == 1


def test_there_is_no_median_where_half_of_the_runs_have_no_transform():
    assert summary([run(1.0), run(None)])["median_ratio"] is None
    assert summary([run(None, seconds=None)] * 2)["median_seconds"] is None


def test_there_is_a_line_for_every_pair_and_one_for_all():
    rows = summaries("Tool 1", [run(1.0, "A"), run(1.1, "A"), run(3.0, "B"), run(None, "B", None)])
    header, _, *lines = summary_table(rows).splitlines()
    assert cells(header) == list(HEADER)
    assert [cells(line)[1] for line in lines] == ["A", "B", "all"]
    assert cells(lines[0]) == ["Tool 1", "A", "2", "100%", "1.05", "100%", "1.0", "0"]
    assert cells(lines[1]) == ["Tool 1", "B", "2", "0%", "–", "0%", "1.0", "1"]
    assert cells(lines[2]) == ["Tool 1", "all", "4", "50%", "2.05", "50%", "1.0", "1"]


def test_a_half_turn_about_pixel_centres_maps_the_corners_of_the_image_onto_each_other():
    turned = from_centres(np.array([[-1.0, 0, 9], [0, -1, 19]]))
    assert turned @ [0, 0, 1] == pytest.approx([10, 20, 1])


def test_a_mirror_image_maps_the_left_edge_onto_the_right_one():
    assert mirrored(10) @ [0, 7, 1] == pytest.approx([10, 7, 1])


def test_what_a_tool_raises_is_the_error_of_its_answer(capsys):
    def broken(job):
        raise RuntimeError("no overlap")

    assert answer(JOB, broken) == {"matrix": None, "seconds": None, "details": {}, "error": "RuntimeError: no overlap"}
    assert "no overlap" in capsys.readouterr().err
    assert answer(JOB, lambda job: Found(None, 3.0))["error"] == "no transform found"
    assert answer(JOB, lambda job: Found(SHIFT, 3.0, {"inliers": 9})) == {
        "matrix": SHIFT.tolist(),
        "seconds": 3.0,
        "details": {"inliers": 9},
        "error": None,
    }


def drawn_pair(landmarks):
    rgb = np.full((120, 160, 3), 240, dtype=np.uint8)
    rgb[30:90, 40:120] = (150, 60, 120)
    return LandmarkPair("A", rgb, rgb.copy(), landmarks, landmarks, 8.0)


def test_landmarks_follow_the_image_when_it_is_perturbed(tmp_path):
    points = np.array([[40.0, 30.0], [120.0, 30.0], [120.0, 90.0], [40.0, 90.0], [80.0, 60.0], [200.0, 60.0]])
    plain, *perturbed = make_cases([drawn_pair(points)], 3, tmp_path)
    assert plain.perturbation is None
    assert np.array_equal(plain.moving_px, points[:5])  # the last lies outside
    assert [made.perturbation for made in perturbed] == [0, 1, 2]
    for made in perturbed:
        assert 3 <= len(made.fixed_px) == len(made.moving_px)
        fit = fit_rigid(made.fixed_px, made.moving_px)
        assert distances(fit, made.fixed_px, made.moving_px) == pytest.approx(0, abs=1e-6)
        assert made.job.moving != plain.job.moving


def test_too_few_landmarks_are_refused(tmp_path):
    with pytest.raises(Ki67Error, match="2 landmarks lie inside"):
        list(make_cases([drawn_pair(np.array([[40.0, 30.0], [50.0, 50.0]]))], 0, tmp_path))


CRASHING = """
import json, os, pathlib, sys
answers = []
for job in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    if job["mpp"] == 4:
        print("out of memory", flush=True)
        os._exit(3)
    answers.append({"matrix": None, "seconds": job["mpp"], "details": {}, "error": "no transform found"})
    pathlib.Path(sys.argv[2]).write_text(json.dumps({"tool": "Tool", "version": "1", "answers": answers}))
"""


def test_a_job_that_ends_the_program_says_how_and_the_next_is_done_all_the_same(tmp_path):
    jobs = [Job("", "", mpp) for mpp in (1.0, 4.0, 4.0, 2.0)]
    result = run_tool(Tool.SIFT, [sys.executable, "-c", CRASHING], jobs, tmp_path, threads=1)
    assert (result["tool"], result["version"]) == ("Tool", "1")
    assert [found["seconds"] for found in result["answers"]] == [1, None, None, 2]
    assert [found["error"] for found in result["answers"][1:3]] == ["stopped with status 3: out of memory"] * 2


def test_a_peer_without_its_environment_is_refused(tmp_path):
    with pytest.raises(Ki67Error, match="sift has no environment"):
        command_of(Tool.SIFT, tmp_path)


def test_tools_are_named_with_commas_between_them():
    assert parse_tools("ours, sift") == [Tool.OURS, Tool.SIFT]
    with pytest.raises(typer.BadParameter, match="the tools are ours, valis, sift, elastix"):
        parse_tools("ours,other")
