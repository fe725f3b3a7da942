# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo   sets up, renders a corpus of sung Japanese, trains a small hierarchy on it, samples, says where the page is
#   make test   sets up and passes the tests
# make setup only makes .venv.
# Each may be stopped and repeated: what is there already is not done again.

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
DEMO   ?= demo
# Training time of the demo, in minutes: of the codec, and of the prior and the upsampler each
CODEC_MINUTES ?= 4
PRIOR_MINUTES ?= 3

.PHONY: demo test check setup clean-demo

setup: $(READY)

$(READY): requirements.txt requirements-test.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit("songbloom needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip "setuptools<82" wheel
	$(PY) -m pip install --quiet -r requirements.txt -r requirements-test.txt
	$(PY) -m pip install --quiet --no-build-isolation --no-deps -e .
	@# The second voice is built from source; without a C++ compiler the corpus has one voice less, and says so.
	@$(PY) -m pip install --quiet cython && $(PY) -m pip install --quiet --no-build-isolation pysinsy==0.0.5 >$(VENV)/pysinsy.log 2>&1 \
	  || echo "the second voice (pysinsy) could not be built: see $(VENV)/pysinsy.log; going on with one voice"
	@touch $(READY)

SONGS  := $(DEMO)/corpus/songs.jsonl
TRAIN   = $(PY) train.py --data_jsonl=$(SONGS) --train --checkpoint_minutes=1 --log_steps=25

demo: $(READY)
	$(PY) -m songbloom.data.prepare.sung_corpus --output_dir $(DEMO)/corpus --songs 24 --seed 1 --workers 0
	$(TRAIN) --hps=demo_vqvae --name=demo_vqvae --budget_minutes=$(CODEC_MINUTES)
	$(TRAIN) --hps=demo_vqvae,demo_ja_prior --name=demo_ja_prior --prior --budget_minutes=$(PRIOR_MINUTES)
	$(TRAIN) --hps=demo_vqvae,demo_upsampler --name=demo_upsampler --prior --budget_minutes=$(PRIOR_MINUTES)
	$(PY) sample.py --model=demo_ja --name=$(DEMO)/samples --n_samples=4 --sample_length_in_seconds=30 \
	  --total_sample_length_in_seconds=30 --lyrics_file=docs/demo/lyrics.txt --artist=Mei --genre=pop --temp=.9 --seed=1
	$(PY) align.py --find --model=demo_ja --data_jsonl=$(SONGS)
	$(PY) align.py --name=$(DEMO)/samples
	@echo
	@echo "The songs are on this page; open it in a browser: $(CURDIR)/$(DEMO)/samples/index.html"

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test: $(READY) check
	$(PY) -m pytest -n 2 --dist loadgroup

clean-demo:
	rm -rf $(DEMO) logs/demo_vqvae logs/demo_ja_prior logs/demo_prior logs/demo_upsampler
