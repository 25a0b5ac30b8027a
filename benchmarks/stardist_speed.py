"""How much tumour StarDist looks at a minute, beside the U-Net on the same slide.

    .venv/bin/python -m benchmarks.stardist_speed [--area-mm2 10] [--cores 2]

Draws a Ki-67 slide and runs the workflow on it in a temporary folder, with StarDist as the second opinion. The seconds
are those of the stages themselves: reading, networks, outlines and tables, not the start of their Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("ki67", "nuclei", "second_opinion")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--area-mm2", type=float, default=10)
    arguments.add_argument("--cores", type=int, default=2)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "ki67", "phantom", "--out", folder / "S1", "--area-mm2", chosen.area_mm2]
        command += ["--stains", "ki67", "--tumor-share", 0.8, "--seed", 1, "--workers", chosen.cores]
        subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
        (folder / "slides.tsv").write_text("slide\tki67\nS1\tS1/ki67.tif\n", encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        command += ["--cores", chosen.cores, "--quiet", "all", "--config", "slides=slides.tsv"]
        command += ['nuclei={"second_opinion": "stardist"}', "--", "results/S1/ki67.json"]
        said = subprocess.run(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if said.returncode:
            raise SystemExit(said.stdout)
        results = folder / "results" / "S1"
        told = {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}
        mm2 = told["ki67"]["tumor_mm2"]
        for name, file in (("stardist", "second_opinion"), ("unet_resnet34", "nuclei")):
            seconds, index = told[file]["seconds"], (told[file] if "index" in told[file] else told["ki67"])["index"]
            print(
                f"{name}: {mm2:.2f} mm² of tumour in {seconds:.1f} s, {60 * mm2 / seconds:.1f} mm² a minute, "
                f"{told[file]['nuclei']} nuclei, index {index:.3f}"
            )


if __name__ == "__main__":
    main()
