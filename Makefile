# make quickstart   install, train on the sample data, open the result in a fresh process
# make test         install, lint, test
# make bench-serving  engines, one sentence, cold start and the server, of runs/quickstart or FOLDER=FOLDER
#                     (whose int8 graph is measured on FOLDER/recipe.yaml or RECIPE=FILE)
# make bench        every benchmark against what people use now, on the sample data; DATA=FOLDER takes real data
# All use one virtual environment with the versions of constraints.txt.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin

.PHONY: quickstart test bench bench-serving lint clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[quickstart,test]"
	touch $@

# A finished run stays, with what was exported beside it.
quickstart: $(VENV)/installed
	@if test -f runs/quickstart/results.json; then \
		echo "runs/quickstart holds a run, which stays. To train again, remove the folder."; \
	else \
		$(BIN)/python train.py recipes/quickstart.yaml --output_dir runs/quickstart --overwrite; \
	fi
	cd $$(mktemp -d) && $(BIN)/python $(CURDIR)/recipes/open_model.py $(CURDIR)/runs/quickstart

# The repository is the package, whatever its folder is called: the type checker finds it by its name through a link.
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/types && ln -sfn $(CURDIR) $(VENV)/types/multitask_sentence
	cd $(VENV)/types && $(BIN)/ty check --python $(VENV) --config-file $(CURDIR)/ty.toml multitask_sentence

# Two workers of one thread each (tests/conftest.py): on two cores half the time of one worker with two threads. With a
# worker that died, the run fails and ends: were it replaced, pytest-xdist would wait for ever.
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

bench: $(VENV)/installed
	for name in encode predict latency scaling training; do \
		$(BIN)/python benchmarks/$$name.py $(if $(DATA),--data_root $(DATA)) --plot runs/bench/$$name.png || exit 1; \
	done

# What is exported already stays. An int8 graph that fails the gate is left out, and said so.
FOLDER ?= runs/quickstart
RECIPE ?= $(if $(filter runs/quickstart,$(FOLDER)),recipes/quickstart.yaml,$(FOLDER)/recipe.yaml)
bench-serving: $(VENV)/installed
	test -f $(FOLDER)/openvino/export.json || \
		$(BIN)/python -m multitask_sentence export $(FOLDER) --engines onnx openvino --int8 \
			--recipe $(RECIPE) || test -f $(FOLDER)/openvino/export.json
	$(BIN)/python benchmarks/serving.py $(FOLDER) $(if $(DATA),--data_root $(DATA)) --json runs/bench/serving.json \
		--plot runs/bench/serving.png

clean:
	rm -rf $(VENV) build *.egg-info
