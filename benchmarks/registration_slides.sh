#!/usr/bin/env bash
# Draw pairs of slides whose transform is known: flipped, torn, with control tissue, pen, folds, blur, 2 to 160 mm².
# Usage: benchmarks/registration_slides.sh FOLDER, after make setup; about ten minutes on two processors.
set -euo pipefail
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."

draw() { # NAME OPTIONS...
    local name=$1
    shift
    [ -e "$folder/$name/truth/transform.json" ] || .venv/bin/python -m ki67 phantom --out "$folder/$name" --mpp 1 "$@"
}

draw plain --seed 101 --area-mm2 40
draw flipped --seed 102 --area-mm2 80 --flip --ki67-fraction 0.4
draw control --seed 103 --area-mm2 120 --control-tissue
draw flipped_control_pen --seed 104 --area-mm2 60 --control-tissue --flip --pen-mark
draw torn --seed 105 --area-mm2 25 --missing-part
draw flipped_torn_fold --seed 106 --area-mm2 100 --missing-part --flip --fold
draw small_control_torn --seed 107 --area-mm2 10 --control-tissue --missing-part
draw large_pen_blur --seed 108 --area-mm2 160 --pen-mark --blur
draw all_at_once --seed 109 --area-mm2 15 --flip --control-tissue --missing-part --pen-mark
draw pale_fold_blur --seed 110 --area-mm2 50 --fold --blur --stain-strength 0.6
draw biopsy_flipped --seed 111 --area-mm2 4 --flip
draw biopsy --seed 112 --area-mm2 2
draw biopsy_torn_dark --seed 113 --area-mm2 6 --missing-part --stain-strength 1.4
draw biopsy_tumourless --seed 114 --area-mm2 3 --tumor-share 0 --flip
