# What a developer runs, in an environment of its own (.venv). Every target can be repeated: it does again only what its
# sources ask for. PYTHON=python3.12 picks the interpreter, PYTEST_ARGS="-k conv2d" is passed on to pytest, JOBS=1 says
# how many processes share the tests (by default one a core).

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
JOBS ?= auto
# Neither make nor the shell may take a tag's name for a program. Before the first $(shell), which exports it.
override export TAG := $(value TAG)
# pytest keeps the test files that it has rewritten as bytecode: five seconds for every process that collects them.
unexport PYTHONDONTWRITEBYTECODE
PY := $(VENV)/bin/python
BIN := $(VENV)/bin
OLDEST_TORCH := 2.11.0
# Files whole and in their order, so that what they share is made once and programs compile before they are needed. A
# process that dies ends the run: pytest-xdist would start another one, and then wait for ever.
IN_PROCESSES = -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# Folders too: their times change where a file goes.
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc)
CPP_FILES = $(shell find csrc tests examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.NOTPARALLEL:
.PHONY: help build test test-slow test-changed test-oldest test-processors nightly same fuzz sanitize seeded-bugs demo docs bench \
  results gpu gpu-dry-run lint lint-changed ruff mypy clang-format clang-tidy format sdist wheel verify-wheel wheels check-tag clean

help:
	@echo "make test       build, then the quick tests (everything that needs neither minutes nor a GPU)"
	@echo "make build      build the library in $(VENV)"
	@echo "make test-slow  the slow tests"
	@echo "make test-changed  the nightly tests of files that have changed since make nightly last passed, or since CI_BASE"
	@echo "make test-oldest  every quick test of the same library under torch $(OLDEST_TORCH), with a few of its parameter sets"
	@echo "make test-processors  the quick tests with the instruction sets of other processors"
	@echo "make nightly    the nightly tests: sanitizers, other processors and devices, the sdist, long examples, large tensors"
	@echo "make same       compare all that the library computes with what it did in the commit AGAINST=REV, to the bit"
	@echo "make fuzz       look for failures in random cases and mutated files for MINUTES=$(MINUTES), on all cores"
	@echo "make sanitize   build the C++ library under ASan and UBSan; operator tests and MINUTES=$(MINUTES) of fuzzing on it;"
	@echo "                build it under TSan; every operator in two threads"
	@echo "make seeded-bugs  make each fault of tests/seeded_bugs.py in a copy: its test must find it"
	@echo "make demo       train the example network"
	@echo "make docs       build the documentation site in build/site, and check it; in a browser, too, if there is Chromium"
	@echo "make bench      measure against plain PyTorch, the ANN and other SNN libraries"
	@echo "make results    train the networks of docs/results.md on the data in DATA=FOLDER, write its tables and pictures"
	@echo "make gpu        on a machine with a CUDA device: build for it (or install WHEEL=FILE), run the gpu tests and the"
	@echo "                checker's, measure; REPORT=FILE has it all"
	@echo "make gpu-dry-run  list the steps of make gpu"
	@echo "make lint       ruff, mypy, clang-format, clang-tidy"
	@echo "make lint-changed  the same, clang-tidy only if C++ has changed since make nightly last passed, or since CI_BASE"
	@echo "make format     let ruff and clang-format rewrite the sources"
	@echo "make sdist      write the source distribution to dist"
	@echo "make wheels     build a wheel for every Python in dist, each in a container (needs Docker)"
	@echo "make check-tag  check that TAG=v1.2.3 is the version that pyproject.toml, CITATION.cff and CHANGELOG.md are ready for"
	@echo "make wheel      build the sdist and a wheel for each Python found here, with CUDA kernels if nvcc is found, in dist"
	@echo "make verify-wheel  check the wheels in dist, each in fresh environments with the oldest and the newest torch"
	@echo "make clean      remove builds, caches and $(VENV)"

build: $(VENV)/.installed-test

test: $(VENV)/.installed-test
	$(PY) -m pytest $(IN_PROCESSES) -m "not slow and not nightly and not gpu" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test $(VENV)/.installed-examples
	$(PY) -m pytest $(IN_PROCESSES) -m "slow and not nightly and not gpu" $(PYTEST_ARGS)

# tests/nightly.py says which tests those are, and which files they guard.
nightly: $(VENV)/.installed-test $(VENV)/.installed-examples
	$(PY) -m tests.nightly --pytest-args="$(IN_PROCESSES) $(PYTEST_ARGS)"

test-changed: $(VENV)/.installed-test $(VENV)/.installed-examples
	$(PY) -m tests.nightly --changed --pytest-args="$(IN_PROCESSES) $(PYTEST_ARGS)"

# Files that ask only what the kernels of one operator compute, which is the library's business and not torch's, or what
# those of a CUDA device do.
OF_KERNELS := products depthwise integrate_and_fire max_pool_spikes pack_spikes spike_count unpack_spikes cuda_host \
  cuda_ptx cuda_operators cuda_products
# Files that ask nothing of torch at all.
OF_THE_PROJECT := automation imports make_gpu nightly pairwise release seeded_bugs

# The library as built under this environment's torch, tested under the oldest torch that it promises to load in. What
# its kernels compute, "make test" has asked already: the files of OF_KERNELS are left out, as are those OF_THE_PROJECT,
# other tests run with a few of their parameter sets, and random examples are fewer. OLDEST_ARGS= runs them all.
OLDEST_ARGS ?= --at-most 4 --hypothesis-profile few
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -c "import torch; v = torch.__version__; assert v.split('+')[0] == '$(OLDEST_TORCH)', v"
	$(VENV)-oldest/bin/pytest $(IN_PROCESSES) $(OLDEST_ARGS) -m "not slow and not nightly and not gpu" \
	  $(patsubst %,--ignore=tests/test_%.py,$(OF_KERNELS) $(OF_THE_PROJECT)) $(PYTEST_ARGS)

# PROCESSORS_ARGS=--tenth runs a tenth of them.
test-processors: $(VENV)/.installed-test
	$(PY) -m tests.processors $(PROCESSORS_ARGS) --pytest-args="$(IN_PROCESSES) $(PYTEST_ARGS)"

# SAME_ARGS="--kinds layers" compares less. tests/same/differences.toml lists what may differ, and why.
same: $(VENV)/.installed-test
	$(PY) -m tests.same --against "$(AGAINST)" $(SAME_ARGS)

# FUZZ_ARGS="products networks" picks kinds of cases. Every failure's line ends with the command that repeats it.
MINUTES ?= 2
fuzz: $(VENV)/.installed-test
	$(PY) -m tests.fuzz --minutes $(MINUTES) $(FUZZ_ARGS)

sanitize: $(VENV)/.installed-test
	$(PY) -m tests.fuzz.sanitize --minutes $(MINUTES)

# SEEDED_ARGS="--language python" or "--only pool" makes some of them.
seeded-bugs: $(VENV)/.installed-test
	$(PY) -m tests.seeded_bugs $(SEEDED_ARGS)

demo: $(VENV)/.installed-examples
	$(PY) examples/mnist.py

docs: $(VENV)/.installed-docs $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(PY) -m pytest -q tests/test_site.py

bench: $(VENV)/.installed-bench
	$(PY) bench/compare.py
	$(PY) -m pytest bench --benchmark-only $(PYTEST_ARGS)

# Can be interrupted: runs that are complete stay, others go on. RESULTS_ARGS="--only mnist" trains some of them.
DATA ?= data
results: $(VENV)/.installed-examples
	$(PY) examples/results.py --data-dir $(DATA) $(RESULTS_ARGS)

# Works without a network: $(PYTHON) must be of a virtual environment that has torch, cmake, ninja, pybind11, numpy,
# setuptools, pytest and hypothesis. Builds for this device alone, or installs WHEEL=FILE that was built elsewhere. Runs all steps,
# whatever fails, and writes REPORT.
REPORT ?= docs/performance/gpu_report.json
GPU = $(PYTHON) bench/gpu.py --report "$(REPORT)" $(if $(WHEEL),--wheel "$(WHEEL)") --pytest-args="$(PYTEST_ARGS)"
gpu:
	$(GPU)

gpu-dry-run:
	@$(GPU) --dry-run

lint: ruff mypy clang-format clang-tidy

ruff: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

mypy: $(VENV)/.installed-dev
	$(BIN)/mypy

clang-format: $(VENV)/.installed-dev
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

# Over the compile commands that the build left; .cu files are nvcc's.
TIDY = $(BIN)/run-clang-tidy.py -quiet -clang-tidy-binary $(BIN)/clang-tidy
clang-tidy: $(VENV)/.installed-dev
	$(TIDY) -p build 'csrc/.*\.cpp$$'

# What takes minutes only where C++ has changed since make nightly last passed, or since CI_BASE, and then for one
# instruction set of the four. Where git does not know that commit, as in a shallow clone, it has changed.
OF_TIDY := csrc CMakeLists.txt .clang-tidy
# Kernels are compiled by a command for each instruction set; the last one is the widest's.
LAST_COMMANDS := import json, sys; \
  json.dump(list({command["file"]: command for command in json.load(sys.stdin)}.values()), sys.stdout)
lint-changed: ruff mypy clang-format
	@base=$${CI_BASE:-$$(cat tests/nightly_passed)}; \
	if git diff --quiet "$$base" -- $(OF_TIDY) && test -z "$$(git ls-files --others --exclude-standard csrc)"; then \
	  echo "clang-tidy: no C++ has changed since $$base"; \
	else \
	  mkdir -p build/tidy && $(PY) -c '$(LAST_COMMANDS)' <build/compile_commands.json >build/tidy/compile_commands.json && \
	  $(TIDY) -p build/tidy 'csrc/.*\.cpp$$'; \
	fi

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP_FILES)

sdist: $(VENV)/.build-requirements $(VENV)/.release-tools
	$(PY) -m build --sdist --no-isolation
	$(BIN)/twine check --strict dist/*.tar.gz

# pyproject.toml says for which Pythons, and how.
wheels: $(VENV)/.release-tools
	$(PY) -m cibuildwheel --output-dir dist
	$(BIN)/twine check --strict dist/*.whl

VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
check-tag:
	@test "$$TAG" = "v$(VERSION)" || { echo "make: TAG must be v$(VERSION), as in pyproject.toml, got '$$TAG'" >&2; exit 1; }
	@grep -qx "version: $(VERSION)" CITATION.cff || { echo "make: CITATION.cff has another version than $(VERSION)" >&2; exit 1; }
	@grep -qE "^## \[?$(VERSION)\]? - [0-9-]{10}$$" CHANGELOG.md || \
	  { echo "make: CHANGELOG.md has no heading '## [$(VERSION)] - YEAR-MONTH-DAY'" >&2; exit 1; }

# WHEEL_ARGS="--python 3.12" builds for that version alone; TANDEM_CUDA=ON insists on the CUDA kernels.
wheel: $(VENV)/.installed-release
	$(PY) release/wheels.py $(WHEEL_ARGS)

# VERIFY_ARGS="--python 3.12 --torch newest" checks less.
verify-wheel: $(VENV)/.installed-release
	$(PY) release/verify.py --oldest $(OLDEST_TORCH) $(VERIFY_ARGS)

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info tandem_cuda/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }

# Without build isolation, so that the next build finds this one's object files. pyproject.toml says what a build needs.
$(VENV)/.build-requirements: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet build
	$(PY) -c "from build import ProjectBuilder; print(*ProjectBuilder('.').build_system_requires, sep='\n')" > $@.txt
	$(PY) -m pip install --quiet -r $@.txt
	touch $@

$(VENV)/.release-tools: | $(PY)
	$(PY) -m pip install --quiet build twine "cibuildwheel>=4.3,<5"
	touch $@

$(VENV)-oldest/.installed: $(VENV)/.installed-test $(shell find tandem_cuda -name "*.py")
	test -d $(VENV)-oldest || $(PYTHON) -m venv $(VENV)-oldest
	rm -rf build/oldest
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps -w build/oldest .
	$(VENV)-oldest/bin/pip install --quiet torch==$(OLDEST_TORCH) numpy
	$(VENV)-oldest/bin/pip install --quiet --force-reinstall --no-deps build/oldest/*.whl
	# with torch again: torchvision and timm would bring a newer one
	$(VENV)-oldest/bin/pip install --quiet "tandem_cuda[test]" torch==$(OLDEST_TORCH)
	touch $@

# One stamp for each of pyproject.toml's extras.
$(VENV)/.installed-%: $(SOURCES) $(VENV)/.build-requirements
	$(PY) -m pip install --quiet --no-build-isolation -e ".[$*]"
	touch $@
