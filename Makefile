# The same commands without make are in the README.
PYTHON ?= python3
VENV   ?= .venv
BUDGET ?= 5m
CORPUS ?= movie_reviews
ARGS   ?=
PY     := $(VENV)/bin/python

.PHONY: cram test book stability bench edition lint doctor lock clean help

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

cram: $(VENV)/core  ## train within BUDGET (5m) on CORPUS (movie_reviews); more options in ARGS
	@$(PY) -m course_lib cram --corpus '$(CORPUS)' --budget '$(BUDGET)' $(ARGS)

doctor: $(VENV)/core  ## check this machine
	@$(PY) -m course_lib doctor

test: $(VENV)/all lint  ## lint, types, tests, and every notebook compared with its stored output
	$(PY) -m pytest --nbval

lint: $(VENV)/all  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

stability: $(VENV)/all  ## rerun changed notebooks with other threads and CPU kernels; they must print the same
	$(PY) tools/stability.py

book: $(VENV)/all  ## build the book into _build/html
	$(VENV)/bin/jupyter-book build . -W -n --keep-going

bench: $(VENV)/all  ## race against the peers, two hours; with NANOGPT=path also against nanoGPT
	$(PY) -m tools.race --out runs/race-$$(date +%Y%m%d-%H%M) $(ARGS)

edition: $(VENV)/all  ## write student editions and autograders into _build/edition
	$(PY) tools/make_edition.py

# requirements.txt holds exact versions of everything; pyproject.toml says what is needed.
$(VENV)/core: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.txt -e .
	@touch $@

$(VENV)/all: $(VENV)/core
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.txt -e '.[book,test]'
	@touch $@

lock:  ## resolve requirements.txt anew from pyproject.toml
	rm -rf _build/lock && $(PYTHON) -m venv _build/lock
	_build/lock/bin/python -m pip install --quiet 'torch==2.13.0' -e '.[book,test]'
	_build/lock/bin/python tools/write_lock.py > requirements.txt

clean:  ## remove the environment and everything built
	rm -rf $(VENV) _build
