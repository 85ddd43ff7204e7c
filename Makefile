# What one runs here. Every target sets up what it needs in $(VENV); a second call finds it there.
#   make help | demo | test | test-all | lint | format | bench | wheel | docs | lock | clean
#   make test ARGS=tests/data     PYTHON=python3.12 make test     VENV=/tmp/venv make test

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
# Processes of make test: one a core, up to four; 0 runs the tests in one, as a debugger wants it.
WORKERS ?= logical
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
TORCH := 2.13.0
# The projects whose published files are loaded: tests compare with their own code, where it is installed.
REFERENCES := dall-e==0.1 taming-transformers-rom1504==0.0.6
IMPORTED := attrs requests # by them
BROWSER := playwright # drives Chromium; what else the page's tests need is not Python's, and is said below

# A folder of wheels that pip is told of holds for uv too: where it offers torch for the CPU, no CUDA packages come in.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_LINK_MODE ?= copy

recent = $(shell $(PYTHON) -c 'import sys; print(int(sys.version_info >= (3, 10)))' 2>&1)
check_python = $(if $(filter 1,$(recent)),,$(error dalle needs Python 3.10 or newer, and PYTHON=$(PYTHON) is not: try make PYTHON=python3.11))

.PHONY: help demo test test-all lint format bench wheel docs lock clean
.DEFAULT_GOAL := test

help:
	@printf '%s\n' \
		'make demo      a virtual environment in $(VENV), and the 4 best of 16 images for each of four prompts' \
		'make test      the fast tests (make test ARGS=tests/data)' \
		'make test-all  all tests, with what the slow ones need' \
		'make lint      ruff, import layers, mypy, codespell' \
		'make format    ruff: what it can mend, and the layout' \
		'make bench     what is measured; make bench ARGS="jacobi --windows 4 8" measures it' \
		'make wheel     dist/dalle-*.whl, with the model, the tokenizers and the recipes' \
		'make docs      the site' \
		'make lock      constraints.txt anew' \
		'make clean     removes the environment and all that was built' \
		'' 'PYTHON=python3.12 chooses the Python, VENV=/tmp/venv the environment.'

# A known thing; a style and a thing that were trained on, but not together; colors of an icon and of its background; a
# sunflower in Nepali and Hindi: what it does well (docs/gallery.md has what it does not). It prints the path of the grid.
DEMO := "a rocket, 3d style" "a police officer, noto style" "a white heart, solid style, on a purple background" "सूर्यमुखी"

demo: $(STAMP)
	$(BIN)/python sample.py $(DEMO) --n 16 --keep 4 --seed 7
	@printf '%s\n' '' 'Next, for example:' '  source $(BIN)/activate' \
		'  python sample.py "a bicycle" "कुत्ते का चेहरा" --n 16 --keep 4' \
		'  python train.py configs/folder/finetune.yaml data.path=examples/images/ lora=null run.steps=50'

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

test-all: $(STAMP)
	@PATH="$$PATH:$(BIN)"; if command -v uv >/dev/null; then \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,docs,lora,t5,wandb]' $(IMPORTED) $(BROWSER); \
		uv pip install -q --python $(BIN)/python --no-deps $(REFERENCES); \
	else \
		$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs,lora,t5,wandb]' $(IMPORTED) $(BROWSER); \
		$(BIN)/python -m pip install -q --no-deps $(REFERENCES); \
	fi
	@command -v npm >/dev/null && npm install --silent --no-fund --no-audit --prefix $(VENV) axe-core || \
		echo "npm is missing: tests of the page's accessibility are skipped"
	@test -x /usr/bin/chromium || echo "chromium is missing (apt-get install chromium fonts-lohit-deva): tests of the page are skipped"
	$(BIN)/python -m pytest -q -m "" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

format: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(STAMP)
ifeq ($(ARGS),)
	@for file in $(wildcard benchmarks/*.py); do printf '%s\n    %s\n' $$file "$$(head -1 $$file | sed 's/^r*"*//; s/"*$$//')"; done
else
	$(BIN)/python benchmarks/$(firstword $(ARGS)).py $(wordlist 2, $(words $(ARGS)), $(ARGS))
endif

wheel: $(STAMP)
	$(BIN)/python -m hatchling build -t wheel

docs: $(STAMP)
	@PATH="$$PATH:$(BIN)"; if command -v uv >/dev/null; then \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,docs]'; \
	else \
		$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs]'; \
	fi
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# uv if it is there or comes with pip (an environment in 20 seconds), else pip (a minute).
$(STAMP): pyproject.toml constraints.txt
	$(check_python)
	@test -x $(BIN)/python || { command -v uv >/dev/null && uv venv -q --python $(PYTHON) $(VENV); } || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -q -c constraints.txt uv || true
	@PATH="$$PATH:$(BIN)"; if command -v uv >/dev/null; then \
		uv pip install -q --python $(BIN)/python -c constraints.txt -b constraints.txt -e '.[dev]'; \
	else \
		$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'; \
	fi
	@$(BIN)/python -m dalle.kernels.native  # compiles for this CPU now, so that no first image waits for it
	@touch $@

# Anew the exact versions, for every Python from 3.10. Local wheels are left out of it, so the file names no build of
# torch for one machine only, no host and no folder.
lock: $(STAMP)
	printf 'torch==$(TORCH)\nsetuptools\nuv\n' | UV_FIND_LINKS= PATH="$$PATH:$(BIN)" uv pip compile -q --universal \
		--python-version 3.10 --extra dev --extra docs --extra lora --extra t5 --extra wandb --extra serve --upgrade --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		pyproject.toml - > $(VENV)/constraints.new
	sed -n '/^#/p' constraints.txt | cat - $(VENV)/constraints.new > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find dalle tests -name __pycache__ -prune -exec rm -rf {} +
