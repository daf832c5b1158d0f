# The commands of README.md, and the files that they need. Nothing is made twice.
PYTHON ?= python3.11
BIN := .venv/bin
QUICKSTART := runs/quickstart
QUICKSTART_FID := runs/quickstart-fid
FID_READ := withheld read-1 read-4 read-10 read-20
# Tests run in two processes, each file in one of them: on two cores their launches take turns with the other half.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true
export NO_MKDOCS_2_WARNING ?= 1
# glibc keeps freed memory: new pages for each large tensor take up to a third of a step on two cores. A higher
# threshold is faster still, but its fragmentation costs 0.6 GB.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.PHONY: help quickstart quickstart-fid benchmark test test-unit test-slow test-gpu docs lint clean
help:
	@echo "make quickstart      train and evaluate a small generator on the documentation of Python (about 10 minutes)"
	@echo "make quickstart-fid  train a small fusion-in-decoder model on generated facts (about 10 minutes)"
	@echo "make test            lint, type-check and test (about 10 minutes)"
	@echo "make test-unit       the tests that start no processes (about 3 minutes)"
	@echo "make test-slow       all tests, and the tests of the tests (hours)"
	@echo "make test-gpu        the tests of one GPU (at most 8 minutes); without one they are skipped, with the reason"
	@echo "make benchmark       measure speed and memory, compared with other software (hours; 24 GB of memory)"
	@echo "make docs            build the documentation into site/; every broken link is an error"
	@echo "make clean           delete the files that these commands made"

# The environment of the peers of `make benchmark`.
.venv-trl/installed: benchmarks/peers/requirements-trl.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --requirement $<
	touch $@

# One file a question; each alone on the machine. With QUICK=1 one short round of each, and nothing is written.
BENCHMARKS := training_peers loop fid generation
benchmark: .venv/installed .venv-trl/installed | data/models/made data/stdlib/made
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(if $(QUICK),--quick) || exit 1; done
	$(if $(QUICK),,$(BIN)/python benchmarks/summary.py)

# The demonstrations and the documentation need less than the tests.
.venv/demo: EXTRAS := demo
.venv/docs: EXTRAS := docs
.venv/installed: EXTRAS := demo,test
.venv/demo .venv/docs .venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# A stamp is written last, so that interrupted work is repeated. After `|` only a missing file is made, not an older one.
data/models/made: | .venv/demo
	$(BIN)/python recipes/demo_models.py --output_dir data/models
	touch $@

data/stdlib/made: | .venv/demo
	$(BIN)/python recipes/demo_data.py --output_dir data/stdlib
	touch $@

$(QUICKSTART)/before/config.json: | data/models/made data/stdlib/made
	rm -rf $(QUICKSTART)/before
	$(BIN)/accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_before.yaml

$(QUICKSTART)/after/test/score.json: | $(QUICKSTART)/before/config.json
	rm -rf $(QUICKSTART)/after
	$(BIN)/accelerate launch recipes/swr_starling.py --config recipes/configs/quickstart.yaml

quickstart: $(QUICKSTART)/after/test/score.json
	$(BIN)/python recipes/compare.py $(QUICKSTART)/before $(QUICKSTART)/after/test --show 0
	$(BIN)/python recipes/report.py $(QUICKSTART)/before $(QUICKSTART)/after --output $(QUICKSTART)/report.html

data/facts/made: | .venv/demo
	$(BIN)/python recipes/demo_facts.py --output_dir data/facts
	touch $@

$(QUICKSTART_FID)/train/model/config.json: | data/facts/made
	rm -rf $(QUICKSTART_FID)/train
	$(BIN)/accelerate launch recipes/fid_flan_t5.py --config recipes/configs/quickstart_fid.yaml

$(QUICKSTART_FID)/withheld/score.json: | $(QUICKSTART_FID)/train/model/config.json
	rm -rf $(@D)
	$(BIN)/accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_fid_test.yaml \
		--test_file data/facts/withheld.jsonl --output_dir $(@D)

# The first 1, 4, 10 and 20 passages of each question.
$(QUICKSTART_FID)/read-%/score.json: | $(QUICKSTART_FID)/train/model/config.json
	rm -rf $(@D)
	$(BIN)/accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_fid_test.yaml \
		--embedding_max_num_to_retrieve $* --output_dir $(@D)

quickstart-fid: $(FID_READ:%=$(QUICKSTART_FID)/%/score.json)
	$(BIN)/python recipes/compare.py $(FID_READ:%=$(QUICKSTART_FID)/%)

test: lint
	$(PYTEST)

test-unit: .venv/installed
	$(PYTEST) -m "not slow and not launch"

test-slow: lint
	$(PYTEST) -m "slow or not slow"
	$(BIN)/python tests/mutants.py

test-gpu: .venv/installed
	timeout 480 $(BIN)/python -m pytest tests/test_gpu.py -m gpu -n 6 --dist loadgroup -rs

docs: .venv/docs
	$(BIN)/mkdocs build

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-trl data/models data/stdlib data/facts data/benchmark-rows $(QUICKSTART) $(QUICKSTART_FID) runs/mutants site
