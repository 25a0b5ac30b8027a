"""What is installed is what the lock files say, and every rule's environment holds what its script imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import rattler
import yaml
from packaging.requirements import Requirement
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


STACKS = ("registration", "report", "tensorflow", "torch")


def test_there_is_an_environment_for_each_stack_one_for_the_driver_and_an_image_for_each_stack() -> None:
    assert sorted(path.stem for path in (ROOT / "envs").glob("*.yaml")) == sorted((*STACKS, "driver"))
    assert sorted(path.stem for path in (ROOT / "envs").glob("*.Dockerfile")) == sorted(STACKS)
    settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    assert settings["containers"] == dict.fromkeys(STACKS)


@pytest.mark.parametrize("stack", [*STACKS, "driver"])
def test_conda_can_read_an_environment_and_every_version_is_given(stack: str) -> None:
    environment = yaml.safe_load((ROOT / "envs" / f"{stack}.yaml").read_text())
    assert set(environment) == {"channels", "dependencies"}
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert str(rattler.Channel("conda-forge").base_url).endswith("/conda-forge/")
    *packages, of_pip = environment["dependencies"]
    found = [rattler.MatchSpec(package, strict=True) for package in packages]
    assert [spec.name.normalized for spec in found] == ["python", "pip"]
    assert all(str(spec.version).startswith("==") for spec in found)
    pins = [Requirement(pin) for pin in of_pip["pip"]]
    assert all([one.operator for one in pin.specifier] == ["=="] for pin in pins)
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("stack", STACKS)
def test_an_image_holds_what_the_environment_holds(stack: str) -> None:
    environment = yaml.safe_load((ROOT / "envs" / f"{stack}.yaml").read_text())["dependencies"]
    text = (ROOT / "envs" / f"{stack}.Dockerfile").read_text()
    python = environment[0].removeprefix("python==")
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == [f"python:{python}-slim-bookworm"]
    assert set(re.findall(r"\S+==\S+", text)) == {environment[1], *environment[2]["pip"]}


def rules_with_scripts() -> list[tuple[str, str, str]]:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
    pattern = r"^ *rule (\w+):.*?envs/(\w+)\.yaml.*?scripts/(\w+)\.py"
    return [found for text in texts for found in re.findall(pattern, text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize(("rule", "environment", "script"), rules_with_scripts())
def test_the_environment_of_a_rule_holds_what_its_script_imports(rule: str, environment: str, script: str) -> None:
    path = ROOT / "workflow" / "scripts" / f"{script}.py"
    for file in (path, *import_closure(path, ROOT)):
        assert not lacking(imported_at_once(file), environment), f"{rule}: {file.name}"


def test_no_stage_can_import_both_tensorflow_and_pytorch() -> None:
    for rule, environment, script in rules_with_scripts():
        files = import_closure(ROOT / "workflow" / "scripts" / f"{script}.py", ROOT)
        modules = {name for file in files for name in imported_anywhere(file)}
        assert not {"tensorflow", "torch"} <= modules, rule
        assert environment != "tensorflow" or "tensorflow" in modules, rule


def imported_anywhere(path: Path) -> Iterator[str]:
    """Packages that a module imports, in functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_the_environment_of_the_driver_holds_what_the_rules_import(tmp_path: Path) -> None:
    imports = [
        line.strip()
        for path in (ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r" *(import|from) \w", line) and not line.endswith("(")
    ]
    assert "import yaml" in imports
    assert any("ki67.slides" in line for line in imports)
    text = "\n".join(line.partition("#")[0] for line in imports)
    (tmp_path / "imports.py").write_text(text, encoding="utf-8")
    needed = ("errors", "provenance", "report", "sheet", "slides", "stardist_model", "tumor_methods")
    for file in (tmp_path / "imports.py", *(ROOT / "ki67" / f"{module}.py" for module in needed)):
        assert not lacking(imported_at_once(file), "driver"), file.name


@cache
def distributions_by_package() -> Mapping[str, list[str]]:
    return packages_distributions()


def lacking(names: Iterator[str], environment: str) -> list[str]:
    """Those of the imported packages that an environment does not hold."""
    pins = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())["dependencies"][-1]["pip"]
    held = {pin.split("==")[0] for pin in pins}
    known = distributions_by_package()
    return [name for name in names if not {canonicalize_name(one) for one in known.get(name, [name])} & held]


def imported_at_once(path: Path) -> Iterator[str]:
    """Packages of others that a module imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in {name.split(".")[0] for name in names}:
            if name not in sys.stdlib_module_names and name != "ki67":
                yield name
