# Two commands for users: `make demo` and `make test`. Both set up .venv first.
# PYTHON=python3.12 make test   uses another interpreter, 3.11 to 3.13.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
# The lower bounds hold on the lowest Python.
LOWEST_TOO = $(shell $(PYTHON) -c 'import sys; print(".venv-lowest/ready" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: demo test environments test-commands test-wheel test-extras test-remote test-faults test-lowest docs mutants bench-loss bench-data gpu clean

demo: .venv/ready
	$(BIN)/superpose compare demo

test:
	$(MAKE) -j 2 environments
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --ignore tests/test_commands.py --ignore tests/test_wheel.py
	$(MAKE) test-commands
	$(MAKE) -j 2 test-wheel docs
	$(MAKE) test-extras
	$(MAKE) test-remote
	$(if $(LOWEST_TOO),$(MAKE) test-lowest)

environments: .venv/ready .venv-extras/ready .venv-remote/ready .venv-docs/ready $(LOWEST_TOO)

# What the documentation shows, carried out on a little text: processes, comparisons and searches, so apart.
test-commands: .venv/ready
	$(BIN)/pytest -n 2 --dist worksteal tests/test_commands.py

# What a user installs: a wheel in an empty environment, for the core alone and with its extras; the sdist's tests.
test-wheel: .venv/ready
	$(BIN)/pytest --durations 3 tests/test_wheel.py

# What the extras need: TorchTitan, which asks for another version of datasets, lm-eval, the loops of Lightning and litgpt,
# and Triton, whose kernels are interpreted, and compiled for GPUs that need not be there: in one environment apart.
test-extras: .venv-extras/ready
	.venv-extras/bin/pytest -n 2 --dist loadfile tests/integrations/torchtitan tests/evaluate/test_lm_eval.py \
		tests/integrations/test_loops_extras.py tests/data/test_stream.py tests/core/test_triton_passes.py

# Remote places on a server of this machine that speaks S3, what datasets streams, and a Ray cluster of two nodes on this
# machine: in an environment apart.
test-remote: .venv-remote/ready
	.venv-remote/bin/pytest -n 2 --dist loadfile tests/test_places.py tests/test_copies.py tests/data/test_remote.py \
		tests/data/test_text_streams.py tests/engine/test_ray.py -m 'not faults'

# Nodes and drivers of that cluster that are killed: two minutes of their own.
test-faults: .venv-remote/ready
	.venv-remote/bin/pytest tests/engine/test_ray.py -m faults

# The lower bounds of pyproject.toml, true: what reads text, models and settings, in an environment of just these versions.
# Newer packages below them may call what they use deprecated, which is no fault.
# `make test-lowest LOWEST=tests` runs all.
LOWEST ?= tests/cli/test_plan.py tests/cli/test_runs.py tests/cli/test_share.py tests/data/test_compressed.py \
	tests/data/test_config.py tests/data/test_formats.py tests/data/test_readers.py tests/data/test_record_files.py \
	tests/data/test_store.py tests/data/test_token_files.py tests/data/test_tokenizer.py tests/integrations/test_rows.py \
	tests/models tests/report tests/share tests/train/test_checkpoint.py tests/train/test_config.py
test-lowest: .venv-lowest/ready
	.venv-lowest/bin/pytest -n 2 --dist loadfile -W ignore::DeprecationWarning $(LOWEST)

# The documentation as a site in site/, which opens from the folder; any warning is an error.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# Breaks the code in the ways the method is usually got wrong, and shows which tests notice.
mutants: .venv/ready
	$(BIN)/python checks/mutants.py

# The loss and the embedding against the ways they are usually computed: docs/loss.md. About an hour and a half.
bench-loss: .venv/ready
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/loss.py

# Preparing text against datasets.map, and its memory: docs/data.md. Some 20 minutes.
bench-data: .venv/ready
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/data.py

# All that is measured on a GPU, in eight minutes on one card: docs/gpu.md.
gpu: .venv/ready
	PYTHONPATH=benchmarks $(BIN)/python -m gpu --out benchmarks/results
	PYTHONPATH=benchmarks $(BIN)/python -m gpu --page benchmarks/results/gpu.json

.venv/ready: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "superpose needs Python 3.11 or newer; name one: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[dev]'
	touch .venv/ready

.venv-lowest/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(INSTALL) -c constraints-lowest.txt -e '.[dev]'
	touch .venv-lowest/ready

.venv-extras/ready: pyproject.toml constraints-extras.txt
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python $(INSTALL) -c constraints-extras.txt \
		-e '.[torchtitan,evaluate]' pytest pytest-xdist hypothesis lightning jsonargparse
	# Its model needs none of what litgpt asks for in versions that do not fit the others.
	.venv-extras/bin/python $(INSTALL) --no-deps litgpt==0.5.13
	touch .venv-extras/ready

.venv-remote/ready: pyproject.toml constraints-remote.txt
	$(PYTHON) -m venv .venv-remote
	.venv-remote/bin/python $(INSTALL) -c constraints-remote.txt \
		-e '.[remote,stream,ray]' s3fs 'moto[s3]' flask flask-cors pytest pytest-xdist hypothesis
	touch .venv-remote/ready

.venv-docs/ready: constraints-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(INSTALL) -r constraints-docs.txt
	touch .venv-docs/ready

clean:
	rm -rf .venv .venv-extras .venv-remote .venv-lowest .venv-docs site build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
