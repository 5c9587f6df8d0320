"""What a chained plugin finds: an interface in a sandbox, and the result that lists it."""

from __future__ import annotations

from typing import Any

from harness.host import ip_json, run_in
from harness.namespaces import Namespace

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def make_veth(
    netns: Namespace,
    *addresses: str,
    ifname: str = "eth0",
    host_name: str = "veth0",
    host_addresses: tuple[str, ...] = (),
) -> None:
    """A veth between the test's namespace and a sandbox, up, with addresses usable at once."""
    pair = ["ip", "link", "add", host_name, "type", "veth", "peer", ifname, "netns", netns.name]
    run_in(None, pair)
    for where, name, own in ((None, host_name, host_addresses), (netns, ifname, addresses)):
        for address in own:
            nodad = ["nodad"] if ":" in address else []
            run_in(where, ["ip", "address", "add", address, "dev", name, *nodad])
        run_in(where, ["ip", "link", "set", name, "up"])


def previous_result(
    version: str,
    netns: Namespace,
    *addresses: tuple[str, str | None],
    ifname: str = "eth0",
    host_name: str = "veth0",
) -> dict[str, Any]:
    """The result of the plugin that made a veth; addresses are (address, gateway)."""
    ips = [
        {"address": address} | ({"gateway": gateway} if gateway else {})
        for address, gateway in addresses
    ]
    if version < "0.3.0":
        slots = {"ip6" if ":" in ip["address"] else "ip4": ip for ip in ips}
        return {
            "cniVersion": version,
            **{
                slot: {"ip": ip["address"], **{k: v for k, v in ip.items() if k == "gateway"}}
                for slot, ip in slots.items()
            },
            "dns": {},
        }
    (inner,) = ip_json("link", "show", "dev", ifname, netns=netns)
    (outer,) = ip_json("link", "show", "dev", host_name)
    result: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [
            {"name": host_name, "mac": outer["address"]},
            {"name": ifname, "mac": inner["address"], "sandbox": netns.path},
        ],
        "ips": [{"interface": 1, **ip} for ip in ips],
    }
    if version < "1.0.0":
        for ip in result["ips"]:
            ip["version"] = "6" if ":" in ip["address"] else "4"
        result["dns"] = {}
    return result
