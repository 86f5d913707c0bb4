# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
DEMO ?= demo

export DO_NOT_TRACK = 1
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo test check docs bench evidence clean

help:
	@echo "make demo   set up, fetch the embedded model, build an assistant on docs/ and ask it three questions"
	@echo "make test   set up, lint, run all tests (what CI runs)"
	@echo "make check  lint and type-check only"
	@echo "make docs   write the generated pages again"
	@echo "make bench  measure decoding against transformers (and llama.cpp where it is installed)"

$(VENV)/core: pyproject.toml constraints.txt
	@echo "setting up (once, some minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP)
	$(PIP) -e ".[docs,serve]"
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) -e ".[docs,serve,data,cluster,dev,oracles,evidence]"
	@touch $@

demo: $(VENV)/core
	$(BIN)/almanac build docs --output $(DEMO)
	$(BIN)/almanac ask $(DEMO) "What is a site?"
	$(BIN)/almanac ask $(DEMO) "What is a certificate?"
	$(BIN)/almanac ask $(DEMO) "Who won the football world cup in 1954?"
	@echo
	@echo "The assistant is in $(DEMO)/; its card: $(DEMO)/card.md; its report: $(DEMO)/report.html. Next:"
	@echo "  $(BIN)/almanac serve $(DEMO)                     a page to chat with it, and an OpenAI-compatible API"
	@echo "  $(BIN)/almanac index add $(DEMO) FILE.pdf        another document, without training again"
	@echo "  $(BIN)/almanac build YOUR-DOCUMENTS --output my-assistant"

test: $(VENV)/dev
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	-$(BIN)/almanac doctor --fetch smollm2-135m-instruct
	-$(BIN)/almanac doctor --fetch all-minilm-l6-v2
	$(BIN)/python -m pytest -n 2 --durations=40

check: $(VENV)/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

docs: $(VENV)/dev
	$(BIN)/python -m almanac.verify.matrix
	$(BIN)/python -m almanac.cli.reference
	$(BIN)/python -m almanac.evidence.pages

evidence: $(VENV)/dev
	$(BIN)/almanac evidence --all --profile full

bench: $(VENV)/dev
	$(BIN)/python benchmarks/decode.py

clean:
	rm -rf $(VENV) $(DEMO)
