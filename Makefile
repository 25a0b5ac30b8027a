# make demo      draw four slides, score them, compare with the truth
# make test      tests and linters
# make cluster   runs on a small SLURM cluster that are stopped and started again
# make thorough  the tests that make test leaves out: more cases of the same
# make faults    what goes wrong on real machines, done on purpose (docs/reliability.md); full disks need root
# make lint      the linters alone
# make setup     install only; demo, test and lint do it themselves
# make pictures  take the pictures of the README from the results of the demo
# make clean     remove what the targets made

PYTHON ?= python3.11
CORES ?= $(shell nproc)
VENV := .venv
BIN := $(VENV)/bin
DEMO := plain flipped no_tumor ihc_only

# The lock files alone say what is installed, whatever this machine's environment asks of pip.
unexport PIP_FIND_LINKS PIP_NO_INDEX PIP_CONSTRAINT PIP_REQUIREMENT PIP_TARGET PIP_PREFIX PIP_USER PIP_NO_DEPS
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup setup-test demo test thorough browser slurm cluster faults lint pictures clean
.DELETE_ON_ERROR:

setup: $(VENV)/installed
setup-test: $(VENV)/installed-test

# uv unpacks libraries several at a time, from the index that pip is told of; where it cannot, pip does it.
UV := 0.13.9

# Installing leaves a mark that goes when it is done: one that was interrupted is done anew, from the cache.
define install
@test ! -e $(VENV)/incomplete || rm -rf $(VENV)
@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
@touch $(VENV)/incomplete
@$(BIN)/python -m pip install --quiet --no-deps --no-input uv==$(UV)
@index="$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}"; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps $${index:+--default-index "$$index"} -r $(1) \
	|| $(BIN)/python -m pip install --quiet --no-deps --no-input -r $(1)
@rm $(VENV)/incomplete
@touch $@
endef

$(VENV)/installed: requirements.lock
	$(call install,$<)

$(VENV)/installed-test: requirements-test.lock
	$(call install,$<)
	@touch $(VENV)/installed

# A slide for each processor at a time.
demo: setup
	@$(MAKE) --no-print-directory -j$(CORES) $(DEMO:%=demo/slides/%/drawn)
	$(BIN)/snakemake --cores $(CORES) --directory demo --config slides=config/demo.tsv --quiet rules
	@$(BIN)/python tests/workflow/check_demo.py demo

PHANTOM = $(BIN)/python -m ki67 phantom --out $(@D) --area-mm2 10 --workers 1
demo/slides/plain/drawn: OPTIONS = --seed 1 --ki67-fraction 0.15
demo/slides/flipped/drawn: OPTIONS = --seed 2 --ki67-fraction 0.40 --flip
demo/slides/no_tumor/drawn: OPTIONS = --seed 3 --tumor-share 0
demo/slides/ihc_only/drawn: OPTIONS = --seed 4 --ki67-fraction 0.05 --stains ki67
demo/slides/%/drawn: | setup
	@rm -rf $(@D)
	$(PHANTOM) $(OPTIONS)
	@touch $@

# Two files at a time, as tests/conftest.py says.
TWO := -n 2 --dist loadscope --no-loadscope-reorder
test: setup-test browser slurm
	$(BIN)/python -m pytest $(TWO)

# More cases of what tests do once in `make test`: other angles, seeds, numbers of workers, methods.
thorough: setup-test browser slurm
	$(BIN)/python -m pytest $(TWO) -m slow

# Runs on a cluster of one node that are stopped and started again; `make test` has the shorter ones.
cluster: setup-test slurm
	$(BIN)/python -m pytest tests/slurm -m cluster

# The report is tested in Chromium, where it can be installed; elsewhere these tests are skipped and say so.
browser:
	@command -v chromedriver >/dev/null || test ! -e /etc/debian_version || test "$$(id -u)" != 0 \
		|| { apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 \
		|| echo "Chromium cannot be installed here: the tests of the report in a browser are skipped."

faults: setup-test
	$(BIN)/python -m pytest -m faults -rs tests/faults
	$(BIN)/python -m benchmarks.fuzz_slides --count 3000
# A cluster of one node is started for the tests, where its programs can be installed; elsewhere these tests are skipped.
slurm:
	@command -v slurmctld >/dev/null || test ! -e /etc/debian_version || test "$$(id -u)" != 0 \
		|| { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
			slurmctld slurmd slurm-client munge; } >/dev/null 2>&1 \
		|| echo "SLURM cannot be installed here: the tests on a cluster are skipped."

lint: setup-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

pictures: setup-test
	$(BIN)/python .ci/pictures.py demo

clean:
	rm -rf $(VENV) demo .snakemake .pytest_cache .mypy_cache .ruff_cache
	find ki67 tests workflow -name __pycache__ -prune -exec rm -rf {} +
