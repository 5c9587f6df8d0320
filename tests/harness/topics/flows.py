"""Sessions over published ports, and when their flows are to go on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness import run_in
from harness.lan import Lan, received
from harness.machines import Machines

both_families = pytest.mark.parametrize("version", [4, 6])


OUTSIDE = {4: "198.51.100.1", 6: "2001:db8:f::1"}  # the host's address as far sees it


@pytest.fixture
def lan(machines: Machines, tmp_path: Path) -> Lan:
    return Lan(machines, tmp_path)


class Session:
    """A UDP session: `opener` has written to `other` at an address, and has got an answer."""

    def __init__(self, opener: socket.socket, other: socket.socket, address: str, port: int):
        self.opener, self.other = opener, other
        opener.connect((address, port))
        opener.send(b"hello")
        found = received(other)
        assert found is not None, "the first packet did not arrive"
        self.peer = found[1:]
        other.sendto(b"welcome", self.peer)
        assert received(opener) is not None, "the answer did not arrive"

    def goes_on(self) -> bool:
        """Whether both directions still arrive; that of the answers first, as in a broadcast."""
        self.other.sendto(b"news", self.peer)
        if received(self.opener, 0.5) is None:
            return False
        self.opener.send(b"more")
        return received(self.other, 0.5) == ("more", *self.peer)


def lose_result(lan: Lan) -> None:
    """Container `a`'s entry of the runtime's cache goes."""
    (found,) = (lan.folder / "cache").glob("**/*-a-eth0")
    found.unlink()


def leave(lan: Lan, way: str, network: str = "n") -> None:
    """Container `a` leaves. way: DEL or GC, or either where ruleset and result have been lost."""
    command, _, loss = way.partition(" ")
    if loss:
        run_in(None, ["nft", "flush ruleset"])
        lose_result(lan)
    if command == "DEL":
        lan.network(network).delete("a")
    else:
        lan.network(network).gc([], force=True)


each_way = pytest.mark.parametrize("way", ["DEL", "GC", "DEL after a loss", "GC after a loss"])
