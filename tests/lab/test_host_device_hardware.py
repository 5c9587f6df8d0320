"""host-device with the lab's network cards, in the first namespace, where hardware comes back to.

One long test: the cards are there once, and moving them takes its time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Namespace, ip_json, run_in

VIRTIO, E1000 = "52:54:00:00:00:01", "52:54:00:00:00:02"
V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}


def name_of(mac: str, netns: Namespace | None = None) -> str:
    found = [item["ifname"] for item in ip_json("link", netns=netns) if item["address"] == mac]
    return found[0] if found else ""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.2)


def attachment(plugin_dir: Path, **keys: Any) -> Attachment:
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "host-device",
        "ipam": {"type": "static", "addresses": [V4]},
    }
    sandbox = Namespace.create("device")
    return Attachment(plugin_dir / "host-device", config | keys, sandbox, ifname="net1")


@pytest.fixture
def cards() -> tuple[str, str]:
    """The names of both cards, and a neighbour behind the second one."""
    run_in(None, ["modprobe", "-a", "virtio_net", "e1000"])
    return name_of(VIRTIO), name_of(E1000)


def test_cards(plugin_dir: Path, cards: tuple[str, str]) -> None:
    own, other = cards
    assert own
    assert other
    device = os.path.realpath(f"/sys/class/net/{own}/device")  # .../0000:00:01.0/virtio0
    address = os.path.basename(os.path.dirname(device))
    neighbour = Namespace.create("neighbour")
    try:
        found_and_given_back(plugin_dir, neighbour, own, other, device, address)
        lost_with_its_sandbox(plugin_dir, own, address)
        driven_by_a_program(plugin_dir, neighbour, other)
    finally:
        neighbour.delete()
        for name in ("device",):
            Namespace(name).delete()


def found_and_given_back(
    plugin_dir: Path, neighbour: Namespace, own: str, other: str, device: str, address: str
) -> None:
    run_in(None, ["ip", "link", "set", other, "netns", neighbour.name])
    run_in(neighbour, ["ip", "address", "add", "192.0.2.1/24", "dev", other])
    run_in(neighbour, ["ip", "link", "set", other, "up"])
    run_in(None, ["ip", "link", "add", "up0", "type", "bridge"])
    (before,) = ip_json("link", "show", "dev", own)
    for keys in (
        {"pciBusID": address},
        {"kernelpath": device},
        {"runtimeConfig": {"deviceID": address}},
        {"hwaddr": VIRTIO},
        {"device": own},
    ):
        one = attachment(plugin_dir, **keys)
        assert one.sandbox is not None
        assert one.run("STATUS").code == 0
        assert one.add()["interfaces"] == [
            {"name": "net1", "mac": VIRTIO, "sandbox": one.sandbox.path}
        ]
        assert not name_of(VIRTIO)
        run_in(one.sandbox, ["ping", "-c1", "-W10", "192.0.2.1"])
        one.check()
        # What the container does decides nothing.
        for words in ("down", "alias up0", "name mine"):
            run_in(one.sandbox, ["ip", "link", "set", "net1", *words.split()])
        run_in(one.sandbox, ["ip", "link", "property", "add", "dev", "mine", "altname", "up0"])
        one.delete()
        (back,) = ip_json("link", "show", "dev", own)
        names = back["address"], back.get("ifalias"), back.get("altnames", [])
        assert names == (VIRTIO, None, before.get("altnames", []))
        one.delete()
        one.sandbox.delete()
    run_in(None, ["ip", "link", "delete", "up0"])


def lost_with_its_sandbox(plugin_dir: Path, own: str, address: str) -> None:
    """The kernel puts the card back under the sandbox's name for it, or another that is free."""
    for keys, taken, operation in (
        ({"device": own}, False, "DEL"),
        ({"pciBusID": address}, True, "DEL"),
        ({"device": own}, True, "GC"),
    ):
        one = attachment(plugin_dir, **keys)
        one.add()
        if taken:
            run_in(None, ["ip", "link", "add", "net1", "type", "bridge"])
        assert one.sandbox is not None
        one.sandbox.delete()
        wait_for(lambda: name_of(VIRTIO), "the card is back")
        came_as = name_of(VIRTIO)
        assert (came_as == "net1") != taken
        assert came_as != own
        if operation == "DEL":
            one.delete()
        else:
            run = one.run("GC", **{"cni.dev/valid-attachments": []})
            assert run.code == 0, run.stdout
        (back,) = ip_json("link", "show", "dev", own)
        assert back["address"] == VIRTIO
        assert "ifalias" not in back
        if taken:
            run_in(None, ["ip", "link", "delete", "net1"])


def driven_by_a_program(plugin_dir: Path, neighbour: Namespace, other: str) -> None:
    run_in(neighbour, ["ip", "link", "set", other, "netns", "1"])
    card = Path(os.path.realpath(f"/sys/class/net/{other}/device"))
    run_in(None, ["modprobe", "uio_pci_generic"])
    (card / "driver" / "unbind").write_text(card.name)
    unbound = attachment(plugin_dir, pciBusID=card.name)
    assert "no net directory under pci device" in unbound.refused()["msg"]
    unbound.delete()
    assert unbound.sandbox is not None
    unbound.sandbox.delete()
    (card / "driver_override").write_text("uio_pci_generic")
    Path("/sys/bus/pci/drivers/uio_pci_generic/bind").write_text(card.name)
    one = attachment(plugin_dir, runtimeConfig={"deviceID": card.name})
    assert one.sandbox is not None
    result = one.add()
    assert result["interfaces"] == [{"name": "net1", "sandbox": one.sandbox.path}]
    assert result["ips"] == [{"interface": 0, **V4}]
    assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]
    one.check()
    one.delete()
    one.sandbox.delete()
    one.delete()
