"""One network's leases, below a directory of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycni.spec.config import Attachment
from pycni.spec.ip import IPAddress
from pycni.state.leases import LeaseStore

V4 = 2


FIRST = 0x0A000002  # 10.0.0.2


A = Attachment("a", "eth0")


B = Attachment("b", "eth0")


def address(number: int) -> IPAddress:
    return IPAddress.from_int(FIRST + number, V4)


class Network:
    """One network's leases below a temporary data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "net"
        self.notes: list[str] = []

    def open(self, *, create: bool = True, timeout: float | None = 5.0) -> LeaseStore:
        return LeaseStore(
            str(self.data_dir),
            "net",
            create=create,
            timeout=timeout,
            note=self.notes.append,
            gives=lambda address: FIRST <= int(address) <= FIRST + 999,
        )

    def plant(self, name: str, content: bytes) -> None:
        """Write a file as another program would."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """The lease files, by address."""
        return {
            item.name: item.read_bytes()
            for item in self.path.iterdir()
            if item.name != "lock" and not item.name.startswith("last_reserved_ip.")
        }


@pytest.fixture
def net(tmp_path: Path) -> Network:
    return Network(tmp_path / "state")
