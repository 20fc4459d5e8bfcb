# `make demo` and `make test` work on a fresh machine with Python and make:
# each makes its own environment in .venv first.

PYTHON ?= python3
# Empty it (`make test CONSTRAINTS=`) to try the newest versions allowed.
CONSTRAINTS ?= -c constraints.txt
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
RUN = .venv/bin/python

.PHONY: demo demo-siglip2 test test-slow test-prepare test-stores test-vectors bench bench-data bench-search bench-tpu bench-ring bench-gpu bench-gpu-wheels studies lint format clean

demo: .venv/demo
	$(RUN) main.py --config=configs/digits.py --workdir=runs/digits
	$(RUN) tools/report.py runs/digits --output=runs/digits/report.html

# A step asks for much memory, and gives it back: on a CPU it is faster to keep it.
KEEP = GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592

# SigLIP 2's recipe on drawn scenes, both stages, and a page of what they learn.
demo-siglip2: .venv/demo
	$(KEEP) $(RUN) main.py --config=configs/siglip2/scenes_pretrain.py --workdir=runs/scenes_pretrain
	$(KEEP) $(RUN) main.py --config=configs/siglip2/scenes_distil.py --workdir=runs/scenes_distil
	$(RUN) tools/report.py runs/scenes_distil --output=runs/scenes_distil/report.html

test: .venv/dev lint
	$(RUN) -m pytest -q -n 2 --dist worksteal

test-slow: .venv/dev .venv/tpu
	$(RUN) -m pytest -q -m slow

# Apache Beam cannot share an environment with what constraints.txt pins.
test-prepare: .venv-prepare/done
	.venv-prepare/bin/python -m pytest -q tests/test_prepare.py

# S3's and GCS's own clients, against servers that speak as these do.
test-stores: .venv-stores/done
	.venv-stores/bin/python -m pytest -q tests/test_stores.py

# A real server of Milvus, whose package is large (and one may run at a time).
test-vectors: .venv-vectors/done
	.venv-vectors/bin/python -m pytest -q tests/test_index.py tests/test_filters.py

# Huge pages, for both sides: fresh small ones cost a tenth of a step.
bench: .venv/demo
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(RUN) -m benchmarks.train_step

# What the TPU compiler says of the loss and of whole steps; needs no TPU.
bench-tpu: .venv/tpu
	$(RUN) -m benchmarks.tpu

# Against tf.data and open_clip's pipeline, in an environment of their own.
bench-data: .venv/dev .venv-tf/done
	$(RUN) -m benchmarks.data --peers=.venv-tf/bin/python
	$(RUN) -m benchmarks.tar_index
	$(RUN) -m benchmarks.decoders

# How fast, and how nearly, each index searches a million embeddings.
bench-search: .venv/dev
	$(RUN) -m benchmarks.search

# On a machine with a GPU, by $(PYTHON) as it is: an image with JAX for CUDA, flax
# and optax. What it lacks comes from the wheels in WHEELS, without network.
bench-gpu:
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps \
	  --upgrade --disable-pip-version-check --target=build/bench-gpu \
	  $(WHEELS)/*.whl)
	PYTHONPATH=.:build/bench-gpu:$$PYTHONPATH \
	  $(PYTHON) -m benchmarks.gpu --json=gpu.json $(ARGUMENTS)

# Makes that folder, where there is a network. LACKING: what the image lacks;
# WHEELS_PYTHON: the version of its Python.
LACKING ?= ml_collections
WHEELS_PYTHON ?= 3.12
bench-gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: \
	  --disable-pip-version-check --python-version=$(WHEELS_PYTHON) \
	  --implementation=cp --platform=manylinux_2_28_x86_64 \
	  --platform=manylinux_2_17_x86_64 --platform=manylinux2014_x86_64 \
	  --dest=$(or $(WHEELS),wheels) $(LACKING)

bench-ring: .venv/demo
	$(RUN) -m benchmarks.ring

# Five studies of the paper's findings; killed, they go on (docs/studies.md).
studies: .venv/demo
	for study in batch_size bias beta2 noise duplicates; do \
	  $(RUN) -m studies.$$study --output=runs/studies || exit 1; \
	done

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright --pythonpath $(RUN)
	.venv/bin/basedpyright --pythonpath $(RUN) -p tests/typing
	.venv/bin/shellcheck tools/launch/*.sh

format: .venv/dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .venv-prepare .venv-stores .venv-vectors .venv-tf runs build *.egg-info

# What of the extras each needs, in one call of pip.
.venv/demo .venv/dev .venv/tpu: .venv/%: .venv/made setup.cfg constraints.txt
	$(PIP) $(CONSTRAINTS) -e '.[$*]'
	@touch $@

.venv/made:
	$(PYTHON) -m venv .venv
	@touch $@

.venv-prepare/done: setup.cfg constraints-prepare.txt
	$(PYTHON) -m venv .venv-prepare
	.venv-prepare/bin/python -m pip install --quiet \
		--disable-pip-version-check -c constraints-prepare.txt \
		-e '.[prepare]' pytest
	@touch $@

.venv-stores/done: setup.cfg
	$(PYTHON) -m venv .venv-stores
	.venv-stores/bin/python -m pip install --quiet \
	  --disable-pip-version-check -e '.[gs,parquet,s3,tfds]' pytest webdataset \
	  'moto[server]' gcp-storage-emulator
	@touch $@

.venv-vectors/done: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-vectors
	.venv-vectors/bin/python -m pip install --quiet \
	  --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]' milvus
	@touch $@

.venv-tf/done:
	$(PYTHON) -m venv .venv-tf
	.venv-tf/bin/python -m pip install --quiet --disable-pip-version-check \
	  tensorflow-cpu tensorflow-text webdataset open_clip_torch
	@touch $@
