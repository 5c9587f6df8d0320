"""What the kernel holds, as data: links, their addresses, and the rules of nftables and iptables.

netns: a named namespace, None for the thread's own.
"""

from __future__ import annotations

from typing import Any

from harness.host import ip_json, ipset_elements, nft_list, run_in
from harness.namespaces import Namespace


def link(name: str, netns: Namespace | None = None) -> dict[str, Any]:
    """What `ip -d` shows of a link."""
    (found,) = ip_json("-d", "link", "show", "dev", name, netns=netns)
    return found


def link_names(netns: Namespace | None = None) -> set[str]:
    """The names of all links."""
    return {entry["ifname"] for entry in ip_json("link", netns=netns)}


def veths(netns: Namespace | None = None) -> list[str]:
    """The names of the veths, sorted: on a host, of containers' other ends."""
    return sorted(entry["ifname"] for entry in ip_json("link", "show", "type", "veth", netns=netns))


def addresses(name: str, netns: Namespace | None = None) -> dict[str, dict[str, Any]]:
    """The addresses of a link, with all that `ip` says of each; link-local ones too."""
    (found,) = ip_json("address", "show", "dev", name, netns=netns)
    return {f"{item['local']}/{item['prefixlen']}": item for item in found["addr_info"]}


def global_addresses(name: str, netns: Namespace | None = None) -> set[str]:
    """The addresses of a link that are no link-local ones."""
    return {key for key, item in addresses(name, netns).items() if item["scope"] == "global"}


def ruleset() -> str:
    """The text of all rules of nftables, those of iptables-nft among them."""
    return run_in(None, ["nft", "--stateless", "list", "ruleset"]).stdout


def all_rules() -> str:
    """The same, and the elements of ipset's sets."""
    return "\n".join((ruleset(), *ipset_elements()))


def filled_sets() -> list[dict[str, Any]]:
    """The sets and maps of nftables that have elements."""
    found = [entry.get("set") or entry.get("map") or {} for entry in nft_list()]
    return [each for each in found if "elem" in each]


def iptables_saved(table: str, *programs: str) -> list[str]:
    """The lines of a table by iptables-save and ip6tables-save, without comments and counters."""
    lines: list[str] = []
    for program in programs or ("iptables-save", "ip6tables-save"):
        lines += run_in(None, [program, "-t", table]).stdout.splitlines()
    # The counters of a chain stand in brackets behind its policy.
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


def pings(netns: Namespace | None, target: str) -> bool:
    """Whether an address answers within a second."""
    done = run_in(netns, ["ping", "-n", "-c", "1", "-W", "1", target], check=False)
    return done.returncode == 0
