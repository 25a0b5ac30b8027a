#!/usr/bin/env bash
# A drawn pair of 100 mm² of tissue, 40 mm² of it tumour, through the whole workflow: seconds of every stage, and the index
# beside the truth.
#
#   benchmarks/whole_pair.sh [CORES] [snakemake options ...]      CORES are 2 if not given
set -euo pipefail
cd "$(dirname "$0")/.."
cores=${1:-2}
shift || true
folder=demo/whole_pair
if [ ! -e "$folder/slides/drawn" ]; then
    .venv/bin/python -m ki67 phantom --out "$folder/slides" --area-mm2 100 --tumor-share 0.4 --seed 11
    touch "$folder/slides/drawn"
fi
printf 'slide\the\tki67\npair\tslides/he.tif\tslides/ki67.tif\n' > "$folder/slides.tsv"
rm -rf "$folder/results" "$folder/logs"
started=$(date +%s.%N)
.venv/bin/snakemake --cores "$cores" --directory "$folder" --config slides=slides.tsv "$@" > "$folder/run.log" 2>&1
finished=$(date +%s.%N)
.venv/bin/python - "$folder" "$started" "$finished" <<'PYTHON'
import json
import sys
from pathlib import Path

folder, started, finished = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
for table in sorted(folder.glob("logs/*/*.tsv")):
    names, values = (line.split("\t") for line in table.read_text().splitlines()[:2])
    row = dict(zip(names, values, strict=True))
    print(f"{table.parent.name:12}{float(row['s']):8.1f} s  {row['max_rss']:>10} MB")
record = json.loads((folder / "results/pair/ki67.json").read_text())
truth = json.loads((folder / "slides/truth/truth.json").read_text())
tumor = json.loads((folder / "results/pair/tumor_he.json").read_text())
print(f"{'whole':12}{finished - started:8.1f} s")
print(f"index {record['index']:.4f}, truth {truth['index']:.4f}; tiles of the 20x tumour network {tumor['fine_share']:.0%}")
PYTHON
