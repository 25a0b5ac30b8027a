#!/usr/bin/env bash
# Make benchmarks/.venv-tiatoolbox and benchmarks/.venv-lazyslide from their lock files; about 6 GB each, as torch carries
# CUDA. Usage: benchmarks/peers/make_venvs.sh [tiatoolbox] [lazyslide]. To renew a lock file, install its .in instead and
# write `pip freeze` over it, below its first line.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- tiatoolbox lazyslide
for name in "$@"; do
    "${PYTHON:-python3.11}" -m venv --clear ".venv-$name"
    ".venv-$name/bin/python" -m pip install --quiet --no-deps --no-input -r "peers/requirements-$name.lock"
done
