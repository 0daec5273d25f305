# Each target does its own set-up. VENV may point at an environment that several checkouts share.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Several checkouts may share VENV: each runs its own code.
export PYTHONPATH := $(CURDIR)

.DELETE_ON_ERROR:
.PHONY: demo pictures test test-all test-gpu gpu-report recipes bench fuzz reliability soak lint docs clean-demo

demo: demo/run/report.html
	@echo
	@echo "Open demo/run/report.html, or look at demo/run/reals.png (what it learned from),"
	@echo "demo/run/fakes_init.png (how it began) and demo/run/samples/ (how it went)."
	@echo "Again from the start: make clean-demo demo"

# Interrupted, it goes on where it was.
demo/run/report.html: demo/shards/manifest.json
	$(BIN)/dcgan-train --shards demo/shards --run demo/run \
		--ngf 32 --ndf 32 --max-steps 2000 --log-every 100 --sample-every 200
	$(BIN)/dcgan-report demo/run

demo/shards/manifest.json: demo/faces/demo-faces.json
	$(BIN)/python tools/make_shards.py demo/faces --out demo/shards --per-shard 1024

demo/faces/demo-faces.json: $(INSTALLED)
	$(BIN)/python tools/make_demo_faces.py demo/faces --count 4000

clean-demo:
	rm -rf demo

# The README's and the guides': how the demo's net learned, its sums, its report and its page in Chromium.
pictures: demo/run/report.html
	$(BIN)/dcgan-sample demo/run --arithmetic "4,5,53,62 - 12,19,37,42 + 25,41,46,63" --out demo/sum.png
	$(BIN)/dcgan-export demo/run
	$(BIN)/python docs/pictures.py demo/run demo/sum.png docs/img

# A process a core, up to four: each imports torch and DALI. A file's tests stay together, for they
# share what they made; and in the order of names, which starts no long file last.
# Without a GPU even where there is one: else the commands that the tests run would each compile.
test test-all: export CUDA_VISIBLE_DEVICES =
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# One after the other: some of the slow ones measure memory and time.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest

test-gpu: export REQUIRE = gpu
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

# Six minutes: what a GPU shows, in two files to send. Without one it is a rehearsal.
gpu-report: $(INSTALLED)
	$(BIN)/python -m tests.gpu_report

# Recipes × seeds at equal images seen, on a set of yours: make recipes SHARDS=folder
SHARDS ?= demo/shards
recipes: $(INSTALLED)
	$(BIN)/python docs/recipes.py "$(SHARDS)"

# Before and after a change of the hot path: the loader, the step, and whether one waits for the other.
# Small nets: it ends soon, and what a step costs beside its products is seen.
BENCH_SET := --shards demo/shards --rounds 3 --seconds 1
BENCH_NETS := --batch-size 32 --ngf 16 --ndf 16

bench: demo/shards/manifest.json
	@echo "== the loader alone"
	@$(BIN)/dcgan-profile loader $(BENCH_SET)
	@echo "== the step alone, on noise"
	@$(BIN)/dcgan-profile step --rounds 3 --seconds 1 $(BENCH_NETS)
	@echo "== both together"
	@$(BIN)/dcgan-profile train $(BENCH_SET) $(BENCH_NETS)

# Thousands of hostile files, and how many of each kind were tried.
fuzz: $(INSTALLED)
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q tests/test_fuzz_*.py

# Minutes: 40,000 small steps, watched from outside.
soak: $(INSTALLED)
	$(BIN)/python -m tests.soak

# Minutes: each fault is injected into the real commands.
reliability: $(INSTALLED)
	$(BIN)/python -m tests.faults --out docs/reliability.md

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Needs no network; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python docs/options.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet \
		--builder html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# What was installed is kept: another checkout with the same dependencies installs nothing, and leaves
# the commands of a shared VENV to the one that has them.
PIP = env -u PYTHONPATH $(BIN)/python -m pip
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	cmp -s pyproject.toml $@ || { $(PIP) install --quiet --upgrade pip && $(PIP) install --editable '.[dev]'; }
	cp pyproject.toml $@
