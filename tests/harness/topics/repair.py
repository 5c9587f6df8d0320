"""What the tests of repair share: a network with all that a container may need, and findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Namespace, ask, ip_json, run_in, service
from harness.configs import host_local
from harness.kernel_state import link
from harness.machines import FAR, Machines
from pycni.runtime import Network, PluginError
from pycni.runtime.report import AttachmentReport


class Lab:
    """A network with all that a container may need of its host, on the fixture's machines."""

    def __init__(self, machines: Machines, folder: Path, plugin_dir: Path) -> None:
        self.machines = machines
        self.folder = folder
        self.plugins = plugin_dir
        self.sandboxes: dict[str, Namespace] = {}

    def network(
        self, *more: dict[str, Any], backend: str = "", version: str = "1.1.0", **bridge: Any
    ) -> Network:
        masquerade = {"ipMasqBackend": backend} if backend else {}
        return Network.from_dict(
            {
                "cniVersion": version,
                "name": "lab",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cni0",
                        "isDefaultGateway": True,
                        "hairpinMode": True,
                        "ipMasq": True,
                        **masquerade,
                        "ipam": host_local(self.folder / "leases", "10.1.0.0/16", "fd00:1::/64"),
                        **bridge,
                    },
                    *more,
                ],
            },
            plugin_dirs=self.plugins,
            cache_dir=self.folder / "cache",
        )

    def add(self, network: Network, name: str, **keys: Any) -> dict[int, str]:
        """Attach a container; returns its addresses by version."""
        self.sandboxes[name] = self.machines.sandbox()
        result = network.add(name, self.sandboxes[name].path, **keys)
        self.machines.stack.enter_context(service(self.sandboxes[name], name, 80))
        return {6 if ":" in str(ip.address) else 4: str(ip.address.address) for ip in result.ips}

    def reaches(self, name: str, own: dict[int, str] | None = None) -> tuple[str, str]:
        """Whom a machine beyond sees when the container asks it, by IPv4 and IPv6.

        own: the addresses that it asks from, by default of its own choice.
        """
        sources = {version: (address, 0) for version, address in (own or {}).items()}
        with service(self.machines.far, "far", 80):
            answers = [
                ask(
                    self.sandboxes[name],
                    FAR[version],
                    80,
                    source=sources.get(version),
                    timeout=3.0,
                )
                for version in (4, 6)
            ]
        four, six = (answer.removeprefix("far ") for answer in answers)
        return four, six


@pytest.fixture
def lab(machines: Machines, tmp_path: Path, plugin_dir: Path) -> Lab:
    return Lab(machines, tmp_path, plugin_dir)


def portmap(backend: str) -> dict[str, Any]:
    return {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend}


def firewall(backend: str, **keys: Any) -> dict[str, Any]:
    return {"type": "firewall", "backend": backend, **keys}


def bandwidth() -> dict[str, Any]:
    rates = {"ingressRate": 10**9, "ingressBurst": 10**8, "egressRate": 10**9}
    return {"type": "bandwidth", **rates, "egressBurst": 10**8}


# What a host outside sees of a container that is masqueraded.
MASQUERADED = ("198.51.100.1", "2001:db8:f::1")


def ruleset(*, handles: bool = False) -> dict[str, Any]:
    """All rules, by table and chain in their order, and sets with their elements sorted."""
    listing = json.loads(run_in(None, ["nft", "-j", "--stateless", "list", "ruleset"]).stdout)
    found: dict[str, Any] = {}
    for entry in listing["nftables"]:
        ((kind, item),) = entry.items()
        if kind == "metainfo":
            continue
        if not handles:
            item.pop("handle", None)
        if "elem" in item:
            item["elem"].sort(key=json.dumps)
        place = (kind, item["family"], item.get("table", ""), item.get("chain", item.get("name")))
        found.setdefault(" ".join(place), []).append(_without_counters(item))
    return found


def _without_counters(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _without_counters(value) for key, value in item.items() if key != "counter"}
    if isinstance(item, list):
        return [_without_counters(value) for value in item]
    return item


def findings(reports: list[AttachmentReport]) -> list[tuple[str, str]]:
    return [(finding.plugin, finding.state) for report in reports for finding in report.findings]


def reported(reports: list[AttachmentReport]) -> str:
    return "\n".join(
        f"{finding.plugin} {finding.state}: {finding.what}; {finding.reason}"
        for report in reports
        for finding in report.findings
    )


def must_be_sound(network: Network) -> None:
    reports = network.repair()
    assert reports, "there is nothing to repair"
    assert all(report.is_sound and not report.skipped for report in reports), reported(reports)


def must_be_repaired(network: Network) -> list[AttachmentReport]:
    """Repair finds something, and repairs all of it; then CHECK finds nothing, nor does repair."""
    reports = network.repair()
    assert all(report.ok and not report.skipped for report in reports), reported(reports)
    assert not all(report.is_sound for report in reports), "repair found nothing"
    for endpoint in network.attachments():
        network.check(endpoint.container_id, ifname=endpoint.ifname)
    must_be_sound(network)
    return reports


def drift(network: Network, name: str) -> PluginError:
    with pytest.raises(PluginError) as caught:
        network.check(name)
    assert f"pycni repair {network.name} puts it back" in caught.value.details
    return caught.value


def flush_ruleset() -> None:
    run_in(None, ["nft", "flush", "ruleset"])


def ports(number: int) -> dict[str, Any]:
    mapping = {"hostPort": 8080 + number, "containerPort": 80, "protocol": "tcp"}
    return {"capabilities": {"portMappings": [mapping]}}


def host_end(lab: Lab, name: str = "one") -> str:
    """The host's end of a container's veth."""
    index = link("eth0", lab.sandboxes[name])["link_index"]
    return str(next(each["ifname"] for each in ip_json("link") if each["ifindex"] == index))
