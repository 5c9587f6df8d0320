"""The `pycni` command as a process: what it says when it is interrupted, from the beginning on."""

from __future__ import annotations

import sys
from typing import NoReturn

from pycni.cli import interrupts


def main() -> NoReturn:
    """Run the command and end the process."""
    try:
        status = _run()
    except interrupts.Interrupted as error:  # on the way out
        status = _report(error)
    interrupts.ignore()
    sys.exit(status)


def _run() -> str | int | None:
    try:
        interrupts.install()
        from pycni.cli.main import main

        main()
        raise AssertionError("it ends the process")
    except SystemExit as end:
        interrupts.ignore()
        return end.code
    except (Exception, interrupts.Interrupted) as error:
        interrupted = interrupts.cause_of(error)
        if interrupted is None:
            raise
        return _report(interrupted)


def _report(error: interrupts.Interrupted) -> int:
    interrupts.ignore()
    print(error, file=sys.stderr)
    return error.status
