"""The package that the agent runs is the one that it started with, whatever is installed meanwhile.

Modules that are imported when first needed would be those of another release once the package has
been upgraded in place. So the agent imports all of them first, and looks at each call whether the
package is still the same; one that is not is a reason to leave, for an agent of the new one.
"""

from __future__ import annotations

import importlib
import os
import pkgutil

import pycni

ROOMS = ("spec", "plan", "kernel", "steps", "state", "sdk", "plugins", "runtime", "agent")
_FOR_TESTS = "pycni.sdk.testing"


def load() -> None:
    """Import every module that a call may need. Raises ImportError."""
    for room in ROOMS:
        package = importlib.import_module(f"pycni.{room}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name != _FOR_TESTS:
                importlib.import_module(found.name)


class Package:
    """The package's files as they are when this is made."""

    def __init__(self) -> None:
        self._first = _look()

    def has_changed(self) -> bool:
        """Whether it has been installed again, or removed."""
        return _look() != self._first


def _look() -> tuple[int, ...]:
    try:
        # Every way to install a package replaces this file.
        status = os.stat(pycni.__file__)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
