# make profile    build everything and profile every implementation over real model shapes
# make test       build everything and run the whole test suite
# make lint       style and types
# make format     apply the style
# make sanitize   the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make device-test  the kernel tests compiled for AArch64 (NEON), under emulation where there is qemu-aarch64
# make device-judge  what runs programs of ExecuTorch there, for the test suite
# make device-counts  writes down the instructions that kernels take on AArch64, which device-test compares
# make device-report  these counts, cycles by llvm-mca, and latencies predicted for phones
# make clean      remove what the targets above made
#
# Everything happens in .venv and build/; a changed C++ file costs an incremental build, a changed Python file nothing, one
# more or less an installation.
# Arguments go through ARGS: make profile ARGS="--quick", make test ARGS="-k recurrence".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := CMakeLists.txt $(shell find csrc -type f)
# Its name stands for the names of all Python files, which the installed package has a list of.
LISTED := $(VENV)/listed-$(shell find src -name '*.py' | sort | cksum | cut -d ' ' -f 1)
SANITIZED := build/sanitize
CROSS := build/aarch64
# Sanitized kernels compile slowly. The widest code paths and those with intrinsics stand for all: AVX-512 is both; where the
# processor lacks it, the former are lowered by the compiler.
SANITIZED_ISAS := $(if $(filter x86_64,$(shell uname -m)),$(if $(shell grep -m 1 avx512bw /proc/cpuinfo),\
    -DCONVSCAN_ISAS=avx512,"-DCONVSCAN_ISAS=wide;avx2"))
# Where ccache is installed, what was compiled before in any folder is not compiled again.
CCACHE := $(shell command -v ccache)
ifneq ($(CCACHE),)
export CMAKE_CXX_COMPILER_LAUNCHER ?= ccache
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1
endif
QEMU := $(shell command -v qemu-aarch64 || command -v qemu-aarch64-static)

.PHONY: profile test lint format sanitize device-test device-judge device-counts device-report clean

profile: $(VENV)/installed
	$(BIN)/convscan profile $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize: $(VENV)/tools
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DCONVSCAN_PYTHON=OFF -DCONVSCAN_OPENMP=OFF -DCONVSCAN_TESTS=ON \
	    -DCONVSCAN_SANITIZE=address,undefined $(SANITIZED_ISAS)
	$(BIN)/cmake --build $(SANITIZED)
	UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	    $(BIN)/ctest --test-dir $(SANITIZED) --output-on-failure --progress

device-test: $(CROSS)/build.ninja
	$(BIN)/cmake --build $(CROSS)
	$(if $(QEMU),,@echo "not run, only built and disassembled: there is no qemu-aarch64 (Debian's package qemu-user)")
	$(BIN)/ctest --test-dir $(CROSS) --output-on-failure --progress --parallel 2 $(if $(QEMU),,--tests-regex no_sve)

# What runs programs of ExecuTorch on 64-bit Arm, for tests/test_executorch.py; from ExecuTorch's wheel for it.
device-judge: $(VENV)/installed
	$(BIN)/python -m convscan.device.judge build/device/judge

device-counts: $(CROSS)/build.ninja
	$(BIN)/cmake --build $(CROSS) --target update_counts

device-report: $(VENV)/installed $(VENV)/cross
	$(BIN)/convscan device report $(ARGS)

$(CROSS)/build.ninja: $(VENV)/cross CMakeLists.txt cmake/aarch64-zig.cmake
	$(BIN)/cmake -S . -B $(CROSS) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-zig.cmake -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -DCONVSCAN_PYTHON=OFF -DCONVSCAN_OPENMP=OFF -DCONVSCAN_TESTS=ON -DCONVSCAN_RUNNER=ON

# The build's own tools come first: the package is then built in place, without a throw-away environment, so that the
# next build is incremental.
$(VENV)/tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt scikit-build-core nanobind cmake ninja setuptools torch numpy
	touch $@

$(VENV)/cross: $(VENV)/tools
	$(PIP) install --quiet --constraint constraints.txt ziglang
	touch $@

$(LISTED): $(VENV)/tools
	rm -f $(VENV)/listed-*
	touch $@

$(VENV)/installed: $(VENV)/tools $(LISTED) pyproject.toml $(NATIVE)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[gpu,rivals,test,dev,examples,executorch,onnx]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps heartpy  # an example reads a recording it ships
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
