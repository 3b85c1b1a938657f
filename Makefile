# Every target with one line: `make`. A target prints the command it runs; the commands are documented in README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo data check split plan search crossval train evaluate explain infer report tensorboard check-bundles test lint types notebooks fuzz bench release dist clean

# a bundle's name, or the folder of your own
BUNDLE  ?= segmentation
NETWORK ?=
LAYERS  ?=
DATA    ?=
FROM    ?=
RUN     ?= $(notdir $(BUNDLE))
INPUT   ?=
NAME    ?= training
ONLY    ?=
FULL    ?=
COUNT   ?= 400
FOLD    ?=
FOLDS   ?= 5
MINUTES ?=
SIZE    ?=
MEMORY  ?=
TRIALS  ?=
OUT     ?=
ARGS    ?=

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONFIGS := $(firstword $(wildcard $(BUNDLE)/configs bundles/$(BUNDLE)/configs) bundles/$(BUNDLE)/configs)
MONAI   := $(BIN)/python -W "ignore:parsing config_file" -m monai.bundle run --config_file

empty :=
comma := ,
space := $(empty) $(empty)
# a list of files as the bundle command takes it: "['a.yaml','b.yaml']"
files = "[$(subst $(space),$(comma),$(strip $(foreach file,$(1),'$(file)')))]"
# the packaged bundle that a planned one is made of; its networks and other layers serve the plan too
PACKAGED := $(shell sed -n 's/^  "task": "\(.*\)",*$$/\1/p' $(BUNDLE)/fingerprint.json 2>/dev/null)
# a layer by its path, or by its name in the bundle, the packaged one, or bundles/_layers
layer = $(firstword $(wildcard $(1) $(CONFIGS)/$(1).yaml $(PACKAGED:%=bundles/%/configs/$(1).yaml) bundles/_layers/$(1).yaml) $(2))
# numbers of a data set, a network, further layers
layers = $(wildcard $(CONFIGS)/data/$(DATA).yaml) \
         $(foreach name,$(NETWORK),$(call layer,networks/$(name),$(CONFIGS)/networks/$(name).yaml)) \
         $(foreach name,$(LAYERS),$(call layer,$(name),$(name)))
trained = runs/$(RUN)/configs/train.yaml
# of this cross-validation alone: an earlier one may have had more
folds = $(foreach fold,$(shell seq 0 $$(( $(FOLDS) - 1 ))),runs/$(RUN)/fold_$(fold))
dataset = $(DATA:%=--dataset_dir %)
# print the command, run it; where it fails before our own checks can speak, the lint says why
run = @$(info $(strip $(MONAI) $(call files,$(1)) $(2)))$(MONAI) $(call files,$(1)) $(2) \
      || { status=$$?; [ $$status -ne 1 ] || $(BIN)/tomokit lint --quiet $(1) $(2); exit $$status; }

help:  ## print every target
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */: /' | awk -F': ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## make .venv with the pinned versions
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## the main job from data to predictions  [DATA= FROM= RUN=]
	@$(MAKE) --no-print-directory data train evaluate infer report RUN=$(if $(filter command environment,$(origin RUN)),$(RUN),demo)

$(VENV)/.installed-search: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[search]'
	@touch $@

data: install  ## make or copy a data set  [DATA= FROM=]
	$(call run,$(CONFIGS)/data.yaml,$(dataset) $(FROM:%=--source %))

check: install  ## find what is wrong with a data set  [DATA= ARGS="--html FILE"]
	$(BIN)/tomokit check $(or $(DATA),phantom-ct) $(ARGS)

split: install  ## draw a split by patient, stratified  [DATA= ARGS="--folds 5"]
	$(BIN)/tomokit split $(or $(DATA),phantom-ct) $(ARGS)

plan: install  ## write a bundle for a data set, planned from it  [DATA= OUT= MINUTES= MEMORY=]
	$(BIN)/tomokit plan $(or $(DATA),phantom-ct) --out $(or $(OUT),plans/$(notdir $(or $(DATA),phantom-ct))) $(MINUTES:%=--minutes %) $(MEMORY:%=--memory %) $(ARGS)

search: $(VENV)/.installed-search  ## search the best settings  [BUNDLE= TRIALS= MINUTES=]
	$(BIN)/tomokit search $(BUNDLE) $(TRIALS:%=--trials %) $(MINUTES:%=--minutes %) $(dataset) $(ARGS)

# the last fold first: where the split has fewer folds, it ends before anything is trained
crossval: install  ## train and score every fold, gather the scores, join the networks  [as train; FOLDS=5]
	@for fold in $$(seq $$(( $(FOLDS) - 1 )) -1 0); do \
	  $(MAKE) --no-print-directory train RUN=$(RUN)/fold_$$fold FOLD=$$fold && \
	  $(MAKE) --no-print-directory evaluate RUN=$(RUN)/fold_$$fold ARGS= || exit $$?; done
	$(call run,$(CONFIGS)/train.yaml bundles/_layers/crossval.yaml,--runs $(call files,$(folds)) --run_dir runs/$(RUN))
	$(call run,$(CONFIGS)/train.yaml bundles/_layers/ensemble.yaml,--runs $(call files,$(folds)) --run_dir runs/$(RUN)/ensemble)

train: install  ## train a network  [BUNDLE= NETWORK= LAYERS= DATA= FOLD= RUN=]
	$(call run,$(CONFIGS)/train.yaml $(layers),--run_dir runs/$(RUN) $(dataset) $(ARGS) $(FOLD:%=--fold %))

evaluate: install  ## score a run on its test cases  [BUNDLE= RUN=]
	$(call run,$(trained) $(CONFIGS)/evaluate.yaml,$(ARGS))

explain: install  ## map where a classifier's answers come from  [RUN= INPUT= ARGS="--method occlusion"]
	$(call run,$(trained) $(call layer,modes/explain,bundles/classification/configs/modes/explain.yaml),$(INPUT:%=--input %) $(ARGS))

infer: install  ## use a run on new scans, or on its test images  [BUNDLE= RUN= INPUT=]
	$(call run,$(trained) $(CONFIGS)/inference.yaml,$(INPUT:%=--input %) $(ARGS))

release: install  ## write a run as one zip that MONAI's tools load  [BUNDLE= RUN= OUT=]
	$(BIN)/tomokit release $(BUNDLE) --run runs/$(RUN) --out $(or $(OUT),$(notdir $(RUN)).zip) $(ARGS)

report: install  ## print the scores of runs, write their page; or one of a new scan  [RUN="one two", or RUN= CASE=]
	$(BIN)/tomokit report $(if $(CASE),--case $(CASE) --run runs/$(RUN),$(addprefix runs/,$(RUN)))

tensorboard: install  ## follow all runs in the browser
	$(BIN)/tensorboard --logdir runs

check-bundles: install  ## find what is wrong in the bundles' configs
	$(BIN)/tomokit lint

test: $(VENV)/.installed-dev  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## check types
	$(BIN)/mypy

notebooks: $(VENV)/.installed-dev  ## run every notebook as committed, print the seconds of each
	TOMOKIT_NOTEBOOKS=all $(BIN)/python -m pytest tests/test_notebooks.py -n 0 -v --durations=0 --durations-min=1 $(ARGS)

fuzz: install  ## read damaged files of every format  [COUNT=]
	$(BIN)/python tests/fuzzing.py --count $(COUNT)

bench: install  ## measure and print a table  [NAME= ONLY= FULL=1; hippocampus: FOLD= MINUTES= RUN=; inference: MINUTES=; adrenal: SIZE=]
	$(BIN)/python benchmarks/$(NAME).py $(if $(ONLY),--only $(ONLY)) $(if $(FULL),--full) $(FOLD:%=--fold %) \
	  $(MINUTES:%=--minutes %) $(SIZE:%=--size %) $(if $(filter command environment,$(origin RUN)),--run $(RUN)) $(ARGS)

dist: $(VENV)/.installed-dev  ## build the wheel and the source archive
	$(BIN)/python -m build --outdir dist

clean:  ## remove what was built, not data or runs
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
