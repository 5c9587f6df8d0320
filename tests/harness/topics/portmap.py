"""What the tests of portmap share."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Attachment
from harness.machines import Machines

BACKENDS = ("nftables", "iptables")


both_backends = pytest.mark.parametrize("backend", BACKENDS)


def portmap_for(
    machines: Machines,
    bridge: Attachment,
    *mappings: dict[str, Any],
    backend: str = "",
    **keys: Any,
) -> Attachment:
    """portmap chained to a container's bridge; ADD is for the caller to call."""
    runtime = {"runtimeConfig": {"portMappings": list(mappings)}}
    named = {"backend": backend} if backend else {}
    return machines.chained("portmap", bridge, **runtime, **named, **keys)
