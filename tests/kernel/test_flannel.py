"""flannel on the kernel: what the delegate gets, and that all operations reach it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Attach,
    Attachment,
    Host,
    Namespace,
    Sandbox,
    call_plugin,
    ip_json,
    run_in,
    run_plugin,
    snapshot,
)
from harness.kernel_state import veths
from harness.ways import notes

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
V4 = "FLANNEL_NETWORK=10.240.0.0/16\nFLANNEL_SUBNET=10.240.5.1/24\n"
V6 = "FLANNEL_IPV6_NETWORK=fd00:240::/56\nFLANNEL_IPV6_SUBNET=fd00:240:0:5::1/64\n"
REST = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """What flanneld writes."""
    file = tmp_path / "subnet.env"
    file.write_text(V4 + V6 + REST)
    return file


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path, env: Path) -> Attach:
    count = 0

    def make(
        *,
        netns: Namespace | None = None,
        ifname: str = "eth0",
        version: str = "1.1.0",
        container: str = "",
        **keys: Any,
    ) -> Attachment:
        nonlocal count
        count += 1
        config = {
            "cniVersion": version,
            "name": "flan",
            "type": "flannel",
            "subnetFile": str(env),
            "dataDir": str(tmp_path / "flannel"),
            "ipam": {"dataDir": str(tmp_path / "leases")},
        }
        return Attachment(
            plugin_dir / "flannel",
            {**config, **keys},
            netns or sandbox(),
            container or f"container-{count}",
            ifname,
        )

    return make


@pytest.fixture
def spy(plugin_dir: Path, tmp_path: Path) -> Path:
    """A folder to delegate in: a plugin `spy` that writes down its calls, and all of ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for plugin in plugin_dir.iterdir():
        (folder / plugin.name).symlink_to(plugin)
    program = folder / "spy"
    program.write_text(
        "#!/bin/sh\n"
        f'cat > "{tmp_path}/stdin.$CNI_COMMAND"\n'
        f'env | grep ^CNI_ | sort > "{tmp_path}/env.$CNI_COMMAND"\n'
        f'cat "{tmp_path}/answer" 2> /dev/null\n'
        f'[ ! -e "{tmp_path}/fail.$CNI_COMMAND" ]\n'
    )
    program.chmod(0o755)
    answer = {"cniVersion": "1.1.0", "ips": [{"address": "10.240.5.2/24"}]}
    (tmp_path / "answer").write_text(json.dumps(answer))
    return folder


def asked(tmp_path: Path, command: str = "ADD") -> Any:
    return json.loads((tmp_path / f"stdin.{command}").read_text())


def files(tmp_path: Path) -> list[str]:
    folder = tmp_path / "flannel"
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


# --- the whole chain -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_container_on_the_host_s_subnet(attach: Attach, version: str, tmp_path: Path) -> None:
    one = attach(version=version)
    before = snapshot(tmp_path / "leases" / "flan")
    result = one.add()
    ips = [ip["address"] for ip in result["ips"]] if "ips" in result else [result["ip4"]["ip"]]
    assert ips[0] == "10.240.5.2/24"
    (link,) = ip_json("link", "show", "dev", "eth0", netns=one.sandbox)
    assert link["mtu"] == 1450
    run_in(one.sandbox, ["ping", "-c1", "-W2", "10.240.5.1"])
    run_in(one.sandbox, ["ping", "-c1", "-W2", "fd00:240:0:5::1"])
    # The rest of the overlay is reached through the host, other networks are not.
    routes = {route["dst"]: route.get("gateway") for route in ip_json("route", netns=one.sandbox)}
    assert routes == {"10.240.0.0/16": "10.240.5.1", "10.240.5.0/24": None}
    if version >= "0.4.0":
        one.check()
        run_in(one.sandbox, ["ip", "route", "del", "10.240.0.0/16"])
        assert "route 10.240.0.0/16" in one.drift()
    for _ in range(2):
        one.delete()
        assert ip_json("link", netns=one.sandbox)[1:] == []
        assert files(tmp_path) == []
    after = snapshot(tmp_path / "leases" / "flan")
    leases = [path for path in after["files"] if Path(path).name[0] in "1f"]
    assert leases == []
    assert after["nft"] == before["nft"]


def test_as_a_process(attach: Attach, tmp_path: Path) -> None:
    one = attach()
    one.call = run_plugin
    one.add()
    run_in(one.sandbox, ["ping", "-c1", "-W2", "10.240.5.1"])
    one.check()
    one.delete()
    assert files(tmp_path) == []


# --- what the delegate gets ----------------------------------------------------------------------


def test_delegate_gets_the_reference_s_configuration(
    attach: Attach, spy: Path, tmp_path: Path
) -> None:
    one = attach(
        delegate={"type": "spy", "hairpinMode": True},
        runtimeConfig={"mac": "0a:58:0a:01:02:03"},
        ipam={"dataDir": "/x", "routes": [{"dst": "192.0.2.0/24", "gw": "10.240.5.9"}]},
        dns={"nameservers": ["192.0.2.53"]},
        args={"cni": {"labels": []}},
    )
    one.path = str(spy)
    assert one.add() == {"cniVersion": "1.1.0", "ips": [{"address": "10.240.5.2/24"}]}
    expected = {
        "cniVersion": "1.1.0",
        "name": "flan",
        "type": "spy",
        "hairpinMode": True,
        "ipMasq": False,
        "mtu": 1450,
        "runtimeConfig": {"mac": "0a:58:0a:01:02:03"},
        "ipam": {
            "type": "host-local",
            "dataDir": "/x",
            "ranges": [[{"subnet": "10.240.5.0/24"}], [{"subnet": "fd00:240:0:5::/64"}]],
            "routes": [
                {"dst": "192.0.2.0/24", "gw": "10.240.5.9"},
                {"dst": "10.240.0.0/16"},
                {"dst": "fd00:240::/56"},
            ],
        },
    }
    assert asked(tmp_path) == expected
    saved = json.loads((tmp_path / "flannel" / "container-1").read_text())
    assert saved == {**expected, "pycni": {"ifname": "eth0"}}
    assert (tmp_path / "flannel" / "container-1").stat().st_mode & 0o777 == 0o600
    variables = (tmp_path / "env.ADD").read_text().split()
    assert "CNI_CONTAINERID=container-1" in variables
    one.check()
    assert asked(tmp_path, "CHECK") == {**expected, "prevResult": one.result}
    one.delete()
    assert asked(tmp_path, "DEL") == expected


@pytest.mark.parametrize(
    ("text", "subnets", "networks"),
    [
        (V4, ["10.240.5.0/24"], ["10.240.0.0/16"]),
        (V6, ["fd00:240:0:5::/64"], ["fd00:240::/56"]),
        (
            V4.replace("0/16", "0/16,10.241.0.0/16,10.240.0.0/16") + "garbage\n=\nX=Y\n",
            ["10.240.5.0/24"],
            ["10.240.0.0/16", "10.241.0.0/16"],
        ),
    ],
)
def test_subnets_and_networks(
    attach: Attach,
    spy: Path,
    env: Path,
    tmp_path: Path,
    text: str,
    subnets: list[str],
    networks: list[str],
) -> None:
    env.write_text(text + "FLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n")
    one = attach(delegate={"type": "spy"})
    one.path = str(spy)
    one.add()
    document = asked(tmp_path)
    assert document["ipMasq"] is True
    assert document["ipam"]["ranges"] == [[{"subnet": subnet}] for subnet in subnets]
    assert document["ipam"]["routes"] == [{"dst": network} for network in networks]


def test_route_of_a_network_that_was_given(attach: Attach, spy: Path, tmp_path: Path) -> None:
    """It keeps its settings, and is the only one."""
    given = {"dst": "10.240.0.0/16", "mtu": 1300}
    one = attach(delegate={"type": "spy"}, ipam={"routes": [given]})
    one.path = str(spy)
    one.add()
    assert asked(tmp_path)["ipam"]["routes"] == [given, {"dst": "fd00:240::/56"}]


def test_bridge_s_defaults_can_be_overridden(attach: Attach, tmp_path: Path) -> None:
    one = attach(delegate={"isGateway": False, "mtu": 1300, "bridge": "flan0", "ipMasq": True})
    one.add()
    saved = json.loads((tmp_path / "flannel" / "container-1").read_text())
    keys = ("type", "isGateway", "mtu", "bridge", "ipMasq")
    assert [saved[key] for key in keys] == ["bridge", False, 1300, "flan0", True]


# --- files ---------------------------------------------------------------------------------------


def test_two_interfaces_of_one_container(attach: Attach, tmp_path: Path) -> None:
    """The reference lets the second overwrite the first one's file."""
    one = attach(container="box")
    two = attach(container="box", netns=one.sandbox, ifname="net1")
    other = attach(container="box", netns=one.sandbox, ifname="net2", name="other")
    for each in (one, two, other):
        each.add()
    assert files(tmp_path) == ["box", "box@net1", "box@net2"]
    two.delete()
    two.delete()
    assert files(tmp_path) == ["box", "box@net2"]
    one.check()
    other.check()
    one.delete()
    other.delete()
    assert files(tmp_path) == []
    assert ip_json("link", netns=one.sandbox)[1:] == []


def test_file_of_the_reference(attach: Attach, tmp_path: Path) -> None:
    one = attach()
    one.add()
    file = tmp_path / "flannel" / "container-1"
    saved = json.loads(file.read_text())
    del saved["pycni"]
    file.write_text(json.dumps(saved))
    one.check()
    one.delete()
    assert files(tmp_path) == []
    assert ip_json("link", netns=one.sandbox)[1:] == []


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_file(attach: Attach, tmp_path: Path, env: Path, content: str) -> None:
    one = attach()
    one.add()
    (tmp_path / "flannel" / "container-1").write_text(content)
    env.unlink()
    one.delete()
    assert files(tmp_path) == []
    assert ip_json("link", netns=one.sandbox)[1:] == []


def test_file_stays_until_the_delegate_has_deleted(
    attach: Attach, spy: Path, tmp_path: Path
) -> None:
    """The reference removes it at once, and nothing is left to try again with."""
    one = attach(delegate={"type": "spy"})
    one.path = str(spy)
    one.add()
    (tmp_path / "fail.DEL").touch()
    (tmp_path / "answer").write_text('{"code": 77, "msg": "not now"}')
    assert one.refused("DEL") == {"cniVersion": "1.1.0", "code": 77, "msg": "not now"}
    assert files(tmp_path) == ["container-1"]
    (tmp_path / "fail.DEL").unlink()
    (tmp_path / "answer").write_text("")
    one.delete()
    assert files(tmp_path) == []


def test_failed_add_is_deleted(attach: Attach, spy: Path, tmp_path: Path) -> None:
    one = attach(delegate={"type": "spy"})
    one.path = str(spy)
    (tmp_path / "fail.ADD").touch()
    (tmp_path / "answer").write_text('{"code": 77, "msg": "no"}')
    assert one.refused() == {"cniVersion": "1.1.0", "code": 77, "msg": "no"}
    assert asked(tmp_path, "DEL") == asked(tmp_path)
    assert files(tmp_path) == []
    (tmp_path / "fail.DEL").touch()
    assert one.refused() == {"cniVersion": "1.1.0", "code": 77, "msg": "no"}
    assert files(tmp_path) == ["container-1"]


def test_delegate_that_is_not_there(attach: Attach, tmp_path: Path) -> None:
    one = attach(delegate={"type": "no-such"})
    assert 'failed to find plugin "no-such"' in one.refused()["msg"]
    assert files(tmp_path) == []
    one.delete()


def test_delete_without_flanneld_and_namespace(attach: Attach, tmp_path: Path, env: Path) -> None:
    one = attach()
    one.add()
    env.unlink()
    assert one.sandbox is not None
    one.sandbox.delete()
    one.result = None
    one.delete()
    assert files(tmp_path) == []
    assert veths() == []


# --- CHECK, GC, STATUS, refusals -----------------------------------------------------------------


def test_check_without_a_file(attach: Attach) -> None:
    one = attach()
    one.result = {"cniVersion": "1.1.0", "ips": [{"address": "10.240.5.2/24"}]}
    assert one.drift() == "no delegate's configuration is kept for container-1"


def test_gc(attach: Attach, tmp_path: Path, env: Path) -> None:
    kept, stale, other = attach(), attach(), attach(name="other")
    for each in (kept, stale, other):
        each.add()
    assert stale.sandbox is not None
    stale.sandbox.delete()
    valid = [{"containerID": kept.container, "ifname": "eth0"}]
    run = kept.run("GC", **{"cni.dev/valid-attachments": valid})
    assert (run.code, run.stdout) == (0, "")
    assert files(tmp_path) == ["container-1", "container-3"]
    kept.check()
    other.check()
    leases = {path.name for path in (tmp_path / "leases" / "flan").iterdir()}
    assert "10.240.5.2" in leases
    assert "10.240.5.3" not in leases


def test_gc_reaches_what_has_no_file(attach: Attach, tmp_path: Path, env: Path) -> None:
    one = attach()
    one.add()
    (tmp_path / "flannel" / "container-1").unlink()
    env.unlink()
    run = one.run("GC", **{"cni.dev/valid-attachments": []})
    assert (run.code, run.stdout) == (0, "")
    assert ip_json("link", netns=one.sandbox)[1:] == []


def test_status(attach: Attach, env: Path, spy: Path, tmp_path: Path) -> None:
    one = attach()
    assert one.run("STATUS").code == 0
    one = attach(delegate={"type": "spy"})
    one.path = str(spy)
    (tmp_path / "fail.STATUS").touch()
    (tmp_path / "answer").write_text('{"code": 51, "msg": "limited"}')
    assert one.refused("STATUS")["code"] == 51
    env.unlink()
    assert one.refused("STATUS")["code"] == 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "live=long&prosper",
            (
                "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, "
                "FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
            ),
        ),
        (V4 + "FLANNEL_MTU\n", "is missing FLANNEL_MTU, FLANNEL_IPMASQ"),
        (V4 + "FLANNEL_MTU=big\nFLANNEL_IPMASQ=true\n", 'FLANNEL_MTU is "big", no number of bytes'),
        (V4.replace("/16", "") + REST, "FLANNEL_NETWORK: invalid CIDR address: 10.240.0.0"),
        (None, "No such file or directory"),
    ],
)
def test_unusable_subnet_env(attach: Attach, env: Path, text: str | None, message: str) -> None:
    if text is None:
        env.unlink()
    else:
        env.write_text(text)
    error = attach().refused()
    assert error["code"] == 11
    assert error["msg"].startswith("failed to load flannel 'subnet.env' file: ")
    assert error["msg"].endswith(message)


@pytest.mark.parametrize(
    ("delegate", "message"),
    [
        ({"name": "x"}, "'delegate' dictionary must not have 'name' field"),
        ({"ipam": {}}, "'delegate' dictionary must not have 'ipam' field"),
        ({"type": 5}, "must have (string) 'type' field"),
        ("bridge", 'delegate: "bridge" is not valid'),
    ],
)
def test_refused_delegates(attach: Attach, delegate: Any, message: str) -> None:
    error = attach(delegate=delegate).refused()
    assert error["code"] == 7
    assert message in error["msg"]


@pytest.mark.parametrize("ipam", ["text", ["list"], 7, {"routes": 7}, {"routes": {"a": 1}}])
def test_ipam_of_another_type(attach: Attach, ipam: Any) -> None:
    """ADD refuses it by name; DEL and GC, which go on without, remove all the same."""
    one = attach()
    one.add()
    one.config["ipam"] = ipam
    other = attach()
    other.config["ipam"] = ipam
    error = other.refused()
    assert error["code"] == 7
    assert "ipam" in error["msg"]
    assert one.run("GC", **{"cni.dev/valid-attachments": []}).code == 0
    assert one.run("DEL").code == 0


def test_defaults_of_the_paths(attach: Attach, env: Path) -> None:
    one = attach()
    del one.config["dataDir"], one.config["subnetFile"]
    assert "/run/flannel/subnet.env" in one.refused()["msg"]
    Path("/run/flannel").mkdir()
    Path("/run/flannel/subnet.env").write_text(env.read_text())
    one.add()
    assert Path("/var/lib/cni/flannel/container-1").exists()
    one.delete()
    Path("/run/flannel/subnet.env").unlink()
    Path("/run/flannel").rmdir()


def test_in_process_and_as_a_process_are_one(attach: Attach, tmp_path: Path) -> None:
    one = attach()
    one.call = run_plugin
    one.add()
    one.call = call_plugin
    one.check()
    one.delete()
    assert files(tmp_path) == []


@pytest.mark.parametrize("call", [run_plugin, call_plugin])
def test_delete_where_the_kept_configuration_is_lost(
    attach: Attach, tmp_path: Path, call: Any
) -> None:
    """What the delegate noted is enough; so after an ADD that could not take all of it back."""
    one = attach()
    one.call = call
    one.add()
    for file in files(tmp_path):
        (tmp_path / "flannel" / file).unlink()
    one.delete()
    assert ip_json("link", netns=one.sandbox)[1:] == []
    assert veths() == []
    assert list((tmp_path / "leases/flan").glob("10.*")) == []
    assert notes() == []


def test_a_delete_waits_for_the_add_of_its_attachment(
    attach: Attach, spy: Path, tmp_path: Path
) -> None:
    program = spy / "spy"
    answer = json.dumps({"cniVersion": "1.1.0", "ips": [{"address": "10.240.5.2/24"}]})
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$CNI_COMMAND begins" >> {tmp_path}/order\n'
        f"[ $CNI_COMMAND = ADD ] && until [ -e {tmp_path}/go ]; do sleep 0.01; done\n"
        f'echo "$CNI_COMMAND ends" >> {tmp_path}/order\n'
        f"echo '{answer}'\n"
    )
    one = attach(delegate={"type": "spy"})
    one.path, one.call = str(spy), run_plugin
    order = tmp_path / "order"
    with ThreadPoolExecutor(2) as pool:
        added = pool.submit(one.run, "ADD")
        while not order.exists():
            time.sleep(0.01)
        deleted = pool.submit(one.run, "DEL")
        time.sleep(0.3)
        assert order.read_text() == "ADD begins\n"
        (tmp_path / "go").touch()
        assert [added.result().code, deleted.result().code] == [0, 0]
    assert order.read_text().splitlines() == ["ADD begins", "ADD ends", "DEL begins", "DEL ends"]
    assert (files(tmp_path), notes()) == ([], [])
