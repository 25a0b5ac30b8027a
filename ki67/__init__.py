"""Ki-67 index of whole slides: typed functions of arrays and tables that the workflow's scripts call."""

__version__ = "0.1.0"

import os

# Threads of torch that wait for each other give the processor away after microseconds instead of milliseconds: where
# other work runs beside them, as it does under Snakemake, networks are five to ten times as fast. It counts only if it
# is set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
