PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

# Only the slow tests run notebooks: nobody else waits for Jupyter.
NOTEBOOKS_INSTALLED := $(VENV)/.installed-notebooks

PARITY_VENV ?= .venv-parity
TORCH ?= 2.13.0
PARITY_INSTALLED := $(PARITY_VENV)/.installed

BEAM_VENV ?= .venv-beam
BEAM_INSTALLED := $(BEAM_VENV)/.installed

EMULATORS_VENV ?= .venv-emulators
EMULATORS_INSTALLED := $(EMULATORS_VENV)/.installed

# As `mvlm train` has it: glibc's huge pages, see docs/performance.md.
HUGE_PAGES := GLIBC_TUNABLES=$${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

.PHONY: demo bench docs test slow parity test-all format clean

# One command from nothing to a trained, evaluated model; its last line is one JSON object.
# DEMO="--config.steps=100" changes fields of its config.
demo:
	@started=$$(date +%s) && $(MAKE) --no-print-directory $(INSTALLED) && \
	$(HUGE_PAGES) $(VENV)/bin/python launch/demo.py --workdir=runs/demo --data_dir=runs/data --started=$$started $(DEMO)

# Speed on this machine, in one table. Beside PyTorch and transformers where `make parity` has installed them.
# BENCH="--only step --deadline=600" gives flags of benchmarks/bench.py.
bench: $(INSTALLED)
	@mkdir -p runs
	$(if $(wildcard $(PARITY_INSTALLED)),$(PARITY_VENV),$(VENV))/bin/python -u benchmarks/bench.py --json=runs/bench.jsonl $(BENCH)

# The documentation as a site, in site/. Nothing is fetched for it; a broken link or a name that is gone is an error.
docs: $(INSTALLED)
	$(VENV)/bin/python -m mkdocs build --strict

# A worker has whole files, whose tests share what is costly to set up; in the order of their names the short ones come last.
PYTEST = $(HUGE_PAGES) $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What guards everyday work.
test: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) -m "not slow"

# Kills, runs of several processes, other meshes, the notebooks, runs in emulated object stores; and Apache Beam, which the
# first line skips.
slow: $(NOTEBOOKS_INSTALLED) $(BEAM_INSTALLED) $(EMULATORS_INSTALLED)
	MVLM_EMULATORS=$(abspath $(EMULATORS_VENV))/bin/python $(PYTEST) -m slow
	$(BEAM_VENV)/bin/python -m pytest tests/data/test_beam.py

# Against torch and transformers, with weights of full size and real ones; and what reads files of torch.
# MVLM_DINOV2_SMALL=DIR compares a real DINOv2-small too: its model.safetensors, config.json and preprocessor_config.json,
# and last_hidden_state.npy, which a reference computed.
parity: $(PARITY_INSTALLED)
	$(PARITY_VENV)/bin/python -m pytest -s tests/parity tests/interop

test-all: test slow parity

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(PARITY_VENV) $(BEAM_VENV) $(EMULATORS_VENV) .cache runs site

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

$(NOTEBOOKS_INSTALLED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebooks]'
	@touch $@

# Beam takes no newer versions of some libraries than these. They are put in front of the environment of the other tests.
$(BEAM_INSTALLED): $(INSTALLED) constraints-beam.txt
	$(PYTHON) -m venv $(BEAM_VENV)
	$(VENV)/bin/python -c 'import site; print("$(CURDIR)", *map(__import__("os").path.abspath, site.getsitepackages()), sep="\n")' \
	> "$$($(BEAM_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth"
	$(BEAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-beam.txt apache-beam
	@touch $@

# An environment of its own: nobody who only uses the project waits for torch.
$(PARITY_INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==$(TORCH) || \
	$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,parity]'
	@touch $@

# What only a server of the tests needs: no version in it changes one of theirs.
$(EMULATORS_INSTALLED): tests/stores/emulators.txt
	$(PYTHON) -m venv $(EMULATORS_VENV)
	$(EMULATORS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/stores/emulators.txt
	@touch $@
