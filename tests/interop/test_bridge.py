"""bridge and host-local beside the reference's: equal results, and each follows the other.

The reference is Debian's package, release 1.1.1: it speaks the specification up to 1.0.0 and
masquerades by iptables only.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in, run_plugin
from harness.configs import host_local
from harness.reference import VERSIONS, WITH_CHECK, comparable

MAC = "0a:58:0a:08:00:99"


PROJECTS = ("pycni", "reference")
each_first = pytest.mark.parametrize(
    ("first", "second"), [PROJECTS, PROJECTS[::-1]], ids=["ours then theirs", "theirs then ours"]
)


@pytest.fixture
def attach(
    host: Host, sandbox: Sandbox, plugin_dir: Path, reference_dir: Path, tmp_path: Path
) -> Attach:
    """Makes attachments of one project's bridge, with the other's address plugin if that is named.

    leases: a directory below the test's; keys: of the configuration.
    """
    directories = {"pycni": plugin_dir, "reference": reference_dir}

    def make(
        main: str,
        ipam_of: str = "",
        *,
        version: str = "1.0.0",
        space: Namespace | None = None,
        container: str = "pycni-test",
        result: Any = None,
        leases: str = "leases",
        **keys: Any,
    ) -> Attachment:
        config = {
            "cniVersion": version,
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "ipam": host_local(
                tmp_path / leases,
                "10.8.0.0/24",
                "fd00:8::/64",
                routes=[
                    {"dst": "0.0.0.0/0"},
                    {"dst": "::/0"},
                    {"dst": "192.0.2.0/24", "gw": "10.8.0.1"},
                ],
            ),
            **keys,
        }
        config["ipam"] = {**config["ipam"], "dataDir": str(tmp_path / leases)}
        return Attachment(
            directories[main] / "bridge",
            config,
            space or sandbox(),
            container,
            path=f"{directories[ipam_of or main]}:{directories[main]}",
            call=run_plugin,
            result=result,
        )

    return make


def leases(tmp_path: Path) -> list[str]:
    names = os.listdir(tmp_path / "leases" / "net")
    return [name for name in names if not name.startswith(("lock", "last_reserved_ip"))]


def nothing_left(space: Namespace, tmp_path: Path) -> None:
    assert [link["ifname"] for link in ip_json("link")] == ["lo", "br0"]
    assert [link["ifname"] for link in ip_json("link", netns=space)] == ["lo"]
    assert leases(tmp_path) == []
    for program in ("iptables-save", "ip6tables-save"):
        assert "net" not in run_in(None, [program]).stdout
    assert "net: net" not in run_in(None, ["nft", "list", "ruleset"]).stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"isDefaultGateway": True, "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}},
        {"isGateway": False},
        {"dns": {"nameservers": ["192.0.2.53"], "search": ["example.org"]}},
        {"mtu": 1400, "hairpinMode": True},
        {"ipam": {"type": "host-local", "subnet": "10.8.0.0/24", "gateway": "10.8.0.254"}},
    ],
    ids=["plain", "default gateway", "no gateway", "dns", "mtu and hairpin", "legacy range"],
)
def test_results_are_equal(attach: Attach, keys: dict[str, Any], version: str) -> None:
    results = {}
    for name in PROJECTS:
        one = attach(name, version=version, leases=name, **keys)
        result = one.add()
        for interface in result.get("interfaces", []):
            if "sandbox" in interface:
                assert interface["sandbox"] == one.sandbox.path
                interface["sandbox"] = "the sandbox"
        results[name] = comparable(result)
        subprocess.run(["ip", "link", "delete", "br0"], check=True)
    assert results["pycni"] == results["reference"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("main", "ipam"), [PROJECTS, PROJECTS[::-1]], ids=["our bridge", "theirs"])
def test_mixed_with_the_others_address_plugin(
    attach: Attach, main: str, ipam: str, version: str, tmp_path: Path
) -> None:
    one = attach(main, ipam, version=version)
    one.add()
    space = one.sandbox
    address = ip_json("-4", "address", "show", "eth0", netns=space)[0]["addr_info"][0]["local"]
    assert run_in(None, ["ping", "-c1", "-W2", address]).returncode == 0
    if version in WITH_CHECK:
        one.check()
    else:
        one.result = None  # there is no prevResult at DEL yet
    one.delete()
    nothing_left(space, tmp_path)


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
@each_first
def test_add_by_one_check_and_del_by_the_other(
    attach: Attach, first: str, second: str, masquerade: bool, tmp_path: Path
) -> None:
    keys = {"ipMasq": masquerade, "ipMasqBackend": "iptables"}
    one = attach(first, **keys)
    one.add()
    if masquerade:
        assert 'id: \\"pycni-test\\"' in run_in(None, ["iptables-save"]).stdout
    other = attach(second, space=one.sandbox, result=one.result, **keys)
    other.check()
    other.delete()
    nothing_left(one.sandbox, tmp_path)


def test_masquerade_by_nftables_is_harmless_after_their_del(attach: Attach, tmp_path: Path) -> None:
    """Their release knows no nftables. What stays of ours is taken by the next ADD or by GC."""
    one = attach("pycni", ipMasq=True)
    one.add()
    other = attach("reference", space=one.sandbox, result=one.result, ipMasq=True)
    # It also runs iptables, which has nothing of this container, and says so.
    other.run("DEL", prevResult=one.result)
    assert leases(tmp_path) == []
    rules = run_in(None, ["nft", "list", "table", "inet", "pycni"]).stdout
    assert "id: pycni-test" in rules
    following = attach("pycni", version="1.1.0", ipMasq=True)
    run = following.run("GC", **{"cni.dev/valid-attachments": []})
    assert run.code == 0, run.stdout
    assert "id: pycni-test" not in run_in(None, ["nft", "list", "table", "inet", "pycni"]).stdout


@each_first
def test_mac_spoof_check_removed_by_the_other(
    attach: Attach, first: str, second: str, tmp_path: Path
) -> None:
    one = attach(first, macspoofchk=True)
    one.add()
    other = attach(second, space=one.sandbox, result=one.result, macspoofchk=True)
    if second == "pycni":
        other.check()
        other.delete()
        assert "macspoofchk-pycni-test" not in run_in(None, ["nft", "list", "ruleset"]).stdout
    else:
        # Theirs looks for its own chains only; ours are of no effect once the port has gone.
        other.run("DEL", prevResult=one.result)
        assert leases(tmp_path) == []


def test_concurrent_attachments(attach: Attach, tmp_path: Path) -> None:
    """32 at once on one bridge and one lease directory, by all four pairs of plugins."""
    pairs = [(main, ipam) for main in PROJECTS for ipam in PROJECTS]
    # The reference cannot make one bridge in several processes at once without a fault.
    attach(*pairs[0], container="zero").add()
    those = [attach(*pairs[number % 4], container=f"c{number}") for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(Attachment.add, those))
    addresses = [entry["address"] for result in results for entry in result["ips"]]
    assert len(set(addresses)) == 64
    assert len(leases(tmp_path)) == 66
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(Attachment.delete, those))
    assert len(leases(tmp_path)) == 2
    assert len(ip_json("link")) == 3


def test_container_mac_is_equal(attach: Attach) -> None:
    for name in PROJECTS:
        result = attach(name, leases=name, runtimeConfig={"mac": MAC}).add()
        assert result["interfaces"][2]["mac"] == MAC
        subprocess.run(["ip", "link", "delete", "br0"], check=True)
