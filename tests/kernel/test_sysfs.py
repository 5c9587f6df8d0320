"""The inode of a link's directory in sysfs: the same for life, and no other link's."""

from __future__ import annotations

from typing import Any

from harness import Host, Namespace, Sandbox, run_in
from pycni.kernel import link, namespace
from pycni.kernel.sysfs import link_inode


def inode(netns: Namespace, device: str, **changes: Any) -> int:
    """Of an interface; changes: to what is asked for."""
    with (
        namespace.current() as home,
        namespace.open_path(netns.path) as space,
        space.netlink() as netlink,
    ):
        found = link.get(netlink, device).replace(**changes)
        return link_inode(found, space, home)


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
    assert [inode(box, "one", index=51), inode(box, "one", name="nonesuch")] == [0, 0]
    assert inode(box, "one")
