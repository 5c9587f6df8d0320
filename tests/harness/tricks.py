"""What a container, which is root in its namespace, does to its interface eth0 there.

It renames it, deletes it, hides it in a namespace of its own or has it back from there, and puts
another one in its place, with its name, its index and its MAC address. The host has a link up0.
"""

from __future__ import annotations

from typing import Any

from harness.host import ip_json, run_in
from harness.namespaces import Namespace

# Another interface in the place of its own. The macvlan is on a link of the container's, whose
# index is that of the real one's master on the host.
ANOTHER = {
    "veth": ["link add eth0 {same} type veth peer x"],
    "bridge": ["link add eth0 {same} type bridge"],
    "tun": ["tuntap add eth0 mode tap"],
    "macvlan": [
        "link add y0 index {master} type veth peer y1", "link set y0 up",
        "link add eth0 {same} link y0 type macvlan mode bridge",
    ],
}  # fmt: skip
AWAY = ["link set eth0 down", "link set eth0 name mine"]
BACK = ["-n {other} link set mine netns {box}", "link set mine up"]
TRICKS = {
    "renamed": [*AWAY, "link set mine up", "ANOTHER"],
    "deleted": ["link delete eth0", "ANOTHER"],
    "hidden": [*AWAY, "link set mine netns {other}", "-n {other} link set mine up", "ANOTHER"],
    "disguised": [
        *AWAY,
        "link set mine address 02:00:00:00:00:77",
        "link set mine netns {other}",
        "ANOTHER",
    ],
    "away and back": [*AWAY, "link set mine netns {other}", "ANOTHER", *BACK],
}


def play(
    trick: str, kind: str, box: Namespace, other: Namespace, index: int | None = None
) -> list[str]:
    """The commands of a trick, as `ip` takes them in the container.

    kind: of what it puts in the place of its own; other: another namespace of its own; index: of an
    interface that is not there yet, whose MAC address is not known.
    """
    same = ""
    if index is None:
        (link,) = ip_json("link", "show", "dev", "eth0", netns=box)
        index, same = link["ifindex"], f"address {link['address']}"
    if trick != "renamed":
        same += f" index {index}"
    (master,) = ip_json("link", "show", "dev", "up0")
    values = {"same": same, "master": master["ifindex"], "other": other.name, "box": box.name}
    lines = [
        line
        for entry in TRICKS[trick]
        for line in (ANOTHER[kind] if entry == "ANOTHER" else [entry])
    ]
    return [line.format(**values) for line in lines]


def do(box: Namespace, lines: list[str]) -> None:
    """Have a container carry out commands."""
    for line in lines:
        where = None if line.startswith("-n ") else box
        run_in(where, ["ip", *line.split()])


def links(netns: Namespace | None) -> dict[str, dict[str, Any]]:
    """The links of a namespace by name, without lo."""
    found = ip_json("-d", "link", "show", netns=netns)
    return {link["ifname"]: link for link in found if link["ifname"] != "lo"}


def kind_of(link: dict[str, Any]) -> str:
    kind: str = link["linkinfo"]["info_kind"]
    return kind


def own_of_container(box: Namespace, other: Namespace) -> list[dict[str, Any]]:
    """What it has besides, with what says whether it was touched."""
    keys = ("ifname", "ifindex", "address", "mtu", "altnames", "ifalias")
    return [
        {key: link.get(key) for key in keys} | {"flags": "UP" in link["flags"]}
        for netns in (box, other)
        for link in links(netns).values()
        if link["ifname"] != "mine"
    ]
