"""Host ports with each program that maps them: ours, the reference, in each backend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, run_in, run_plugin
from harness.kernel_state import ruleset
from harness.machines import Machines, addresses
from pycni.kernel.netfilter import iptables

both_families = pytest.mark.parametrize("version", [4, 6])


# Who maps a port: our two backends, the latter on both kinds of iptables, and the reference's.
CONDITIONAL = {"conditionsV4": ["ip", "ttl", "1-255"], "conditionsV6": ["ip6", "hoplimit", "1-255"]}


NFTABLES, IPTABLES, LEGACY = "ours nftables", "ours iptables", "ours iptables-legacy"


REFERENCE, REFERENCE_LEGACY = "reference iptables", "reference iptables-legacy"


REFERENCE_NFTABLES = "reference nftables"


OURS = (NFTABLES, IPTABLES, LEGACY)


OWN_MAPS = {NFTABLES}  # where both are there, the maps themselves decide


ALL = (*OURS, REFERENCE, REFERENCE_LEGACY, REFERENCE_NFTABLES)


# As the reference's releases after 1.1.1 make them, of which Debian has none: what is for one
# address of the host is in a chain of its own, which comes first.
TABLE = """
table {ip} cni_hostport {{
  chain hostports {{ }}
  chain hostip_hostports {{ }}
  chain prerouting {{
    type nat hook prerouting priority -100; jump hostip_hostports; jump hostports;
  }}
  chain output {{
    type nat hook output priority -100; jump hostip_hostports; fib daddr type local jump hostports;
  }}
  chain masquerading {{ type nat hook postrouting priority 100; }}
}}
"""


def rules() -> list[str]:
    """All there is, in nftables and in both kinds of iptables."""
    lines = ruleset().splitlines()
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        lines += run_in(None, [program]).stdout.splitlines()
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


class Ports:
    """Containers whose ports are mapped, by each implementation and backend."""

    def __init__(self, machines: Machines, folder: Path, reference: Path, patch: Any) -> None:
        self.machines = machines
        self.reference = reference
        self._patch = patch
        self._legacy = folder / "legacy"
        self._legacy.mkdir()
        for family in ("iptables", "ip6tables"):
            for end in ("", "-save", "-restore"):
                found = shutil.which(f"{family}-legacy{end}", path=iptables.SYSTEM_PATH)
                assert found is not None, "no iptables-legacy"
                (self._legacy / f"{family}{end}").symlink_to(os.path.realpath(found))

    def portmap(
        self, how: str, container: Attachment, *mappings: dict[str, Any], **keys: Any
    ) -> Attachment:
        """A portmap for `call`; with nothing named it maps 8080 to 80."""
        backend = "nftables" if how == NFTABLES else "iptables"
        runtime = {"portMappings": list(mappings or (mapping(),))}
        made = self.machines.chained(
            "portmap", container, backend=backend, runtimeConfig=runtime, **keys
        )
        if how in (REFERENCE, REFERENCE_LEGACY):
            made.plugin = self.reference / "portmap"
            made.path, made.call = str(self.reference), run_plugin
        return made

    def call(self, how: str, command: Callable[[], Any]) -> Any:
        """Call a plugin where iptables is the one that is meant."""
        with self._patch.context() as patch:
            if how in (LEGACY, REFERENCE_LEGACY):
                patch.setenv("PATH", f"{self._legacy}:{os.environ['PATH']}")
            return command()

    def hold(self, how: str, container: Attachment, *mappings: dict[str, Any]) -> Attachment:
        """Map ports; 8080 by default."""
        portmap = self.portmap(how, container, *mappings)
        if how == REFERENCE_NFTABLES:
            self._write(container, mappings or (mapping(),))
        else:
            self.call(how, portmap.add)
        return portmap

    def release(self, how: str, portmap: Attachment) -> None:
        if how == REFERENCE_NFTABLES:
            for ip in ("ip", "ip6"):
                run_in(None, ["nft", "delete", "table", ip, "cni_hostport"])
        else:
            self.call(how, portmap.delete)

    def _write(self, container: Attachment, mappings: tuple[dict[str, Any], ...]) -> None:
        text = ""
        for version, ip in ((4, "ip"), (6, "ip6")):
            own = addresses(container)[version]
            target = own if version == 4 else f"[{own}]"
            text += TABLE.format(ip=ip)
            end = f'comment "{container.container}"\n'
            for item in mappings:
                host = item.get("hostIP", "")
                if host and (":" in host) != (version == 6):
                    continue
                match = f"{item['protocol']} dport {item['hostPort']}"
                chain = "hostports"
                if host not in ("", "0.0.0.0", "::"):
                    match, chain = f"{ip} daddr {host} {match}", "hostip_hostports"
                text += f"add rule {ip} cni_hostport {chain} {match} "
                text += f"dnat to {target}:{item['containerPort']} {end}"
            for source in (own, "127.0.0.1")[: 2 if version == 4 else 1]:
                text += f"add rule {ip} cni_hostport masquerading "
                text += f"{ip} saddr {source} {ip} daddr {own} masquerade {end}"
        run_in(None, ["nft", text])


def mapping(host: int = 8080, port: int = 80, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": port, "protocol": protocol, **more}


@pytest.fixture
def ports(
    machines: Machines, tmp_path: Path, reference_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Ports:
    return Ports(machines, tmp_path, reference_dir, monkeypatch)


def led() -> set[str]:
    """The rules that lead port 8080 of the host to a container, and what leads to them."""
    words = ("--dport 8080 ", "--dports 8080 ", "dport 8080 ", "dports 8080 ", 'comment "one"')
    return {line.strip() for line in rules() if any(word in line for word in words)}
