"""Parts of configurations that most tests need."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def host_local(data_dir: Path | str, *subnets: str, **keys: Any) -> dict[str, Any]:
    """The `ipam` of a plugin; subnets: each of them the only range of its set."""
    ranges = {"ranges": [[{"subnet": subnet}] for subnet in subnets]} if subnets else {}
    return {"type": "host-local", "dataDir": str(data_dir), **ranges, **keys}
