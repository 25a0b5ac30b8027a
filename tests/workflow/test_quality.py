"""The linters, the formatters and the type checker find nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        "ruff check",
        "ruff format --check",
        "snakefmt --check Snakefile workflow",
        "mypy",
        "snakemake --lint",
    ],
)
def test_a_tool_finds_nothing(command: str) -> None:
    program, *arguments = command.split()
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed; run: make setup-test")
    found = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_scripts_stay_thin() -> None:
    for script in (ROOT / "workflow" / "scripts").glob("*.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 40, f"{script.name} has more than 40 lines"


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git clone")
    words = ["/" + "work/", "/" + "root/"]
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in {".safetensors", ".png", ".jpg", ".tif"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(word in text for word in words), name
