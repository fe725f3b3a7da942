"""``sample.py`` with the model ``tiny`` in the short contexts of :mod:`tests.sampling.kills`."""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip
import sample as sample_program
from songbloom import distributed
from tests.sampling import kills

if __name__ == "__main__":
    kills.shorten()
    distributed.run(sample_program.main)
