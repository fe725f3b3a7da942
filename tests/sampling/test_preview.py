"""When a preview is due."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from songbloom.sampling import preview

ROOT = Path(__file__).parents[2]
needs_signal = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")


@pytest.fixture
def handler() -> Iterator[None]:
    """The handler as it was comes back."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_every_few_minutes() -> None:
    time = [0.0]
    asking = preview.Asking(2, now=lambda: time[0])
    found = []
    for minute in (1, 2, 3, 4.5):
        time[0] = 60 * minute
        found.append(asking.due())
    assert found == [False, True, False, True]
    assert not preview.Asking(None).due()


@needs_signal
@pytest.mark.usefixtures("handler")
def test_a_wish_before_anything_is_written_is_granted_later() -> None:
    preview.listen()
    os.kill(os.getpid(), signal.SIGUSR1)
    asking = preview.Asking(None)
    assert asking.due()
    assert not asking.due()


@needs_signal
def test_the_sampler_listens_before_it_reads_anything() -> None:
    """The program gets the signal where it would begin to look for the model, and lives."""
    program = (
        "import os, signal, sys, sample\n"
        "from songbloom.errors import UserError\n"
        "def looked(*given):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    raise UserError('lives')\n"
        "sample.check_family = looked\n"
        "sys.argv = ['sample.py', '', '--name=x']\n"
        "sys.argv[1] = '--model=' + next(iter(sample.MODELS))\n"
        "sample.distributed.run(sample.main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: lives\n")
