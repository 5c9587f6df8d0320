"""Exceptions out of nowhere, wherever they come: the program goes on as if it had never called.

At every line of what the calling thread does of an operation, and with PYCNI_EVERY_INSTRUCTION set
at every instruction (`make interrupts`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Sandbox
from harness.interrupts import Interrupt, each_interrupt
from harness.kernel_state import filled_sets, veths
from harness.ways import Way, notes, ports_of
from pycni.kernel import namespace
from pycni.runtime import Network, namespaces
from pycni.runtime.endpoint import Endpoint

# One in a method that the interpreter calls by itself, `__del__`, is reported and goes no further.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

EVENTS = "opcode" if os.environ.get("PYCNI_EVERY_INSTRUCTION") else "line"
MAPPED = ports_of((8080, 80))


@pytest.fixture
def network(host: Host, tmp_path: Path) -> Network:
    way = Way("in process", tmp_path, tmp_path)
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
    return way.network(
        "n",
        {**bridge, "ipam": way.host_local("10.66.0.0/24")},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    )


@pytest.fixture(autouse=True)
def _stays_at_home(host: Host) -> Any:
    with namespace.current() as before:
        yield
        with namespace.current() as after:
            assert after.same_as(before)


def left(tmp_path: Path) -> list[object]:
    """What is there of attachments."""
    leases = Way("", tmp_path, tmp_path).leases("n")
    return [*leases, *filled_sets(), *veths(), *notes()]


def is_whole_or_nothing(network: Network, tmp_path: Path) -> bool:
    if network.attachments():
        network.check("c")
        return True
    return left(tmp_path) == []


def test_add(network: Network, sandbox: Sandbox, tmp_path: Path) -> None:
    box = sandbox()
    network.add("c", box.path, capabilities=MAPPED)  # what stays is there from now on
    network.delete("c")
    for interrupt in each_interrupt(EVENTS):
        try:
            interrupt(lambda: network.add("c", box.path, capabilities=MAPPED))
        except Interrupt:
            pass
        assert is_whole_or_nothing(network, tmp_path), interrupt.where
        network.delete("c")
        assert left(tmp_path) == [], interrupt.where


def test_delete(network: Network, sandbox: Sandbox, tmp_path: Path) -> None:
    box = sandbox()
    for interrupt in each_interrupt(EVENTS):
        network.add("c", box.path, capabilities=MAPPED)
        try:
            interrupt(lambda: network.delete("c"))
        except Interrupt:
            pass
        network.delete("c")
        assert left(tmp_path) == [], interrupt.where


def test_add_many(network: Network, sandbox: Sandbox, tmp_path: Path) -> None:
    boxes = {f"c{number}": sandbox() for number in range(3)}
    endpoints = [Endpoint(name, box.path) for name, box in boxes.items()]
    network.add_many(endpoints)
    network.delete_many(endpoints)
    for interrupt in each_interrupt(EVENTS):
        try:
            interrupt(lambda: network.add_many(endpoints))
        except Interrupt:
            assert len(network.attachments()) in (0, len(boxes)), interrupt.where
        network.delete_many(endpoints)
        assert left(tmp_path) == [], interrupt.where


def test_a_namespace_that_is_entered(host: Host, sandbox: Sandbox) -> None:
    with namespace.open_path(sandbox().path) as space, namespace.current() as home:

        def stay() -> None:
            with space.enter():
                assert not namespace.current().same_as(home)

        for events in ("line", "opcode"):
            for interrupt in each_interrupt(events):
                try:
                    interrupt(stay)
                except Interrupt:
                    pass
                assert namespace.current().same_as(home), interrupt.where


def test_a_namespace_that_is_made(host: Host) -> None:
    for interrupt in each_interrupt(EVENTS):
        try:
            interrupt(lambda: namespaces.create("interrupted"))
        except Interrupt:
            pass
        if os.path.exists(namespaces.path("interrupted")):
            namespace.open_path(namespaces.path("interrupted")).close()
            namespaces.delete("interrupted")
