"""Which modules a script stands on, versions, and the log of a stage."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest

from ki67 import __version__
from ki67.errors import Ki67Error
from ki67.provenance import StageLog, code_digest, import_closure, slide_provenance, stage_log, versions

FILES = {
    "ki67/__init__.py": "",
    "ki67/a.py": "from ki67.b import thing\n",
    "ki67/b.py": "def thing():\n    import ki67.deep.c\n",
    "ki67/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ki67.e import x\nelse:\n    import json\n",
    "ki67/e.py": "import numpy\n",
    "ki67/deep/__init__.py": "from . import f\n",
    "ki67/deep/c.py": "from ..e import x\n",
    "ki67/deep/f.py": "",
    "use_a.py": "from ki67 import a\n",
    "use_d.py": "import ki67.d as d\n",
    "use_none.py": "import json\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(script: str, root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in import_closure(root / script, root)}


def test_the_closure_follows_lazy_relative_and_package_imports(root: Path) -> None:
    expected = {"__init__.py", "a.py", "b.py", "deep/__init__.py", "deep/c.py", "deep/f.py", "e.py"}
    assert names("use_a.py", root) == {f"ki67/{name}" for name in expected}


def test_imports_for_the_type_checker_only_do_not_count(root: Path) -> None:
    assert names("use_d.py", root) == {"ki67/__init__.py", "ki67/d.py"}


def test_a_script_without_the_package_has_an_empty_closure(root: Path) -> None:
    assert names("use_none.py", root) == set()


def test_the_digest_changes_with_the_modules_a_script_uses_and_no_others(tmp_path: Path) -> None:
    def digests(changed: str | None, ending: str = "\n") -> tuple[str, str]:
        folder = tmp_path / f"{changed}{len(ending)}".replace("/", "_")
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            content = text + ("# changed\n" if name == changed else "")
            (folder / name).write_bytes(content.replace("\n", ending).encode())
        return code_digest(folder / "use_a.py", folder), code_digest(folder / "use_d.py", folder)

    before = digests(None)
    assert digests(None, ending="\r\n") == before
    assert [new == old for new, old in zip(digests("ki67/a.py"), before, strict=True)] == [False, True]
    assert [new == old for new, old in zip(digests("ki67/d.py"), before, strict=True)] == [True, False]
    assert [new == old for new, old in zip(digests("ki67/deep/f.py"), before, strict=True)] == [False, True]
    assert [new == old for new, old in zip(digests("use_a.py"), before, strict=True)] == [False, True]


def test_versions_name_what_is_installed() -> None:
    found = versions(["numpy", "no-such-distribution"])
    assert found["ki67"] == __version__
    assert set(found) == {"python", "ki67", "numpy"}


def test_a_stage_ends_with_one_line_in_log_and_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stage_log(tmp_path / "x.log", stage="check", name="S01") as log:
        log.note("tissue 12.3 mm²")
    line = (tmp_path / "x.log").read_text(encoding="utf-8")
    assert "S01 check: tissue 12.3 mm², 0.0 s" in line
    assert capsys.readouterr().err == "S01 check: tissue 12.3 mm², 0.0 s\n"
    assert logging.getLogger("ki67").handlers == []


def test_the_record_of_a_slide_tells_what_made_it() -> None:
    log = StageLog()
    check = log.record({"settings": {"tissue_mpp": 8.0}, "code": "ab", "files": {}}, ["numpy"])
    assert set(check) == {"seconds", "versions", "settings", "code"}
    file = {"bytes": 1, "sampled_bytes": 1, "sha256": "cd"}
    stages = {
        "check": check | {"stains": {"he": None, "ki67": {"usable": True, "file": file}}},
        "tumor": {"seconds": 2.5, "versions": {"numpy": "1.0", "torch": "2"}},
    }
    made = slide_provenance(stages)
    assert made["inputs"] == {"he": None, "ki67": file}
    assert made["settings"] == {"check": {"tissue_mpp": 8.0}}
    assert made["code"] == {"check": "ab"}
    assert made["seconds"] == {"check": check["seconds"], "tumor": 2.5}
    assert made["versions"]["numpy"] == f"{np.__version__}, 1.0"
    assert made["versions"]["torch"] == "2"


def test_a_failure_is_in_the_log_in_full(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), stage_log(tmp_path / "x.log", stage="check", name="S01"):
        raise ZeroDivisionError("no tiles")
    assert "Traceback" in (tmp_path / "x.log").read_text()
    assert "S01 check failed" in (tmp_path / "x.log").read_text()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "as a library calls it"),
            "No space left on device: make room on the disk of the results and run the workflow again",
        ),
        (Ki67Error("network nuclei: weights.safetensors is missing"), "network nuclei: weights.safetensors is missing"),
    ],
)
def test_a_failure_that_a_sentence_explains_is_that_sentence_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, sentence: str
) -> None:
    library_error = RuntimeError("a library's own words")
    library_error.__cause__ = error
    with pytest.raises(SystemExit) as ended, stage_log(tmp_path / "x.log", stage="tumor", name="S01"):
        raise library_error
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"S01 tumor failed: {sentence}\n"
    assert "Traceback" in (tmp_path / "x.log").read_text()


def test_modules_left_out_of_a_digest_do_not_change_it_but_what_they_import_does(tmp_path: Path) -> None:
    def digest(changed: str | None) -> str:
        folder = tmp_path / str(changed).replace("/", "_")
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(text + ("# changed\n" if name == changed else ""))
        return code_digest(folder / "use_a.py", folder, without=("b",))

    assert digest("ki67/b.py") == digest(None)
    assert digest("ki67/e.py") != digest(None)
    assert digest("ki67/a.py") != digest(None)
