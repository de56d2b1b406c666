# Everything a fresh checkout needs is Python (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart demo serve facts language paper test test-slow test-all lint docs docs-check release clean
.NOTPARALLEL:  # one run at a time writes into a workdir, and each uses all devices

quickstart: $(VENV)/run.done
	$(BIN)/undo-jax run experiments/quickstart.py --workdir runs/quickstart \
	    --relearn.keep-at 5 10 20 30 40 50

# A page of what its models answer, before and under attack; and a server that answers prompts, too.
demo: quickstart
	$(BIN)/undo-jax demo runs/quickstart --experiment experiments/quickstart.py

serve: quickstart $(VENV)/demo.done
	$(BIN)/undo-jax demo runs/quickstart --experiment experiments/quickstart.py --serve

# Forgetting what is known of invented families.
facts: $(VENV)/run.done
	$(BIN)/undo-jax run experiments/facts.py --workdir runs/facts

# The language setting on real text: the help pages of LibreOffice, fetched by apt-get.
DATA = data/language_small
PACK = $(BIN)/undo-jax data pack --source jsonl --tokenizer $(DATA)/tokenizer.model \
    --row-length 128 --validation-share 0.1
language: $(DATA)/english/manifest.json $(DATA)/korean/manifest.json
	$(BIN)/undo-jax run experiments/language_small.py --workdir runs/language_small

$(DATA)/%/manifest.json: $(DATA)/tokenizer.model
	$(PACK) --pattern $(DATA)/$*.jsonl --out $(DATA)/$*

$(DATA)/tokenizer.model: | $(VENV)/text.done
	$(PYTHON) scripts/fetch_libreoffice_help.py $(DATA)
	$(BIN)/undo-jax data train-tokenizer --source jsonl --vocab-size 2048 --out $@ \
	    --pattern $(DATA)/english.jsonl $(DATA)/korean.jsonl

# The paper's figures at small scale: all are run one after the other, and then drawn on one page.
PAPER = runs/paper
ifneq ($(words $(PAPER)),1)
$(error PAPER=$(PAPER): give one folder, without spaces in its name)
endif
SOURCES = $(wildcard experiments/*.py experiments/paper/*.py) $(shell find undo_jax -name '*.py')

# A figure's file has a comment for each run, e.g. `# make paper 11: --setting arithmetic`. RUNS are
# words NAME-FLAG-VALUE, in the order of these numbers.
RUNS := $(shell grep '^. make paper' experiments/paper/*.py | \
    sed 's|.*/\(.*\).py:. make paper \(.*\): --\(.*\) \(.*\)|\2 \1-\3-\4|' | sort -n | cut -d ' ' -f 2)
define rule
paper: $(PAPER)/done/$(word 1,$(1))-$(word 3,$(1))
$(PAPER)/done/$(word 1,$(1))-$(word 3,$(1)): $(VENV)/run.done $(SOURCES) \
    $(if $(filter language,$(1)),$(DATA)/english/manifest.json $(DATA)/korean/manifest.json)
	$(BIN)/undo-jax run experiments/paper/$(word 1,$(1)).py --$(wordlist 2,3,$(1)) --workdir $(PAPER)
	mkdir -p $$(@D) && touch $$@
endef
$(foreach run,$(RUNS),$(eval $(call rule,$(subst -, ,$(run)))))
paper:
	$(BIN)/undo-jax figures $(PAPER)

# XLA's CUDA plugin, which compiles for GPUs without one, is for Linux on x86-64.
ifeq ($(shell uname -sm),Linux x86_64)
test test-slow: $(VENV)/gpu.done
endif

# The tests of a file stay in one process, for they share what its fixtures made; files in their
# order, as the larger ones are not the last.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/test.done
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/test.done
	$(PYTEST) -m slow

test-all: test
	$(MAKE) test-slow

lint: $(VENV)/lint.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/docs.done
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --quiet --fail-on-warning -b html docs build/docs

# The commands and Python blocks of README.md and the documents, executed from a fresh clone.
docs-check: $(VENV)/test.done
	$(BIN)/python scripts/check_docs.py $(PAGES)

# A wheel and a source archive in dist/, built and then checked from an empty environment.
release: $(VENV)/release.done
	$(BIN)/python scripts/check_release.py

$(foreach name,run demo text test lint docs release,$(VENV)/$(name).done): $(VENV)/%.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.$(if $(filter run,$*),,[$*])'
	touch $@

# Not beside jax, which would look for a GPU and complain, and without NVIDIA's libraries.
$(VENV)/gpu.done: constraints.txt | $(VENV)/test.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	    --constraint constraints.txt --target $(VENV)/gpu jax-cuda13-pjrt jax-cuda13-plugin
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
