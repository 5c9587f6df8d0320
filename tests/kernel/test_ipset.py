"""Sets of addresses, as the program `ipset` sees them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from socket import AF_INET, AF_INET6

import pytest

from harness import enter_new_netns, run_in
from pycni.kernel.netfilter import ipset
from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.ip import parse_address

ADDRESSES = {AF_INET: ("10.1.2.3", "10.1.2.4"), AF_INET6: ("fd00::3", "fd00::4")}
both_families = pytest.mark.parametrize("family", ADDRESSES, ids=["IPv4", "IPv6"])


@pytest.fixture
def netfilter() -> Iterator[NetfilterSocket]:
    with enter_new_netns(), NetfilterSocket() as found:
        yield found


def saved() -> list[str]:
    return run_in(None, ["ipset", "save"]).stdout.splitlines()


@both_families
def test_a_set_and_its_elements(netfilter: NetfilterSocket, family: int) -> None:
    one, two = ADDRESSES[family]
    key = parse_address(one).packed
    assert ipset.usable(netfilter, family)
    ipset.create(netfilter, "SET", family)
    (made,) = saved()
    kind = {AF_INET: "inet", AF_INET6: "inet6"}[family]
    assert made.startswith(f"create SET hash:ip family {kind} ")
    assert not ipset.contains(netfilter, "SET", key)
    for _ in range(2):  # what is there already is no error
        ipset.add(netfilter, "SET", key)
        ipset.create(netfilter, "SET", family)
        assert saved() == [made, f"add SET {one}"]
        assert ipset.contains(netfilter, "SET", key)
    run_in(None, ["ipset", "add", "SET", two])
    assert ipset.contains(netfilter, "SET", parse_address(two).packed)
    for _ in range(2):
        ipset.delete(netfilter, "SET", key)
        assert saved() == [made, f"add SET {two}"]


@both_families
def test_without_the_set(netfilter: NetfilterSocket, family: int) -> None:
    key = parse_address(ADDRESSES[family][0]).packed
    assert not ipset.contains(netfilter, "SET", key)
    ipset.delete(netfilter, "SET", key)
    with pytest.raises(NetlinkError, match=f"add {key.hex()} to set SET") as caught:
        ipset.add(netfilter, "SET", key)
    assert caught.value.errno == errno.ENOENT


def test_a_name_that_others_took(netfilter: NetfilterSocket) -> None:
    run_in(None, ["ipset", "create", "SET", "hash:net"])
    with pytest.raises(NetlinkError, match="create set SET") as caught:
        ipset.create(netfilter, "SET", AF_INET)
    assert caught.value.errno == errno.EEXIST


def test_what_the_kernel_does_not_know(
    netfilter: NetfilterSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is with a kernel without these sets."""
    monkeypatch.setattr(ipset, "_KIND", "hash:nothing")
    assert not ipset.usable(netfilter, AF_INET)
