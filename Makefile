# Every target sets up what it needs. Downloads are laid out once in $TEMPONAS_CACHE (~/.cache/temponas).

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup build page demo test test-page bench bench-search lut-accuracy proxy-check agent-check agent-lut-accuracy prune-check distill-check decoder-check parity full-size export-check vbench-check assets data-emoji data-footage encode-check lint openapi

export TEMPONAS_CACHE ?= $(HOME)/.cache/temponas

PROGRAMS := $(or $(CARGO_TARGET_DIR),target)/debug
# Read when a recipe runs, after `setup`, so that only those who start Postgres look for it.
WITH_POSTGRES = TEMPONAS_POSTGRES_BIN=$$(scripts/postgres) && export TEMPONAS_POSTGRES_BIN &&
WITH_ONNXRUNTIME = ORT_DYLIB_PATH=$$(scripts/onnxruntime) && export ORT_DYLIB_PATH &&
WITH_FFMPEG = TEMPONAS_FFMPEG=$$(scripts/ffmpeg) && export TEMPONAS_FFMPEG &&
NPM := npm --prefix web --no-audit --no-fund
PAGE_SOURCES := $(shell find web/src web/public -type f 2>/dev/null) $(wildcard web/*.html web/*.ts web/*.js web/*.json)

# Chromium is fetched before the coordinator starts, so that a failure is told by itself.
PAGE_TEST = scripts/browser >/dev/null && exec scripts/with-coordinator $(PROGRAMS)/temponas node --test --test-reporter spec tests/page/*.test.mjs

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: ## check prerequisites, lay out libtorch, ONNX Runtime and CLIP's vocabulary, find or fetch Postgres
	@scripts/prerequisites
	@scripts/libtorch >/dev/null
	@scripts/onnxruntime >/dev/null
	@scripts/postgres >/dev/null
	@scripts/clip-vocabulary >/dev/null

# npm's own record of a complete install.
web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	$(NPM) ci
	@touch $@

web/dist/assets: web/node_modules/.package-lock.json $(PAGE_SOURCES)
	$(NPM) run build
	@touch $@

page: setup
	@$(MAKE) web/dist/assets

build: page ## build the page and all programs
	cargo build --workspace

demo: build $(if $(filter emoji,$(DATA)),data-emoji) ## search on this machine and show it; ONCE=1 ends with the search, DATA=emoji takes real clips, PORT=8080
	@$(WITH_POSTGRES) $(WITH_ONNXRUNTIME) exec $(PROGRAMS)/temponas demo $(if $(DATA),--data $(DATA)) $(if $(filter-out 0,$(ONCE)),--once) $(if $(PORT),--port $(PORT))

test: ## run all tests; the last line is their sum
	@scripts/prerequisites
	@scripts/vbench-env >/dev/null || echo 'the tests that score with the package vbench will be skipped' >&2
	@scripts/coreml-env >/dev/null || echo 'the tests that write Core ML packages will be skipped' >&2
	@$(WITH_POSTGRES) $(WITH_ONNXRUNTIME) $(WITH_FFMPEG) INSTA_UPDATE=no scripts/test-summary \
	    --do  build    'make build' \
	    --run scripts  'python3 -B -m unittest discover --start-directory scripts --pattern "test_*.py"' \
	    --run rust     'scripts/with-postgres cargo test --workspace --no-fail-fast' \
	    --run page     '$(NPM) test' \
	    --run browser  '$(PAGE_TEST)' \
	    --do  types    '$(NPM) run check'

test-page: build ## the page's tests in a real browser alone
	@$(WITH_POSTGRES) $(PAGE_TEST)

bench: bench-search lut-accuracy ## the benchmarks of BENCHMARKS.md that take minutes

bench-search: build ## searches over benchmark tables: evaluations until the table's own front is reached
	@$(WITH_POSTGRES) $(PROGRAMS)/temponas bench-search $(ARGS)

lut-accuracy: build ## predicted against measured latency and peak memory of 100 architectures
	@$(PROGRAMS)/temponas-worker lut-accuracy $(ARGS)

proxy-check: build ## does the score carry a signal? (long)
	@$(PROGRAMS)/temponas-worker proxy-check $(ARGS)

full-size: build ## training and sampling steps of the 0.6B model: parameters, memory, speed (minutes, 10 GB); ARGS="--device cuda:0 --frames 15 --size 64 --steps 50"
	@$(PROGRAMS)/temponas-worker full-size $(ARGS)

export-check: build ## operators, the small model and the full-size UNet in ONNX Runtime against libtorch (minutes, 12 GB); ARGS="--small-only"
	@$(WITH_ONNXRUNTIME) TEMPONAS_COREML_PYTHON=$$(scripts/coreml-env) && export TEMPONAS_COREML_PYTHON && \
	    $(PROGRAMS)/temponas-worker export-check $(ARGS)

vbench-check: build ## score sampled clips with the published package vbench, and compare with our own computation; ARGS="--prompts 75"
	@TEMPONAS_FFMPEG=$$(scripts/ffmpeg) && export TEMPONAS_FFMPEG && \
	    TEMPONAS_VBENCH_PYTHON=$$(scripts/vbench-env) && export TEMPONAS_VBENCH_PYTHON && \
	    $(PROGRAMS)/temponas-worker vbench-check $(ARGS)

parity: build ## our models against diffusers, transformers and PyTorch on the same weights (10 minutes, 8 GB of memory; fetches them once)
	@scripts/parity $(PROGRAMS)/temponas-worker $(ARGS)

agent-check: build ## kill the device agent 20 times while it measures: is an entry lost or doubled? ARGS="50" for more kills
	@$(WITH_POSTGRES) $(WITH_ONNXRUNTIME) AGENT_KILLS=$(or $(ARGS),20) \
	    cargo test --workspace --test agent_survives_kills -- --nocapture

agent-lut-accuracy: build ## predicted against measured latency of 100 exported architectures in ONNX Runtime; ARGS="--samples 8 --threads 2"
	@$(WITH_ONNXRUNTIME) graphs=$(TEMPONAS_CACHE)/lut-accuracy-graphs && rm -rf "$$graphs" && \
	    $(PROGRAMS)/temponas-worker export-space --out "$$graphs" && \
	    $(PROGRAMS)/temponas-agent lut-accuracy --graphs "$$graphs" $(ARGS)

decoder-check: build ## is a separable decoder 5 times as fast at half a dB less? trains both at 128 channels once (half an hour or more)
	@TEMPONAS_LPIPS=$$(scripts/lpips) && ORT_DYLIB_PATH=$$(scripts/onnxruntime) && export TEMPONAS_LPIPS ORT_DYLIB_PATH && \
	    $(PROGRAMS)/temponas-worker decoder-check $(ARGS)

prune-check: build ## does a pruned backbone learn more from its full one than from nothing? (minutes)
	@$(PROGRAMS)/temponas-worker prune-check $(ARGS)

distill-check: build ## is a model distilled to 4 steps as good as in 25 guided ones? (20 minutes of one core)
	@$(PROGRAMS)/temponas-worker distill-check $(ARGS)

assets: build $(if $(filter emoji,$(DATA)),data-emoji) ## train the small pretrained parts anew (at most 2 hours on 2 cores, goes on where it stopped)
	@$(PROGRAMS)/temponas-worker assets $(if $(DATA),--dataset $(DATA)) $(ARGS)

data-emoji: ## fetch the real clips: animated emoji with their names (172 MB, once)
	@scripts/data-emoji >/dev/null

data-footage: ## fetch real footage of several sizes and codecs with captions (12 MB, once)
	@scripts/data-footage >/dev/null

encode-check: build ## encode emoji and real footage, killed at random, and compare every byte; ARGS="--emoji 100" for fewer (long)
	@$(WITH_FFMPEG) scripts/encode-check $(PROGRAMS)/temponas-worker $(ARGS)

lint: page ## formatting, clippy, the page's types, the recorded SQL
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(NPM) run check
	scripts/sqlx-prepare --check

openapi: build ## write server/openapi.json and the page's types from the routes
	$(PROGRAMS)/temponas openapi > server/openapi.json.new
	mv server/openapi.json.new server/openapi.json
	$(NPM) run types
