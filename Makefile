# Each target does the set-up that it needs. Another Python: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
PEERS_VENV ?= .venv-peers
TPU_VENV ?= .venv-tpu
BEAM_VENV ?= .venv-beam
PYTEST_ARGS ?=
# Each compiles with several threads and takes about 1.5 GB.
TEST_PROCESSES ?= 2
IN_PARALLEL = -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

# It asks for an xdsl that pydantic cannot stand beside, and does not need it (docs/export.md).
WITHOUT_DEPENDENCIES = litert-converter==0.5.0

# A stamp is written last, so that an interrupted installation is made again.
STAMP = $(VENV)/.pcls-installed
PEERS_STAMP = $(PEERS_VENV)/.pcls-installed
TPU_STAMP = $(TPU_VENV)/.pcls-installed
BEAM_STAMP = $(BEAM_VENV)/.pcls-installed

.PHONY: help demo test test-system test-faults test-fuzz test-peers test-slurm test-tpu test-beam lint format types bench plans constraints clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## pretrain, fine-tune on 25 images, compare, report: under 3 minutes on two CPU cores
	@$(VENV)/bin/pcls demo

test: lint types  ## lint, types, then the tests that are no target of their own: under 12 minutes on two CPU cores
	$(VENV)/bin/pytest -m "not system and not peer and not tpu and not slurm" --ignore tests/faults $(IN_PARALLEL)

test-system: $(STAMP)  ## whole programs (pages of docs, processes, kills, recipes) and large networks
	$(VENV)/bin/pytest -m system --ignore tests/faults $(IN_PARALLEL)

test-faults: $(STAMP)  ## kills, damaged files, full disks, other devices, stops at every step; with a table of counts
	XLA_FLAGS=--xla_force_host_platform_device_count=2 $(VENV)/bin/pytest tests/faults --ignore tests/faults/test_fuzz.py $(PYTEST_ARGS)

test-fuzz: $(STAMP)  ## 145,000 changed files fed to what reads them; with a table of counts
	$(VENV)/bin/pytest tests/faults/test_fuzz.py $(PYTEST_ARGS)

test-peers: $(PEERS_STAMP)  ## tests against torch and keras, in an environment of their own
	$(PEERS_VENV)/bin/pytest -m peer $(PYTEST_ARGS)

test-slurm: $(STAMP)  ## the batch script on a Slurm of this machine, which it installs where it is missing (root, Debian)
	tests/launch/install_slurm.sh
	$(VENV)/bin/pytest -m slurm tests/launch $(PYTEST_ARGS)

test-tpu: $(TPU_STAMP)  ## tests of programs compiled for TPUs; needs libtpu, which it installs, but no TPU
	$(TPU_VENV)/bin/pytest -m tpu $(PYTEST_ARGS)

test-beam: $(BEAM_STAMP)  ## tests of the conversion by Apache Beam, on this machine
	$(BEAM_VENV)/bin/pytest tests/data/test_convert_beam.py $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff: rules and formatting
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

format: $(STAMP)  ## let ruff fix and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

types: $(STAMP)  ## mypy over pcls/
	$(VENV)/bin/mypy

bench: $(PEERS_STAMP)  ## every benchmark, beside its peer; appends to benchmarks/LEDGER.md
	@set -e; for program in $(filter-out benchmarks/plans.py benchmarks/catalogue.py benchmarks/speednet.py, $(wildcard benchmarks/[!_]*.py)); do \
	    echo "== $$program"; $(PEERS_VENV)/bin/python "$$program"; done

plans: $(TPU_STAMP)  ## plans of the large recipes for a TPU slice each, into docs/plans.md and the ledger
	$(TPU_VENV)/bin/python benchmarks/plans.py

constraints:  ## pin the newest versions for this PYTHON in constraints/
	@$(check-python)
	@$(pin-versions)

clean:  ## remove environments, caches and builds; runs/ stays
	rm -rf $(VENV) $(PEERS_VENV) $(TPU_VENV) $(BEAM_VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find pcls tests benchmarks launch -name __pycache__ -prune -exec rm -rf {} +

# Another PYTHON for the same folder is another environment: make it again rather than test with the old one.
ifneq ($(PYTHON),$(shell cat $(VENV)/.pcls-python 2>/dev/null))
.PHONY: $(STAMP)
endif

# One environment serves demo and test: leaving the test tools out of the demo's would save 0.3 of 1.4 GB and 5 % of the
# installation's time, and cost whoever runs both a second environment.
$(STAMP): pyproject.toml $(wildcard constraints/*.txt)
	@$(check-python)
	@$(call replace-venv,$(VENV))
	@$(find-constraints); \
	if command -v uv >/dev/null; then \
	    echo "pcls: $(VENV): installing with uv and $(PYTHON) ($${constraints:-newest versions})"; \
	    uv venv --quiet --python "$(PYTHON)" $(VENV) && \
	    uv pip install --quiet --python $(VENV)/bin/python $${constraints:+-c $$constraints} -e ".[test]" && \
	    uv pip install --quiet --python $(VENV)/bin/python --no-deps $(WITHOUT_DEPENDENCIES); \
	else \
	    $(check-venv); \
	    echo "pcls: $(VENV): installing with pip and $(PYTHON) ($${constraints:-newest versions}); takes minutes"; \
	    "$(PYTHON)" -m venv $(VENV) && \
	    $(VENV)/bin/python -m pip install -qq $${constraints:+-c $$constraints} -e ".[test]" && \
	    $(VENV)/bin/python -m pip install -qq --no-deps $(WITHOUT_DEPENDENCIES); \
	fi
	@echo "$(PYTHON)" > $(VENV)/.pcls-python
	@touch $@

# pip and not uv: where a CPU build of torch lies in a folder of wheels, it is pip that is configured to look there.
$(PEERS_STAMP): pyproject.toml $(wildcard constraints/*.txt)
	@$(call install-with-pip,$(PEERS_VENV),[test$(comma)peers$(comma)bench],torch$(comma) keras and tensorflow-cpu)

$(TPU_STAMP): pyproject.toml $(wildcard constraints/*.txt)
	@$(call install-with-pip,$(TPU_VENV),[test$(comma)tpu],libtpu)

# Without constraints: Beam wants older versions of some packages than they pin.
$(BEAM_STAMP): pyproject.toml
	@$(check-python); \
	$(check-venv); \
	$(call replace-venv,$(BEAM_VENV)); \
	echo "pcls: $(BEAM_VENV): installing Apache Beam too, with pip and $(PYTHON); takes minutes"; \
	"$(PYTHON)" -m venv $(BEAM_VENV) && \
	$(BEAM_VENV)/bin/python -m pip install -qq -e ".[beam]" "pytest>=9.2" && touch $@

comma := ,

# Its arguments: folder, extras, and what they bring in words.
define install-with-pip
$(check-python); \
$(check-venv); \
$(call replace-venv,$(1)); \
$(find-constraints); \
echo "pcls: $(1): installing $(3) too, with pip and $(PYTHON); takes minutes"; \
"$(PYTHON)" -m venv $(1) && \
$(1)/bin/python -m pip install -qq $${constraints:+-c $$constraints} -e ".$(2)" && touch $(1)/.pcls-installed
endef

define check-python
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
{ echo 'pcls: "$(PYTHON)" is missing or older than Python 3.11: name a newer one, as in PYTHON=python3.12' >&2; exit 1; }
endef

define check-venv
"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
{ echo 'pcls: "$(PYTHON)" cannot make virtual environments: install python3-venv (Debian, Ubuntu) or uv' >&2; exit 1; }
endef

# Never removes a folder that is not a virtual environment, whatever VENV says.
define replace-venv
if [ -e $(1) ] && [ ! -f $(1)/pyvenv.cfg ]; then \
echo 'pcls: $(1) exists and is no virtual environment: name another folder, as in VENV=.venv-2' >&2; exit 1; fi; \
rm -rf $(1)
endef

# Sets $$constraints to the file for this Python, or to nothing (with a notice) where none was made for it.
define find-constraints
constraints=constraints/py$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; \
if [ ! -f "$$constraints" ]; then \
echo "pcls: there is no $$constraints: installing the newest versions, which nobody has tested together"; constraints=; fi
endef

# Resolves without installing. Only names and versions are kept: whoever installs chooses the index.
define pin-versions
version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
report=$$(mktemp); trap 'rm -f "$$report"' EXIT; \
"$(PYTHON)" -m pip install -qq --dry-run --ignore-installed --report "$$report" ".[test]" && \
{ echo "# Tested together on Python $$version. Made by: make constraints PYTHON=python$$version"; \
"$(PYTHON)" -c 'import json, sys; \
pins = {(m["name"].lower(), m["version"]) for m in (i["metadata"] for i in json.load(sys.stdin)["install"])}; \
print(*sorted(f"{name}=={version}" for name, version in pins if name != "pcls"), sep="\n")' < "$$report"; \
} > "constraints/py$$version.txt"
endef
