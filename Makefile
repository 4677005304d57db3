# Needs python >= 3.11, make and git.  Every target sets up .venv first, which does nothing when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := .[dev,notebooks,onnx,parquet]

.PHONY: help demo demo-detect test fuzz check notebooks clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */: /'

demo: $(READY)  ## Run the whole job on handwritten digits: search, training, export, integer check, report
	$(BIN)/python scripts/demo.py

demo-detect: $(READY)  ## The same job for a detector, on scenes of handwritten digits; draws the boxes that it finds
	$(BIN)/python scripts/demo_detect.py

# A process a core, up to four; a file stays in one, which makes its fixtures once.
test: $(READY)  ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile

fuzz: $(READY)  ## Run the property tests on examples that no run has seen
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hypothesis --hypothesis-profile fuzz -p no:cacheprovider

check: $(READY)  ## Run linter and type checker
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(READY)  ## Run the notebooks in place
	for notebook in notebooks/*.ipynb; do \
		$(BIN)/python -m jupyter execute --inplace "$$notebook" || exit 1; \
	done

clean:  ## Remove the environment and all caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# uv installs the same pins in a third of the time; where it cannot be had or cannot reach the index, pip does it all.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "python >= 3.11 is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Give another: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt uv || echo "no uv: pip installs everything"
	{ test -x $(BIN)/uv && $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e "$(EXTRAS)"; } || \
		$(BIN)/python -m pip install -c constraints.txt -e "$(EXTRAS)"
	touch $@
