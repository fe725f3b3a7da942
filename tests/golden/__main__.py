"""``python -m tests.golden FILE…``: check golden files of any size against this code.

Prints, for each quantity of each file, the worst difference and the tolerance it is held to. Exit status 1 when a
quantity fails or is not known to the check, 2 when a file cannot be read or no check knows its kind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.golden.check import UnknownFile, check_file


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Check golden files against this code.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help="print one line a file instead of the whole table")
    arguments = parser.parse_args()
    status = 0
    for path in arguments.files:
        try:
            golden = check_file(path)
        except UnknownFile as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        failures = golden.failures()
        print(f"{path.name}: {len(golden.quantities)} quantities, {'FAILED' if failures else 'passed'}")
        if not arguments.quiet:
            print(golden.table())
        for line in failures:
            print(f"  {path.name}: {line}")
        status = max(status, 1 if failures else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
