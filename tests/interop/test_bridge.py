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

from harness import Attachment, Host, Namespace, Sandbox, ip_json, run_in, run_plugin
from harness.reference import VERSIONS, WITH_CHECK, comparable

MAC = "0a:58:0a:08:00:99"


@pytest.fixture
def directories(plugin_dir: Path, reference_dir: Path) -> dict[str, Path]:
    return {"pycni": plugin_dir, "reference": reference_dir}


def config(tmp_path: Path, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "::/0"},
                {"dst": "192.0.2.0/24", "gw": "10.8.0.1"},
            ],
            "dataDir": str(tmp_path / "leases"),
        },
        **keys,
    }


def attachment(
    main: Path, ipam: Path, conf: dict[str, Any], space: Namespace, **fields: Any
) -> Attachment:
    """bridge of one directory with the address plugin of another."""
    return Attachment(
        main / "bridge", conf, space, path=f"{ipam}:{main}", call=run_plugin, **fields
    )


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
def test_results_are_equal(
    keys: dict[str, Any],
    version: str,
    host: Host,
    sandbox: Sandbox,
    directories: dict[str, Path],
    tmp_path: Path,
) -> None:
    results = {}
    for name, directory in directories.items():
        conf = config(tmp_path / name, version, **keys)
        conf["ipam"] = {**conf["ipam"], "dataDir": str(tmp_path / name)}
        space = sandbox()
        one = attachment(directory, directory, conf, space)
        result = one.add()
        for interface in result.get("interfaces", []):
            if "sandbox" in interface:
                assert interface["sandbox"] == space.path
                interface["sandbox"] = "the sandbox"
        results[name] = comparable(result)
        subprocess.run(["ip", "link", "delete", "br0"], check=True)
    assert results["pycni"] == results["reference"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("main", "ipam"), [("pycni", "reference"), ("reference", "pycni")], ids=["our bridge", "theirs"]
)
def test_mixed_with_the_others_address_plugin(
    main: str,
    ipam: str,
    version: str,
    host: Host,
    sandbox: Sandbox,
    directories: dict[str, Path],
    tmp_path: Path,
) -> None:
    space = sandbox()
    conf = config(tmp_path, version)
    one = attachment(directories[main], directories[ipam], conf, space)
    one.add()
    address = ip_json("-4", "address", "show", "eth0", netns=space)[0]["addr_info"][0]["local"]
    assert run_in(None, ["ping", "-c1", "-W2", address]).returncode == 0
    if version in WITH_CHECK:
        one.check()
    else:
        one.result = None  # there is no prevResult at DEL yet
    one.delete()
    nothing_left(space, tmp_path)


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("pycni", "reference"), ("reference", "pycni")],
    ids=["ours then theirs", "theirs then ours"],
)
def test_add_by_one_check_and_del_by_the_other(
    first: str,
    second: str,
    masquerade: bool,
    host: Host,
    sandbox: Sandbox,
    directories: dict[str, Path],
    tmp_path: Path,
) -> None:
    space = sandbox()
    conf = config(tmp_path, ipMasq=masquerade, ipMasqBackend="iptables")
    one = attachment(directories[first], directories[first], conf, space)
    one.add()
    if masquerade:
        assert 'id: \\"pycni-test\\"' in run_in(None, ["iptables-save"]).stdout
    other = attachment(directories[second], directories[second], conf, space, result=one.result)
    other.check()
    other.delete()
    nothing_left(space, tmp_path)


def test_masquerade_by_nftables_is_harmless_after_their_del(
    host: Host, sandbox: Sandbox, directories: dict[str, Path], tmp_path: Path
) -> None:
    """Their release knows no nftables. What stays of ours is taken by the next ADD or by GC."""
    space = sandbox()
    conf = config(tmp_path, ipMasq=True)
    one = attachment(directories["pycni"], directories["pycni"], conf, space)
    one.add()
    other = attachment(
        directories["reference"], directories["reference"], conf, space, result=one.result
    )
    # It also runs iptables, which has nothing of this container, and says so.
    other.run("DEL", prevResult=one.result)
    assert leases(tmp_path) == []
    rules = run_in(None, ["nft", "list", "table", "inet", "pycni"]).stdout
    assert "id: pycni-test" in rules
    following = attachment(directories["pycni"], directories["pycni"], conf, sandbox())
    following.config = {**conf, "cniVersion": "1.1.0"}
    run = following.run("GC", **{"cni.dev/valid-attachments": []})
    assert run.code == 0, run.stdout
    assert "id: pycni-test" not in run_in(None, ["nft", "list", "table", "inet", "pycni"]).stdout


@pytest.mark.parametrize(
    ("first", "second"),
    [("pycni", "reference"), ("reference", "pycni")],
    ids=["ours then theirs", "theirs then ours"],
)
def test_mac_spoof_check_removed_by_the_other(
    first: str,
    second: str,
    host: Host,
    sandbox: Sandbox,
    directories: dict[str, Path],
    tmp_path: Path,
) -> None:
    space = sandbox()
    conf = config(tmp_path, macspoofchk=True)
    one = attachment(directories[first], directories[first], conf, space)
    one.add()
    other = attachment(directories[second], directories[second], conf, space, result=one.result)
    if (first, second) == ("reference", "pycni"):
        other.check()
        other.delete()
        assert "macspoofchk-pycni-test" not in run_in(None, ["nft", "list", "ruleset"]).stdout
    else:
        # Theirs looks for its own chains only; ours are of no effect once the port has gone.
        other.run("DEL", prevResult=one.result)
        assert leases(tmp_path) == []


def test_concurrent_attachments(
    host: Host, sandbox: Sandbox, directories: dict[str, Path], tmp_path: Path
) -> None:
    """32 at once on one bridge and one lease directory, by all four pairs of plugins."""
    pairs = [(main, ipam) for main in directories.values() for ipam in directories.values()]
    conf = config(tmp_path)
    # The reference cannot make one bridge in several processes at once without a fault.
    attachment(*pairs[0], conf, sandbox(), container="zero").add()
    those = [
        attachment(*pairs[number % 4], conf, sandbox(), container=f"c{number}")
        for number in range(32)
    ]
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(Attachment.add, those))
    addresses = [entry["address"] for result in results for entry in result["ips"]]
    assert len(set(addresses)) == 64
    assert len(leases(tmp_path)) == 66
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(Attachment.delete, those))
    assert len(leases(tmp_path)) == 2
    assert len(ip_json("link")) == 3


def test_container_mac_is_equal(
    host: Host, sandbox: Sandbox, directories: dict[str, Path], tmp_path: Path
) -> None:
    for name, directory in directories.items():
        conf = config(tmp_path / name, runtimeConfig={"mac": MAC})
        conf["ipam"]["dataDir"] = str(tmp_path / name)
        result = attachment(directory, directory, conf, sandbox()).add()
        assert result["interfaces"][2]["mac"] == MAC
        subprocess.run(["ip", "link", "delete", "br0"], check=True)
