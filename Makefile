# Two commands: `make demo` shows the system at work, `make test` proves it.
# Both install what they need into $(VENV) first, and start at once when it is there.

PYTHON ?= python3
VENV   ?= .venv
# Asked for by this exact version and before all else: a plain name or a range
# would bring gigabytes of GPU packages. On a GPU node set TORCH to the build for it.
TORCH  ?= torch==2.13.0
# How many tests run at once.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo experiment test fuzz chaos soak compose-test slurm-test wheel-test bench lint typecheck \
	install install-dev errors-doc proto lock train clean

demo: install
	$(BIN)/python demo/run.py

# One of configs/experiments: make experiment NAME=all_arms. TARGET and DRAFT name another pair,
# LIMIT how many of the prompts.
experiment: install
	$(BIN)/python demo/run.py --config configs/experiments/$(NAME).yaml \
		$(if $(TARGET),--target $(TARGET)) $(if $(DRAFT),--draft $(DRAFT)) \
		$(if $(LIMIT),--limit $(LIMIT))

test: lint typecheck
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The long forms of tests/robustness; `make test` runs the short ones.
fuzz: install-dev
	$(BIN)/python -m tests.robustness.fuzz --sequences 100000

chaos: install-dev
	$(BIN)/python -m tests.robustness.chaos --generations 200

soak: install-dev
	$(BIN)/python -m tests.robustness.soak --seconds 600 --clients 32

# deploy/tests, which needs more than a clean machine: a container engine and compose; slurmctld,
# slurmd and root; a package index and some minutes.
compose-test: install-dev
	TORCH='$(TORCH)' $(BIN)/python -m pytest --timeout 1200 deploy/tests/test_compose.py

slurm-test: install-dev
	$(BIN)/python -m pytest --timeout 1200 deploy/tests/test_slurm.py

wheel-test: install-dev
	TORCH='$(TORCH)' $(BIN)/python -m pytest --timeout 1200 deploy/tests/test_wheel.py

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: install-dev
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	@touch $@

# docs/errors.md, from the sources; `make test` fails when it is behind them.
errors-doc: install-dev
	$(BIN)/python -m tests.errors_table

# The stubs are committed, made by the oldest protoc this project supports, so
# that they work with every protobuf runtime from there on (see CONTRIBUTING.md).
proto:
	$(PYTHON) -m venv build/proto
	build/proto/bin/pip install --quiet grpcio-tools==1.74.0 mypy-protobuf==3.6.0
	build/proto/bin/python -m grpc_tools.protoc -Iproto \
		--plugin=protoc-gen-mypy_grpc=build/proto/bin/protoc-gen-mypy_grpc \
		--python_out=. --pyi_out=. --grpc_python_out=. --mypy_grpc_out=. \
		outrider/v1/verifier.proto

# Writes both lock files from a fresh environment.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet $(TORCH)
	build/lock/bin/pip install --quiet '.[cloud,edge]'
	build/lock/bin/pip freeze --exclude torch --exclude outrider > requirements.lock
	build/lock/bin/pip install --quiet '.[dev]'
	build/lock/bin/pip freeze --exclude torch --exclude outrider > requirements-dev.lock

# The engine against transformers and the arms against each other, about six minutes; nothing else should run meanwhile.
bench: install-dev
	$(BIN)/python -m benchmarks.engine --json .work/bench.json

# Trains the bundled pair again (about three hours on two cores).
train: install
	$(BIN)/python demo/train.py all

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
