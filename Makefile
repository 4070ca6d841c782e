# Two commands are all that a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= out/distill_digits

TARGETS ?= tpu:v4 tpu:v5e tpu:v5p tpu:v6e tpu:tpu7x cuda:sm_80 cuda:sm_90 cuda:sm_100 cuda-torch:sm_80 cuda-torch:sm_90 cuda-torch:sm_100 cpu

.PHONY: help host test-integrations demo gallery test test-all lint ruff unit test-tools browser-test parity versions audit audit-evidence bench new check golden evidence exhaustive drawn-runs release-check gpu-kit clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): constraints.txt pyproject.toml
	@echo "==> Setting up $(VENV) with what constraints.txt pins: it is missing, or older than constraints.txt or pyproject.toml (a few minutes)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else f"loss-balancers needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Run: make PYTHON=python3.11 ...")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## distil a real model in PyTorch and in JAX with the same balancer, and show that they agree
	@echo "==> Distilling the digits classifier in both frameworks"
	@$(BIN)/python examples/distill_digits.py --out $(DEMO)
	@echo "==> Running this balancer's golden vectors, eager and compiled (every balancer on every lane: make parity)"
	@$(BIN)/loss-balancers parity --balancer StaticLossBalancer $(foreach mode,eager compiled jit vmap scan,--mode $(mode))

gallery: $(STAMP) ## the digits distilled with every balancer in both frameworks, five seeds, into docs/gallery.md (minutes; BALANCER=: one alone)
	@PYTHONPATH=examples $(BIN)/python tools/gallery.py $(if $(BALANCER),--balancer $(BALANCER))

# pyright has one thread and takes a minute: it runs beside the tests, and says at once what it finds.
test: ruff ## lint, types, and the tests of the library and of the parity kit
	@$(BIN)/pyright & types=$$!; $(MAKE) --no-print-directory unit; tests=$$?; \
		wait $$types || { echo "==> pyright found errors: see above, or run make lint"; exit 1; }; exit $$tests

test-tools: $(STAMP) ## the tests of the audit, the GPU kit, the demo, installs, releases, and of what make itself runs
	@echo "==> Running the tests of the audit and of the tools"
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ROWS) tools/tests parity_tests/audit_tests

test-all: ## both, with every row of the tests that compile much (an hour; before a release)
	@$(MAKE) --no-print-directory test ROWS=--every-row
	@$(MAKE) --no-print-directory test-tools ROWS=--every-row

lint: ruff ## ruff and pyright
	@$(BIN)/pyright

ruff: $(STAMP)
	@echo "==> ruff and pyright"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

unit: $(STAMP) ## the tests alone
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ROWS)

test-integrations: .venv-hosts/all/.installed .venv-hosts/tunix/.installed ## the balancers in real training loops: each host's library is installed (5 GB)
	@echo "==> Running the tests in training loops"
	@.venv-hosts/all/bin/python -m pytest -n 2 --dist loadfile integration_tests --ignore=integration_tests/test_tunix.py
	@.venv-hosts/tunix/bin/python -m pytest integration_tests/test_tunix.py

host: ## run a host's example, such as HOST=lightning_fit (docs/hosts)
	@test -f examples/hosts/$(HOST).py || { echo "HOST must be one of: $(basename $(notdir $(wildcard examples/hosts/*.py)))"; exit 2; }
	@$(MAKE) --no-print-directory .venv-hosts/$(if $(filter tunix%,$(HOST)),tunix,all)/.installed
	@.venv-hosts/$(if $(filter tunix%,$(HOST)),tunix,all)/bin/python examples/hosts/$(HOST).py

.venv-hosts/all/.installed: constraints.txt pyproject.toml
	@echo "==> Setting up .venv-hosts/all with the libraries of all hosts but Tunix (a few minutes)"
	@rm -rf .venv-hosts/all
	@$(PYTHON) -m venv .venv-hosts/all
	@.venv-hosts/all/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,hosts]'
	@touch $@

.venv-hosts/tunix/.installed: constraints-tunix.txt pyproject.toml
	@echo "==> Setting up .venv-hosts/tunix (a few minutes)"
	@rm -rf .venv-hosts/tunix
	@$(PYTHON) -m venv .venv-hosts/tunix
	@.venv-hosts/tunix/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-tunix.txt -e '.[tunix]' pytest
	@touch $@

browser-test: $(STAMP) ## the HTML report in a real Chromium (Debian and Ubuntu: apt-get install chromium)
	@echo "==> Reading the HTML report in Chromium"
	@$(BIN)/python -m pytest browser_tests -o faulthandler_timeout=120 -o faulthandler_exit_on_timeout=true

parity: $(STAMP) ## the golden vectors on every lane of this machine
	@$(BIN)/loss-balancers parity

versions: $(STAMP) ## golden vectors and unit tests on the oldest versions, the newest, and some between (30 GB)
	@$(BIN)/python tools/versions.py $(VERSIONS)

audit: .venv-audit/.installed ## what compilers emit for 5 TPUs, 3 GPUs and the CPU, against the spec (Linux x86-64)
	@.venv-audit/bin/loss-balancers audit $(AUDIT) $(foreach target,$(TARGETS),--target $(target))

audit-evidence: AUDIT := --markdown docs/evidence/audit.md
audit-evidence: audit ## the same, written where the documents show it

.venv-audit/.installed: constraints.txt pyproject.toml
	@echo "==> Setting up .venv-audit with the compilers for TPU and CUDA, PyTorch's among them"
	@rm -rf .venv-audit
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit-tpu,audit-cuda,audit-torch]'
	@touch .venv-audit/.installed

evidence: $(STAMP) ## the certificate of this machine into docs/evidence, and the README's matrix from it
	@$(BIN)/python tools/evidence.py

exhaustive: $(STAMP) ## exp, log and sqrt of all 2^32 float32 numbers on every lane of a CPU (5 minutes and more; resumable; PART=256: one in 256)
	@PYTHONPATH=parity_tests/helpers $(BIN)/python tools/exhaustive.py --part $(or $(PART),1)

drawn-runs: $(STAMP) ## whole runs of every balancer whose weights follow from losses, against the exact reference (BALANCER=, SEQUENCES=: a part)
	@PYTHONPATH=parity_tests/helpers $(BIN)/python tools/drawn_runs.py $(if $(BALANCER),--balancer $(BALANCER)) $(if $(SEQUENCES),--sequences $(SEQUENCES))

bench: $(STAMP) ## every balancer next to its peers, as a table, out/bench.json and out/bench.png (half an hour, on a quiet machine)
	@mkdir -p out
	@PYTHONPATH=parity_tests/helpers $(BIN)/python benchmarks/bench.py --json out/bench.json --png out/bench.png $(BENCH)
	@$(BIN)/python benchmarks/against_modelopt.py
	@$(BIN)/python benchmarks/kernels.py
	@$(BIN)/python benchmarks/cost_of_counts.py

new: $(STAMP) ## a new balancer that works, for you to fill in: make new NAME=dwa
	@$(BIN)/python tools/new_balancer.py $(NAME)

check: $(STAMP) ## all that belongs to one balancer: make check BALANCER=dwa
	@$(BIN)/python tools/check_balancer.py $(BALANCER)

golden: $(STAMP) ## write the golden vectors again, from the exact reference
	@$(BIN)/python -m loss_balancers.spec.golden

release-check: $(STAMP) ## all of a release except for the upload (a rehearsal without TAG=v1.2.3)
	@$(BIN)/python tools/release_check.py

gpu-kit: $(STAMP) ## a folder that runs everything on a host with a GPU, in minutes and without network (docs/gpu.md)
	@$(BIN)/python gpu_kit/build.py out/gpu-kit

clean: ## remove the environment and what was made
	rm -rf $(VENV) .venv-audit .venv-versions out dist
