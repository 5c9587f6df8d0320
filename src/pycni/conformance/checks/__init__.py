"""The checks, one module a section of the specification; importing this declares all."""

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

# In the order of reports.
MODULES = (protocol, add, result, delete, check, status, version, gc, lifecycle, delegation)
