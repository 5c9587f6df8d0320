"""Forty configurations with one fault each: file name, text, line and key of the fault, a word.

They are the slips that are made: a key's spelling, its place, its type, a value out of range or out
of place, a version that is none, broken JSON.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from harness.sound_configs import PORTMAP, a_list, host_local, one


class Faulty(NamedTuple):
    """line: of the first that has `mark`."""

    file: str
    text: str
    mark: str
    key: str
    word: str

    @property
    def line(self) -> int:
        before, found, _ = self.text.partition(self.mark)
        assert found, self.mark
        return before.count("\n") + 1


def faulty(file: str, document: dict[str, Any] | str, mark: str, key: str, word: str) -> Faulty:
    text = document if isinstance(document, str) else json.dumps(document, indent=2)
    return Faulty(file, text, mark, key, word)


BRIDGE = {"type": "bridge", "bridge": "br0", "ipam": host_local("10.1.0.0/16")}


def bridge(**keys: Any) -> dict[str, Any]:
    return one("net", "1.0.0", **{"plugin": "bridge", "bridge": "br0", **keys})


def ranged(*ranges: Any, **keys: Any) -> dict[str, Any]:
    return one("net", "1.0.0", "ptp", ipam={"type": "host-local", "ranges": [*ranges], **keys})


FAULTY = (
    # --- spelling and place of keys
    faulty("01.conf", bridge(isGatway=True), "isGatway", "isGatway", '"isGateway"'),
    faulty("02.conf", bridge(ip_masq=True), "ip_masq", "ip_masq", '"ipMasq"'),
    faulty(
        "03.conf",
        bridge(ipam=host_local("10.1.0.0/16", range_start="10.1.0.9")),
        "range_start",
        "ipam.range_start",
        '"rangeStart"',
    ),
    faulty(
        "04.conf",
        ranged([{"subnett": "10.1.0.0/16", "subnet": "10.1.0.0/16"}]),
        "subnett",
        "ipam.ranges[0][0].subnett",
        '"subnet"',
    ),
    faulty(
        "05.conf",
        bridge(ipam=host_local("10.1.0.0/16", routes=[{"dest": "0.0.0.0/0", "dst": "::/0"}])),
        '"dest"',
        "ipam.routes[0].dest",
        '"dst"',
    ),
    faulty(
        "06.conflist",
        a_list("net", "1.0.0", BRIDGE, cniVersion_s=[]),
        "cniVersion_s",
        "cniVersion_s",
        '"cniVersions"',
    ),
    faulty(
        "07.conflist", a_list("net", "1.0.0", BRIDGE, ipMasq=True), "ipMasq", "ipMasq", "plugins"
    ),
    faulty(
        "08.conflist",
        a_list("net", "1.0.0", {**BRIDGE, "disableCheck": True}),
        "disableCheck",
        "plugins[0].disableCheck",
        "list",
    ),
    faulty(
        "09.conf",
        bridge(dns={"nameserver": ["1.1.1.1"]}),
        '"nameserver"',
        "dns.nameserver",
        '"nameservers"',
    ),
    faulty("10.conf", bridge(gateway="10.1.0.1"), "gateway", "gateway", "unknown"),
    faulty(
        "11.conflist",
        a_list("net", "1.0.0", BRIDGE, {"type": "portmap", "capabilites": {"portMappings": True}}),
        "capabilites",
        "plugins[1].capabilites",
        '"capabilities"',
    ),
    faulty(
        "12.conflist",
        a_list("net", "1.0.0", BRIDGE, {"type": "portmap", "capabilities": {"portMapping": True}}),
        "portMapping",
        "plugins[1].capabilities.portMapping",
        '"portMappings"',
    ),
    faulty("13.conf", bridge(runtimeConfig={}), "runtimeConfig", "runtimeConfig", "runtime"),
    # --- types of plugins
    faulty("14.conf", one("net", "1.0.0", "brigde"), "brigde", "type", '"bridge"'),
    faulty(
        "15.conf",
        bridge(ipam={"type": "host_local", "subnet": "10.1.0.0/16"}),
        "host_local",
        "ipam.type",
        '"host-local"',
    ),
    faulty("16.conf", {"cniVersion": "1.0.0", "name": "net"}, "{", "type", "missing"),
    faulty("17.conf", one("net", "1.0.0", "/opt/cni/bin/bridge"), "/opt", "type", "/opt"),
    faulty("18.conf", bridge(ipam={"subnet": "10.1.0.0/16"}), '"ipam"', "ipam.type", "missing"),
    faulty(
        "19.conflist",
        a_list("net", "1.0.0", PORTMAP, BRIDGE),
        "portmap",
        "plugins[0].type",
        "first",
    ),
    # --- types of values
    faulty("20.conf", bridge(mtu="1500"), "mtu", "mtu", '"1500"'),
    faulty("21.conf", bridge(ipMasq="true"), "ipMasq", "ipMasq", "true or false"),
    faulty("22.conf", bridge(vlanTrunk={"id": 5}), "vlanTrunk", "vlanTrunk", "list"),
    faulty("23.conf", bridge(ipam=[]), "ipam", "ipam", "object"),
    faulty(
        "24.conflist",
        a_list("net", "1.0.0", BRIDGE, {"type": "tuning", "sysctl": {"net.core.somaxconn": 500}}),
        "somaxconn",
        "plugins[1].sysctl.net.core.somaxconn",
        "500",
    ),
    # --- values
    faulty("25.conf", bridge(vlan=4095), "vlan", "vlan", "4095"),
    faulty("26.conf", bridge(ipam=host_local("10.1.0.0")), "subnet", "ipam.subnet", "10.1.0.0"),
    faulty("27.conf", bridge(ipam=host_local("10.1.0.300/24")), "subnet", "ipam.subnet", "300"),
    faulty(
        "28.conf",
        ranged([{"subnet": "10.1.0.0/16", "rangeStart": "10.2.0.5"}]),
        "rangeStart",
        "ipam.ranges[0][0].rangeStart",
        "10.2.0.5",
    ),
    faulty(
        "29.conf",
        ranged([{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.5.0/24"}]),
        "ipam",
        "ipam",
        "10.1.",
    ),
    faulty(
        "30.conf",
        one("net", "1.0.0", "macvlan", master="eth0", mode="brdige", ipam={"type": "dhcp"}),
        "mode",
        "mode",
        "brdige",
    ),
    faulty(
        "31.conf",
        one("net", "1.0.0", "vlan", master="eth0", vlanId=5000, ipam={"type": "dhcp"}),
        "vlanId",
        "vlanId",
        "5000",
    ),
    faulty("32.conf", one("net", "1.0.0", "tap", mac="00:11:22:33:44"), "mac", "mac", "00:11"),
    faulty("33.conf", bridge(bridge="a-name-of-18-bytes"), '"bridge": ', "bridge", "a-name"),
    faulty("34.conf", one("my net", "1.0.0", "loopback"), "name", "name", "my net"),
    faulty("35.conf", one("net", "1.2.0", "loopback"), "cniVersion", "cniVersion", "1.2.0"),
    faulty("36.conf", one("net", "1.0.0", "ipvlan", master="eth0"), "{", "ipam", "needs"),
    faulty(
        "37.conf",
        one("net", "1.0.0", "host-device", kernelpath="/sys/class/net/eth1"),
        "kernelpath",
        "kernelpath",
        "/sys/devices/",
    ),
    # --- the text
    faulty("38.conf", '{\n"name": "net",\n"type": "loopback",\n}', '"type"', "", ""),
    faulty(
        "39.conf",
        '{\n"name": "net",\n"cniVersion": "1.0.0",\n"type": "loopback",\n"name": "n"\n}',
        '"n"',
        "name",
        "twice",
    ),
    faulty("40.conf", a_list("net", "1.0.0", BRIDGE), "{", "type", ".conflist"),
)
