"""The checks, one module a section of the specification."""

from __future__ import annotations

from pycni.conformance.checks import (
    add,
    check,
    delegation,
    delete,
    gc,
    lifecycle,
    protocol,
    result,
    status,
    version,
)
from pycni.conformance.requirement import REQUIREMENTS, Requirement

_MODULES = (protocol, add, result, delete, check, status, version, gc, lifecycle, delegation)


def requirements() -> list[Requirement]:
    """All that these modules have declared, in the order of reports."""
    names = [module.__name__ for module in _MODULES]
    return sorted(REQUIREMENTS.values(), key=lambda one: names.index(one.check.__module__))
