"""podman with its CNI backend: networks that it writes itself, from creation to removal."""

from __future__ import annotations

import pytest

from harness import Namespace, ip_json
from harness.clients import PAGE, leases, links, mentions, page, served
from harness.podman import Podman

without_agent = pytest.mark.parametrize("plugins", ["ours", "reference"], indirect=True)


def test_network(podman: Podman, outside: Namespace) -> None:
    """Two containers on a network, one with a published port, until all is removed."""
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    web = podman.serve("web", "--network", "lab", "--publish", "8088:80")
    other = podman.serve("other", "--network", "lab")
    assert page("10.89.0.2") == page("10.89.0.3") == PAGE
    assert leases() == ["10.89.0.2", "10.89.0.3"]

    # They reach each other, and the port is reached from everywhere.
    assert podman("exec", "other", "wget", "-q", "-O", "-", "http://10.89.0.2/") == PAGE.strip()
    assert podman("exec", "web", "wget", "-q", "-O", "-", "http://10.89.0.3/") == PAGE.strip()
    for address in ("127.0.0.1", "10.89.0.1", "192.0.2.1"):
        assert page(address, 8088) == PAGE
    assert page("192.0.2.1", 8088, outside) == PAGE
    for name in ("other", "web"):  # by the port on the host, the container itself too
        url = "http://10.89.0.1:8088/"
        assert podman("exec", name, "wget", "-q", "-O", "-", url) == PAGE.strip()

    podman.remove("web")
    assert mentions("10.89.0.2", web, "8088") == []
    assert not served("127.0.0.1", 8088)
    assert page("10.89.0.3") == PAGE
    podman.remove("other")
    assert mentions("10.89.0.3", other) == []
    assert leases() == []
    podman("network", "rm", "lab")
    assert links() == ["uplink"]


@without_agent
def test_inspect(podman: Podman) -> None:
    """What podman says of a container is what the kernel has."""
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    podman.serve("web", "--network", "lab", "--publish", "8088:80")
    reported = podman.inspect("web")
    namespace = reported["NetworkSettings"]["SandboxKey"].rpartition("/")[2]
    (eth0,) = ip_json("address", "show", "dev", "eth0", netns=namespace)
    assert reported["NetworkSettings"]["Ports"] == {"80/tcp": [{"HostIp": "", "HostPort": "8088"}]}
    (network,) = reported["NetworkSettings"]["Networks"].values()
    assert {key: value for key, value in network.items() if value} == {
        "Aliases": [reported["Id"][:12]],
        "Gateway": "10.89.0.1",
        "IPAddress": "10.89.0.2",
        "IPPrefixLen": 24,
        "MacAddress": eth0["address"],
        "NetworkID": "lab",
    }
    (address,) = [entry for entry in eth0["addr_info"] if entry["family"] == "inet"]
    assert (address["local"], address["prefixlen"]) == ("10.89.0.2", 24)
    routes = {(route["dst"], route.get("gateway")) for route in ip_json("route", netns=namespace)}
    assert routes == {("default", "10.89.0.1"), ("10.89.0.0/24", None)}
    assert podman("ps", "--format", "{{.Ports}} {{.Networks}}") == "0.0.0.0:8088->80/tcp lab"


@without_agent
def test_address_and_hardware_address_of_choice(podman: Podman) -> None:
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    chosen = ("--ip", "10.89.0.77", "--mac-address", "02:00:00:00:00:77")
    podman.serve("web", "--network", "lab", *chosen)
    (network,) = podman.inspect("web")["NetworkSettings"]["Networks"].values()
    assert (network["IPAddress"], network["MacAddress"]) == chosen[1::2]
    assert page("10.89.0.77") == PAGE


@without_agent
def test_two_networks(podman: Podman) -> None:
    """A container on two networks reaches both; taken off one, it keeps the other."""
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    podman("network", "create", "--subnet", "10.90.0.0/24", "--subnet", "fd00:90::/64", "dual")
    web = podman.serve("web", "--network", "lab,dual")
    assert leases() == ["10.89.0.2", "10.90.0.2"]
    assert page("10.89.0.2") == page("10.90.0.2") == PAGE
    assert page("fd00:90::2") == PAGE
    podman("network", "disconnect", "dual", "web")
    assert mentions("10.90.0.2", "fd00:90::2") == []
    assert page("10.89.0.2") == PAGE
    podman("network", "connect", "dual", "web")
    assert page("10.90.0.3") == PAGE
    podman.remove("web")
    assert mentions(web, "10.89.0.2", "10.90.0.3", "fd00:90::3") == []


@without_agent
def test_restart(podman: Podman) -> None:
    """A container that ended is on its network again when it starts again."""
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    podman.serve("web", "--network", "lab", "--publish", "8088:80")
    podman("restart", "--time", "0", "web")
    assert leases() == ["10.89.0.3"]
    assert page("127.0.0.1", 8088) == PAGE
    podman("stop", "--time", "0", "web")
    assert leases() == []


@without_agent
def test_failed_run_leaves_nothing(podman: Podman) -> None:
    """The subnet has one address, and a container holds it."""
    podman("network", "create", "--subnet", "10.89.0.0/30", "lab")
    podman.serve("first", "--network", "lab")
    before = links()
    with pytest.raises(AssertionError, match="no IP addresses available"):
        podman.serve("second", "--network", "lab", "--publish", "8088:80")
    assert (links(), leases()) == (before, ["10.89.0.2"])
    assert page("10.89.0.2") == PAGE
    podman.remove("first")
    podman.serve("third", "--network", "lab")
    assert leases() == ["10.89.0.2"]
