"""``jukebox_hparams``: merged hyperparameters for several set strings, and what is refused."""

from __future__ import annotations

import ast
from typing import Any

import hparams
from tests.golden.report import Golden

_REFUSALS = {"KeyError": KeyError, "ValueError": ValueError}


def _merged(names: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The merged values without our own groups, which the reference does not have."""
    ours = {key for one in hparams.OUR_GROUPS for key in one.knobs}
    return {key: value for key, value in hparams.setup_hparams(names, overrides).items() if key not in ours}


def _outcome(names: str, keys: list[str], expected: str) -> str:
    """``ok``, or the type under which a caller of the reference would catch what is raised."""
    values = {key: hparams.KNOBS[key].default if key in hparams.KNOBS else 1 for key in keys}
    try:
        hparams.setup_hparams(names, values)
    except Exception as error:
        return expected if isinstance(error, _REFUSALS.get(expected, ())) else type(error).__name__
    return "ok"


def check_hparams(golden: Golden) -> None:
    overrides = golden.given("kwargs_used")
    for names in golden.look("merged"):
        # The empty set string was merged without overrides, so that it shows the bare defaults.
        got = _merged(names, overrides if names else {})
        golden.expect("merged", names, got=got, name=f"merged[{names!r}]")
    for case in golden.look("errors"):
        names, keys = case.split("|", 1)
        expected = golden.look("errors", case)
        got_outcome = _outcome(names, ast.literal_eval(keys), expected)
        golden.expect("errors", case, got=got_outcome, name=f"errors[{case}]")


CHECKS = {"jukebox_hparams": check_hparams}
