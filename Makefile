# One word a task. `make check` is all that has to pass, in environments of its own: CI calls that and nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: help lint test docs demo examples package conda-check faults bench check

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXAMPLES := $(CURDIR)/examples
export PS4 := + $$SECONDS s: # the seconds so far, before every command

help:
	echo "make lint | test | docs | demo | examples | package | conda-check | faults | bench | check"

lint:
	set -x
	ruff check .
	ruff format --check .
	mypy

test:
	pytest

# The site of documents, in build/docs; and whether what documents show is so: Examples of docstrings, blocks of pages,
# tables of figures, links, every page in a browser.
docs:
	set -x
	pytest -n 0 -q openmm_cgflow docs
	python $(EXAMPLES)/benchmarks/readme_tables.py --check
	sphinx-build -E -q -W --keep-going -n docs build/docs
	pytest -n 0 -q tests/docs
	python docs/run_pages.py

# The main job, with the same training on a slow machine.
demo:
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT
	set -x
	openmm-cgflow demo --out "$$work" --evaluations 1000000
	test -s "$$work/report.html"
	# a million energies gave 96.6 % with seed 0, 96.7 % on another day
	python -c "import sys, openmm_cgflow as cgf
	samples = cgf.CGFlow.load(sys.argv[1]).sample(10_000, seed=0)
	print(samples)
	sys.exit(0 if samples.ess > 0.9 else str(samples))" "$$work/model.cgflow"

# Every example in a short form; those with a known answer fail where they fall short of it.
examples:
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT
	cd "$$work"
	set -x
	python $(EXAMPLES)/benchmarks/energies.py
	python $(EXAMPLES)/add_to_script.py --picoseconds 2
	python $(EXAMPLES)/flattening.py --picoseconds 2
	python $(EXAMPLES)/explicit_water.py --quick --json water.json
	python $(EXAMPLES)/cg_simulation.py --picoseconds 4 --output cg.dcd
	python $(EXAMPLES)/data_free_cg.py
	python $(EXAMPLES)/flow_matching.py --quick
	python $(EXAMPLES)/explicit_water_cg.py --quick
	python $(EXAMPLES)/backmap_frames.py --samples 3000
	python $(EXAMPLES)/benchmarks/data_efficiency.py --quick
	python $(EXAMPLES)/backmap.py --cg cg.dcd --output atoms.dcd
	python $(EXAMPLES)/replica_exchange.py --iterations 4
	python $(EXAMPLES)/protein.py
	python $(EXAMPLES)/alanine_dipeptide.py --model $(EXAMPLES)/models/alanine_dipeptide.cgflow --reference
	python $(EXAMPLES)/double_well.py --evaluations 900000
	python $(EXAMPLES)/many_well.py --evaluations 600000
	python $(EXAMPLES)/gaussian_mixture.py --evaluations 1200000
	python $(EXAMPLES)/slow_variables.py
	python $(EXAMPLES)/tempering.py --molecule butane --evaluations 60000 --seeds 1
	python $(EXAMPLES)/benchmarks/aldp_quality.py --model $(EXAMPLES)/models/aldp.cgflow --samples 100000
	python $(EXAMPLES)/benchmarks/forces.py --rounds 2
	python $(EXAMPLES)/benchmarks/backmapping.py --quick
	python $(EXAMPLES)/train_fragment_library.py --quick

# The wheel and the source distribution, into DIST: what PyPI asks of them, and that they hold the package alone.
DIST ?= $(CURDIR)/dist
package:
	set -x
	python -m build --no-isolation --outdir "$(DIST)"
	twine check --strict "$(DIST)"/*
	python tests/check_distributions.py "$(DIST)"

# The conda package, built, tested, solved and installed from a channel of what is installed here.
conda-check:
	set -x
	python conda-recipe/check.py

# Kills, full disks, broken files: nothing is lost, and each is told in one line. FAULTS="--kills 2" for fewer.
FAULTS ?=
faults:
	set -x
	python tests/faults/run.py $(FAULTS)

# Every figure of the benchmarks, then their tables: many hours, and it goes on where it stopped.
bench:
	set -x
	python $(EXAMPLES)/benchmarks/all.py
	python $(EXAMPLES)/benchmarks/readme_tables.py

# A fresh environment as the README says; then the light one: newest OpenMM, no openmm-torch. What mostly runs in one
# thread goes side by side. In the light environment the tests of what depends on versions of torch and OpenMM run again.
LIGHT_TESTS := tests/backmapping tests/compute tests/contracts tests/force_field tests/forcematching tests/openmm_plugin tests/potentials tests/proteins tests/test_*.py
check:
	work=$$(mktemp -d); trap 'kill $$(jobs -p) 2> /dev/null || true; rm -rf "$$work"' EXIT
	set -x
	{ "$(PYTHON)" -m venv "$$work/light" && exec "$$work/light/bin/pip" install --quiet "torch==2.13.0"; } & light=$$!
	"$(PYTHON)" -m venv "$$work/full"
	"$$work/full/bin/pip" install --quiet -e ".[test]"
	"$$work/full/bin/pip" list | grep -iE "^(torch|openmm|openmmtorch) "
	wait "$$light"
	export PATH="$$work/full/bin:$$PATH"
	make --no-print-directory lint test
	"$$work/full/bin/pip" install --quiet -e ".[docs,package]"
	make --no-print-directory docs package conda-check faults FAULTS="--kills 2 --files 10" DIST="$$work/dist" > "$$work/docs.log" 2>&1 & docs=$$!
	make --no-print-directory demo examples
	wait "$$docs" || { cat "$$work/docs.log"; exit 1; }
	tail -n 20 "$$work/docs.log"
	rm -rf "$$work/full"
	"$$work/light/bin/pip" install --quiet "$$work"/dist/*.whl
	(cd "$$work" && light/bin/openmm-cgflow demo --out wheel --evaluations 50000 && test -s wheel/report.html)
	"$$work/light/bin/pip" install --quiet -e ".[ml]" "pytest>=8,<10" "pytest-xdist>=3.6,<4" "pyyaml>=6,<7" "hypothesis>=6.100,<7"
	"$$work/light/bin/pip" list | grep -iE "^(torch|openmm) "
	"$$work/light/bin/python" $(EXAMPLES)/expanded_ensemble.py --picoseconds 2
	PATH="$$work/light/bin:$$PATH" pytest -n 2 $(LIGHT_TESTS)
