#!/usr/bin/env bash
# Score drawn slides from a range of stain, scale, Ki-67 fraction and damage that training never saw, against the truth.
# Usage: benchmarks/drawn_range.sh [FOLDER], after make setup; about ten minutes on two processors.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-demo/range}")
sheet="$folder/slides.tsv"
mkdir -p "$folder/slides"
printf 'slide\tki67\the\n' > "$sheet"

draw() { # NAME OPTIONS...
    local name=$1 he="slides/$1/he.tif"
    shift
    .venv/bin/python -m ki67 phantom --out "$folder/slides/$name" --area-mm2 2 "$@"
    [ -e "$folder/$he" ] || he=
    printf '%s\tslides/%s/ki67.tif\t%s\n' "$name" "$name" "$he" >> "$sheet"
}

draw pale --seed 101 --ki67-fraction 0.50 --stain-strength 0.6
draw dark --seed 102 --ki67-fraction 0.15 --stain-strength 1.5 --fold
draw x40 --seed 103 --ki67-fraction 0.25 --mpp 0.25 --control-tissue
draw high --seed 104 --ki67-fraction 0.90 --flip --pen-mark
draw zero --seed 105 --ki67-fraction 0.00 --missing-part
draw between --seed 106 --ki67-fraction 0.35 --mpp 0.35 --blur
draw alone --seed 107 --ki67-fraction 0.60 --stains ki67
draw alone_control --seed 108 --ki67-fraction 0.02 --stains ki67 --control-tissue

.venv/bin/snakemake --cores "$(nproc)" --directory "$folder" --config slides="$sheet" --quiet rules
.venv/bin/python tests/workflow/check_demo.py "$folder"
