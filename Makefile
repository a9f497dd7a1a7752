# The two commands that matter: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
BIN := .venv/bin
DATA ?=
TEST_JOBS ?= 2

ANDROID := build/android

.PHONY: setup demo test lint types contract check pi android-tools apk apk-arm64 clean

setup: .venv/installed

# The CPU build of torch is enough for everything here; on a machine where pip would bring CUDA, install it first.
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "CoDA needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/coda demo --report demo-report $(DEMO_ARGS)

# Files of tests are shared out to processes; TEST_JOBS=0 runs them in one, where a debugger can look.
test: export OPENBLAS_NUM_THREADS ?= 1
test: setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contract: setup
	$(BIN)/lint-imports

# An emulated Raspberry Pi: the ground floor's tests and whole rounds, in instructions and bytes. Some minutes.
pi: setup
	$(BIN)/coda bench emulated-pi $(PI_ARGS)

# What Debian 12 has of what the Android app is built and tested with; needs root. An npm from elsewhere stays: Debian's
# would conflict with its Node.js.
android-tools:
	apt-get install -y --no-install-recommends openjdk-17-jdk-headless junit4 libhamcrest-java libxerial-sqlite-jdbc-java \
	  aapt apksigner zipalign enjarify unzip zip binutils gcc $$(command -v npm > /dev/null || echo npm)

# The Android app, debug-signed: build/android/coda.apk. Downloads what android_demo/toolchain.lock names, once.
apk:
	android_demo/tools/fetch.sh $(ANDROID)/toolchain
	android_demo/tools/apk.sh $(ANDROID)/toolchain $(ANDROID)

# The tests that run the APK's own code, for arm64 under qemu; needs qemu-user, mmdebstrap and g++-aarch64-linux-gnu.
apk-arm64: setup
	CODA_ANDROID_ABI=arm64-v8a $(BIN)/python -m pytest tests/android_demo/test_apk.py

check: lint types contract test

clean:
	rm -rf .venv demo-report runs build *.egg-info
