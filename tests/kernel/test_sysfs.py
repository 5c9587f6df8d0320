"""The inode of a link's directory in sysfs: the same for life, and no other link's."""

from __future__ import annotations

from collections.abc import Callable

from harness import Host, Namespace, ip_json, run_in
from harness.namespaces import inside
from pycni.kernel.sysfs import link_inode

Sandbox = Callable[[], Namespace]


def inode(netns: Namespace, name: str) -> int:
    (link,) = ip_json("link", "show", "dev", name, netns=netns)
    with inside(netns):
        return link_inode(name, link["ifindex"])


def test_it_is_kept_for_life(host: Host, sandbox: Sandbox) -> None:
    one, two = sandbox(), sandbox()
    run_in(one, ["ip", "link", "add", "one", "index", "50", "type", "veth", "peer", "two"])
    known = inode(one, "one")
    assert known
    run_in(one, ["ip", "link", "set", "one", "netns", two.name])
    run_in(two, ["ip", "link", "set", "one", "name", "three"])
    run_in(two, ["ip", "link", "set", "three", "address", "02:00:00:00:00:09"])
    assert inode(two, "three") == known
    run_in(one, ["ip", "link", "add", "one", "index", "50", "type", "bridge"])
    assert inode(one, "one") not in (0, known, inode(one, "two"))


def test_another_of_that_name_has_none(host: Host, sandbox: Sandbox) -> None:
    box = sandbox()
    run_in(box, ["ip", "link", "add", "one", "index", "50", "type", "bridge"])
    with inside(box):
        assert [link_inode("one", 51), link_inode("nonesuch", 50)] == [0, 0]
        assert link_inode("one", 50)
