# One command for each thing that a developer does; everything is installed below .venv and .venvs.
PYTHON ?= python3
BIN := .venv/bin
ENVS := .venvs
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet
# Tests run in parallel, each on one thread.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 ORT_DISABLE_TELEMETRY=1
# The versions of TensorRT whose names are checked, where there are wheels of its bindings.
TENSORRT := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),10 11)
# Triton Inference Server, where there is a wheel of it.
TRITON := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(ENVS)/triton/.done)
# Ray, where there is a wheel of it.
RAY := $(if $(filter Linux-x86_64 Linux-aarch64 Darwin-arm64,$(shell uname -s)-$(shell uname -m)),$(ENVS)/ray/.done)
BENCHMARKS := processor export predict_overhead pixels evaluate batch_predict int8 onnxruntime_floor accuracy_bound attention dynamic_size engines

.PHONY: demo test check chromium docs format fuzz sbom bench bench-large bench-peers golden triton-schema mutations gpu-check gpu-results gpu-bundle gpu-rehearsal clean

demo: .venv/.demo  ## export, prove and time the embedded model
	$(BIN)/vitdeploy demo

test: .venv/.dev $(ENVS)/embedded/.done $(ENVS)/optimum/.done $(ENVS)/sbom/.done $(ENVS)/production/.done $(TENSORRT:%=$(ENVS)/tensorrt-%/.done) $(TRITON) $(RAY) $(ENVS)/kubernetes/.done chromium check  ## every check, in every environment

check: .venv/.dev  ## every check; tests of other environments are skipped where those were not made
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(MAKE) docs
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

chromium:  ## Debian's browser, for the tests of the HTML report; where it cannot be installed they are skipped
	@command -v chromium > /dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get > /dev/null && export DEBIAN_FRONTEND=noninteractive \
		&& timeout 300 apt-get -qq update && timeout 600 apt-get -qq install --no-install-recommends -y chromium > /dev/null; \
	} || echo "no Chromium, and none can be installed here: the tests that need it are skipped"

docs: .venv/.dev  ## the pages, in build/docs/index.html; a warning, such as a broken link, is an error
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet docs build/docs

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

COUNT ?= 5000
SEED ?= 0
fuzz: .venv/.dev  ## COUNT bad inputs of each class, or of CLASS, drawn from SEED; INDEX=n makes one again. Failures: build/fuzz
	$(TEST_ENV) PYTHONPATH=tests:tests/support $(BIN)/python -m fuzz --count $(COUNT) --seed $(SEED) \
		$(if $(CLASS),--class $(CLASS)) $(if $(INDEX),--index $(INDEX))

SBOM ?= build/vitdeploy.cdx.json
sbom: $(ENVS)/sbom/.done $(ENVS)/production/.done  ## the software bill of materials of the wheel with ONNX Runtime, in CycloneDX
	mkdir -p $(dir $(SBOM))
	version=$$($(BIN)/python -c 'from vitdeploy import __version__; print(__version__)') \
		&& sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml > $(SBOM).toml
	env -u PYTHONPATH $(ENVS)/sbom/bin/cyclonedx-py environment --pyproject $(SBOM).toml --mc-type library --output-reproducible --validate \
		-o $(SBOM) $(ENVS)/production/bin/python
	rm $(SBOM).toml

bench: .venv/.dev $(ENVS)/optimum/.done $(ENVS)/openvino/.done $(ENVS)/hf-processors/.done  ## record results and rewrite the tables of benchmarks/README.md
	for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; done
	$(BIN)/python benchmarks/tables.py

bench-large: .venv/.dev  ## export a model of 4 GB: its peak memory; minutes
	$(BIN)/python benchmarks/large.py --json benchmarks/results/large.json
	$(BIN)/python benchmarks/tables.py

MODEL ?=
PHOTOGRAPHS ?=
bench-peers: .venv/.dev $(ENVS)/optimum/.done $(ENVS)/openvino/.done $(ENVS)/timm/.done  ## vitdeploy and other tools on the checkpoint MODEL and PHOTOGRAPHS, see peer_comparison.py; an hour
	$(BIN)/python benchmarks/peer_comparison.py --model $(MODEL) --photographs $(PHOTOGRAPHS)

golden: $(ENVS)/timm/.done $(ENVS)/open-clip/.done $(ENVS)/transformers4/.done  ## rewrite tests/golden with timm, OpenCLIP and PEFT themselves
	$(TEST_ENV) $(ENVS)/timm/bin/python tests/golden/make_timm.py
	$(TEST_ENV) $(ENVS)/timm/bin/python tests/golden/make_architectures.py
	$(TEST_ENV) $(ENVS)/open-clip/bin/python tests/golden/make_open_clip.py
	$(TEST_ENV) $(ENVS)/timm/bin/python tests/golden/make_peft.py
	$(TEST_ENV) $(ENVS)/transformers4/bin/python tests/golden/make_peft.py

triton-schema: $(ENVS)/protoc/.done  ## compile Triton's schema, tests/data/triton_model_config.proto, for the tests
	$(ENVS)/protoc/bin/python -m grpc_tools.protoc -Itests/data \
		--descriptor_set_out=tests/data/triton_model_config.pb triton_model_config.proto

mutations: .venv/.dev $(TENSORRT:%=$(ENVS)/tensorrt-%/.done)  ## break the engine runtime in every listed way, and record which test notices
	$(TEST_ENV) $(BIN)/python benchmarks/mutations.py --json benchmarks/results/mutations.json

gpu-check:  ## agreement, first questions, tests and latency on a GPU, with the python that is there; results under $$OUT
	OUT=$${OUT:-gpu-results} PYTHONPATH=benchmarks $(PYTHON) -m gpu.check

FOLDER ?= gpu-results
gpu-results: .venv/.dev  ## record the results of a GPU machine, which came back in FOLDER, and rewrite the pages
	PYTHONPATH=benchmarks $(BIN)/python -m gpu.results $(FOLDER)

gpu-bundle: .venv/.dev  ## what must travel to a GPU machine without a network: wheels in slices, run.sh; in gpu-bundle
	PYTHONPATH=benchmarks $(BIN)/python -m gpu.bundle

gpu-rehearsal: .venv/.dev  ## the bundle on a bare machine that is played here, without a GPU or a network; needs python3.12 and python3.11
	PYTHONPATH=benchmarks $(BIN)/python -m gpu.rehearsal --json benchmarks/results/gpu_rehearsal.json --log benchmarks/results/gpu_rehearsal.log
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .venvs build dist *.egg-info demo-output gpu-bundle

.venv/.base: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --upgrade pip==26.3
	touch $@

.venv/.demo: .venv/.base pyproject.toml
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt torch
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[demo]'
	touch $@

.venv/.dev: .venv/.demo
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

# Triton Inference Server with its Python backend, its clients, and what a bundle needs there: no torch. The server's own
# Python package needs more, which nothing here uses.
$(ENVS)/triton/.done: constraints-triton.txt
	$(PYTHON) -m venv $(@D)
	echo '$(CURDIR)' > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vitdeploy.pth
	$(@D)/bin/python $(PIP_INSTALL) -c constraints-triton.txt numpy pillow onnxruntime click rich packaging 'tritonclient[http,grpc]'
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -c constraints-triton.txt nvidia-pytriton
	touch $@

# What an application that embeds the ONNX Runtime backend has: no torch, no command line.
$(ENVS)/embedded/.done: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) -c constraints.txt numpy pillow onnxruntime
	touch $@

# What the wheel installs where a bundle is served, at the pinned versions: the content of `make sbom`.
$(ENVS)/production/.done: constraints.txt pyproject.toml .venv/.dev
	rm -rf $(@D)/dist
	$(BIN)/python -m build --no-isolation --wheel --outdir $(@D)/dist . > /dev/null
	$(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/python -m pip --disable-pip-version-check --quiet --python $(@D)/bin/python install -c constraints.txt \
		"$$(ls $(@D)/dist/*.whl)[onnxruntime]"
	touch $@

$(ENVS)/sbom/.done: constraints-sbom.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -r constraints-sbom.txt
	touch $@

$(ENVS)/optimum/.done: constraints-optimum.txt .venv/.dev
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_main.pth
	$(@D)/bin/python $(PIP_INSTALL) -c constraints-optimum.txt 'optimum-onnx[onnxruntime]'
	touch $@

# OpenVINO and NNCF borrow the rest from .venv. Without openvino-telemetry, which pip would bring, they report nothing to
# their makers.
$(ENVS)/openvino/.done: constraints-openvino.txt .venv/.dev
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_main.pth
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -c constraints-openvino.txt openvino nncf ninja psutil pydot tabulate
	touch $@

# Ray, without torch. numpy, Pillow and ONNX Runtime are borrowed from the embedded environment.
$(ENVS)/ray/.done: constraints-ray.txt $(ENVS)/embedded/.done
	$(PYTHON) -m venv $(@D)
	echo '$(CURDIR)' > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vitdeploy.pth
	$(ENVS)/embedded/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_embedded.pth
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -r constraints-ray.txt
	touch $@

# An image processor in Rust, a peer of benchmarks/processor.py, which adds this folder to its path.
$(ENVS)/hf-processors/.done: .venv/.dev
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(@D) hf-processors-rs==0.1.0
	touch $@

# NVIDIA's Python bindings of TensorRT without its libraries: the tests ask them which names there are.
$(ENVS)/tensorrt-10/.done: VERSION := 10.16.1.11
$(ENVS)/tensorrt-11/.done: VERSION := 11.4.0.106
$(ENVS)/tensorrt-%/.done: .venv/.dev
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(@D) tensorrt-cu13-bindings==$(VERSION)
	touch $@

# Published schemas of Kubernetes and KServe, for the tests of examples/kubernetes, which read their files.
$(ENVS)/kubernetes/.done: .venv/.dev
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(@D) kubernetes-validate==1.37.0 kserve==0.21.0
	touch $@

$(ENVS)/protoc/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) grpcio-tools==1.85.1
	touch $@

# timm and PEFT, for the golden files. The rest is borrowed from .venv.
$(ENVS)/timm/.done: constraints-timm.txt .venv/.dev
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_main.pth
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -r constraints-timm.txt
	touch $@

# OpenCLIP, for its golden files. The rest is borrowed from .venv and the environment of timm.
$(ENVS)/open-clip/.done: constraints-open-clip.txt $(ENVS)/timm/.done
	$(PYTHON) -m venv $(@D)
	for python in $(ENVS)/timm/bin/python $(BIN)/python; do \
		$$python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; \
	done > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_others.pth
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -r constraints-open-clip.txt
	touch $@

# PEFT with transformers 4, whose names of modules adapters have had until 2026; torch and the rest are borrowed from .venv.
$(ENVS)/transformers4/.done: constraints-transformers4.txt .venv/.dev
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_main.pth
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -r constraints-transformers4.txt
	touch $@
