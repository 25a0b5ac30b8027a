#!/usr/bin/env bash
# Make the environments of the peers from their lock files: classical (SIFT and SimpleElastix, 0.5 GB) and valis (6 GB, as
# torch carries CUDA; scikit-image is compiled, so it needs a C compiler and some minutes).
# Usage: benchmarks/registration_peers/make_venvs.sh [FOLDER [classical] [valis]], by default .cache/registration_peers.
# To renew a lock file, install its .in instead and write `pip freeze` over it, below its first line.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="${1:-$here/../../.cache/registration_peers}"
shift || true
[ $# -gt 0 ] || set -- classical valis
for name in "$@"; do
    "${PYTHON:-python3.11}" -m venv --clear "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --no-deps --no-input -r "$here/requirements-$name.lock"
done
