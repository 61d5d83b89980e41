# One command per duty; `make demo`, `make test` and `make up` need nothing prepared.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip is told of local wheels, uv must be told too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
.PHONY: setup demo test lint docs bench up lock clean

setup: $(VENV)/ready

$(VENV)/ready: requirements.lock pyproject.toml
	@echo "Installing into $(VENV): a minute or two, about 3 GB."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup        ## Live through April to July 2013, then say what happened
	@$(BIN)/headrace demo

up: setup          ## Prefect, MLflow and a worker, until Ctrl-C
	@$(BIN)/headrace up

test: setup        ## Everything that needs only Python; the rest skips and says why
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/lint-imports --config layers.toml

docs: setup        ## The site of docs/, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup       ## make bench NAME=imports; without a name, all of them
	$(BIN)/python -m benchmarks $(NAME)

# What CUDA needs beside torch comes with the builds of torch that want it.
lock:              ## Resolve pyproject.toml anew
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev \
	  --no-emit-index-url --no-header --no-annotate pyproject.toml \
	  | sed 's/+cpu//' | grep -vP '^(cuda-|triton==|nvidia-(?!nccl-cu12))' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:             ## Forget everything: the environment and .headrace
	rm -rf $(VENV) .headrace site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
