"""What the commands about songs share: options with dashes or underscores, mistakes in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from songbloom.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """Options in both spellings; a mistake is a :class:`UserError` that names the nearest option."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)
        self._given: list[str] = []

    def option(self, name: str, **more: Any) -> None:
        """Add ``--name``, with ``-`` as well as ``_`` between its words; the help tells its default."""
        spellings = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        default = more.get("default")
        if default not in (None, "", False) and "default" not in more.get("help", ""):
            more["help"] = f"{more.get('help', '')} (default {default})".replace("%", "%%")
        self.add_argument(*spellings, dest=name, **more)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = [str(word).split("=")[0] for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        near = ""
        if message.startswith("unrecognized"):
            near = did_you_mean(unknown, [name for name in self._option_string_actions if name.startswith("--")])
        elif message.startswith("the following arguments are required"):
            given = [word for word in self._given if word.startswith("--")]
            wrong = next((word for word in given if word not in self._option_string_actions), "")
            if wrong:
                message = f"no option is named {wrong}"
                near = did_you_mean(wrong, [name for name in self._option_string_actions if name.startswith("--")])
        raise UserError(f"{message}{near}; --help lists the options")


def run_as_command(main: Callable[[], int]) -> int:
    """Run ``main``: a person's mistake is one line on stderr and status 2, Ctrl-C is 130, a closed pipe is no error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
