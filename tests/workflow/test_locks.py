"""What is installed is what the lock files say, and every rule's environment holds what its script imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from ki67.provenance import import_closure

ROOT = Path(__file__).resolve().parents[2]


def test_the_lock_files_are_closed_and_hold_nothing_more() -> None:
    found = subprocess.run(
        [sys.executable, ROOT / ".ci" / "lock.py", "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_the_environments_have_the_versions_of_the_lock_file() -> None:
    locked = set((ROOT / "requirements.lock").read_text().splitlines())
    for path in (ROOT / "envs").glob("*.yaml"):
        environment = yaml.safe_load(path.read_text())
        assert "nodefaults" in environment["channels"]
        (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
        assert set(pip) <= locked, path.name


def rules_with_scripts() -> list[tuple[str, str, str]]:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
    pattern = r"^rule (\w+):.*?envs/(\w+)\.yaml.*?scripts/(\w+)\.py"
    return [found for text in texts for found in re.findall(pattern, text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize(("rule", "environment", "script"), rules_with_scripts())
def test_the_environment_of_a_rule_holds_what_its_script_imports(rule: str, environment: str, script: str) -> None:
    pins = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())["dependencies"][-1]["pip"]
    held = {pin.split("==")[0] for pin in pins}
    path = ROOT / "workflow" / "scripts" / f"{script}.py"
    known = packages_distributions()
    for file in (path, *import_closure(path, ROOT)):
        for name in imported_at_once(file):
            distributions = {canonicalize_name(distribution) for distribution in known.get(name, [name])}
            assert distributions & held, f"{rule}: {file.name} imports {name}"


def imported_at_once(path: Path) -> Iterator[str]:
    """Packages of others that a module imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in {name.split(".")[0] for name in names}:
            if name not in sys.stdlib_module_names and name != "ki67":
                yield name
