"""songbloom: train and sample song models (hierarchical VQ-VAE + transformer priors)."""

import os

from songbloom import installed

if installed.is_program():
    installed.require()

# Threads of GNU OpenMP spin for a while before they sleep. As long as they do by default, one other busy process makes
# small operations tens of times slower; without spinning, a quiet machine takes three times as long. This is a tenth of
# the default, and gives up neither. It is read when torch is loaded, so the programs import this package first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")

__version__ = "0.1.0"
