"""bandwidth on the kernel: the rates that TCP comes to, and what stands on the host for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in
from harness.chained import VERSIONS, make_veth, previous_result
from harness.faults import each_request_failing
from harness.transfer import transfer
from harness.ways import WAYS, way_of
from pycni.runtime import Network, PluginError

RATE = 20_000_000
BURST = 800_000
BOTH = {
    "ingressRate": RATE,
    "ingressBurst": BURST,
    "egressRate": 2 * RATE,
    "egressBurst": BURST,
}


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path) -> Attach:
    """Makes an attachment of a veth in a sandbox of its own, not yet added."""
    count = 0

    def make(
        *,
        version: str = "1.1.0",
        netns: Namespace | None = None,
        ifname: str = "eth0",
        name: str = "net",
        **keys: Any,
    ) -> Attachment:
        nonlocal count
        inside, host_name, group = netns or sandbox(), f"veth{count}", f"10.1.{count}"
        make_veth(
            inside,
            f"{group}.2/24",
            f"fd00:{count}::2/64",
            ifname=ifname,
            host_name=host_name,
            host_addresses=(f"{group}.1/24", f"fd00:{count}::1/64"),
        )
        previous = previous_result(
            version, inside, (f"{group}.2/24", None), ifname=ifname, host_name=host_name
        )
        config = {"cniVersion": version, "name": name, "type": "bandwidth", "prevResult": previous}
        one = Attachment(plugin_dir / "bandwidth", {**config, **keys}, inside, ifname=ifname)
        one.container = f"container-{count}" if netns is None else "container-0"
        count += 1
        return one

    return make


def qdiscs(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run_in(None, ["tc", "-j", "qdisc"]).stdout)
    return [qdisc for qdisc in found if qdisc["dev"] == name]


def ifbs() -> list[str]:
    return [link["ifname"] for link in ip_json("link", "show", "type", "ifb")]


def towards(one: Attachment, seconds: float = 2.5, size: int = 1 << 30) -> Any:
    return transfer(None, one.sandbox, "10.1.0.2", size, seconds)


def away(one: Attachment, seconds: float = 2.5, target: str = "10.1.0.1") -> Any:
    return transfer(one.sandbox, None, target, 1 << 30, seconds)


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rates_are_held_in_both_directions(attach: Attach) -> None:
    one = attach(**BOTH)
    one.add()
    assert towards(one).rate(after=BURST // 8) == pytest.approx(RATE, rel=0.1)
    assert away(one).rate(after=BURST // 8) == pytest.approx(2 * RATE, rel=0.1)


@pytest.mark.slow
def test_rates_hold_for_ipv6(attach: Attach) -> None:
    one = attach(**BOTH)
    one.add()
    into = transfer(None, one.sandbox, "fd00:0::2", 1 << 30, 2)
    out = transfer(one.sandbox, None, "fd00:0::1", 1 << 30, 2)
    assert into.rate(after=BURST // 8) == pytest.approx(RATE, rel=0.1)
    assert out.rate(after=BURST // 8) == pytest.approx(2 * RATE, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_one_direction_alone(attach: Attach, direction: str) -> None:
    one = attach(**{f"{direction}Rate": RATE, f"{direction}Burst": BURST})
    one.add()
    limited, free = (towards, away) if direction == "ingress" else (away, towards)
    assert limited(one).rate(after=BURST // 8) == pytest.approx(RATE, rel=0.1)
    assert free(one, 1).rate() > 5 * RATE


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_burst_that_no_frame_fits_in(
    kind: str, direction: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """The queue would drop every full frame."""
    with way_of(kind, tmp_path, plugin_dir) as way:
        bridge = {"type": "bridge", "isGateway": True, "ipam": way.host_local("10.1.0.0/24")}

        def limited(burst: int, **keys: Any) -> Network:
            limits = {f"{direction}Rate": RATE, f"{direction}Burst": burst, **keys}
            return way.network("n", bridge, {"type": "bandwidth", **limits})

        with pytest.raises(PluginError, match="too little for a frame of veth") as caught:
            limited(8 * (1500 + 14)).add("c", sandbox().path)
        assert caught.value.code == 7
        least = int(caught.value.details.partition("give ")[2].split()[0])
        box = sandbox()
        limited(least).add("c", box.path)
        for netns, target in ((None, "10.1.0.3"), (box, "10.1.0.1")):
            run_in(netns, ["ping", "-c1", "-W5", "-s", "1472", "-M", "do", target])
        limited(80, shapedSubnets=["10.9.0.0/16"]).add("d", sandbox().path)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_burst_goes_through_at_once(attach: Attach, direction: str) -> None:
    burst = 4_000_000  # bytes
    one = attach(**{f"{direction}Rate": RATE, f"{direction}Burst": 8 * burst})
    one.add()
    found = (towards if direction == "ingress" else away)(one, 4)
    within = [arrival for arrival in found.arrivals if arrival[1] <= 0.8 * burst]
    assert within[-1][1] * 8 / within[-1][0] > 5 * RATE
    assert found.rate(after=int(1.1 * burst)) == pytest.approx(RATE, rel=0.1)


@pytest.mark.slow
def test_only_some_networks_are_limited(attach: Attach) -> None:
    run_in(None, ["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
    one = attach(**BOTH, shapedSubnets=["192.0.2.0/24", "2001:db8::/32"])
    run_in(one.sandbox, ["ip", "route", "add", "default", "via", "10.1.0.1"])
    one.add()
    assert away(one, target="192.0.2.1").rate(BURST // 8) == pytest.approx(2 * RATE, rel=0.1)
    assert away(one, 1).rate() > 5 * RATE
    assert towards(one, 1).rate() > 5 * RATE
    one.check()


@pytest.mark.slow
def test_all_networks_but_some_are_limited(attach: Attach) -> None:
    run_in(None, ["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
    one = attach(**BOTH, unshapedSubnets=["192.0.2.0/24", "fd00::/64"])
    run_in(one.sandbox, ["ip", "route", "add", "default", "via", "10.1.0.1"])
    one.add()
    assert away(one, 1, target="192.0.2.1").rate() > 5 * RATE
    assert transfer(None, one.sandbox, "fd00:0::2", 1 << 30, 1).rate() > 5 * RATE
    assert away(one).rate(BURST // 8) == pytest.approx(2 * RATE, rel=0.1)
    assert towards(one).rate(BURST // 8) == pytest.approx(RATE, rel=0.1)
    one.check()
    run_in(None, ["tc", "filter", "del", "dev", "veth0", "parent", "1:", "pref", "15"])
    assert one.drift() == "veth0 has filters for 1 networks, expected 2"


# --- what stands on the host ---------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_add_check_delete(attach: Attach, version: str) -> None:
    one = attach(version=version, **BOTH)
    run_in(None, ["ip", "link", "set", "veth0", "mtu", "1400"])
    result = one.add()
    previous = one.config["prevResult"]
    ifb = result["interfaces"][2]
    assert result == {**previous, "interfaces": [*previous["interfaces"], ifb]}
    (link,) = ip_json("-d", "link", "show", "dev", ifb["name"])
    assert ifb == {"name": link["ifname"], "mac": link["address"]}
    assert (link["mtu"], link["linkinfo"]["info_kind"]) == (1400, "ifb")
    root, ingress = qdiscs("veth0")
    assert (root["kind"], root["handle"], root["root"]) == ("tbf", "1:", True)
    assert root["options"]["rate"] == RATE // 8
    assert (ingress["kind"], ingress["handle"]) == ("ingress", "ffff:")
    if version >= "0.4.0":
        one.check()
    one.delete()
    assert ifbs() == []
    assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == ["noqueue"]
    one.delete()


def test_name_of_the_ifb_is_the_reference_s(attach: Attach) -> None:
    one = attach(name="cni-plugin-bandwidth-test", **BOTH)
    one.container = "dummy"
    assert one.add()["interfaces"][2]["name"] == "bwpa8eda89404b7"


def test_no_limit_passes_the_result_on(attach: Attach) -> None:
    one = attach(ingressRate=0, ingressBurst=0)
    assert one.add() == one.config["prevResult"]
    assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == ["noqueue"]
    one.check()
    one.delete()


def test_limits_by_the_runtime(attach: Attach) -> None:
    one = attach(runtimeConfig={"bandwidth": BOTH})
    one.add()
    assert qdiscs("veth0")[0]["options"]["rate"] == RATE // 8
    one.check()
    one.delete()
    # As soon as the configuration has a limit of its own, even none.
    other = attach(ingressRate=0, runtimeConfig={"bandwidth": BOTH})
    assert len(other.add()["interfaces"]) == 2


def test_burst_that_ticks_cannot_express(attach: Attach) -> None:
    """CRI-O's default burst; the reference wraps around and gives some small one."""
    one = attach(ingressRate=1_000_000, ingressBurst=2**31 - 1)
    one.add()
    one.check()
    # 250 MB for a link of 1 Mbit/s: all of this goes through at once.
    assert towards(one, 3, 20_000_000).rate() > 50_000_000


def test_two_interfaces_of_one_network(attach: Attach) -> None:
    """The reference names both ifbs alike, and fails."""
    one = attach(**BOTH)
    two = attach(netns=one.sandbox, ifname="net1", **BOTH)
    names = [each.add()["interfaces"][2]["name"] for each in (one, two)]
    assert sorted(names) == sorted(ifbs())
    assert len(set(names)) == 2
    one.delete()
    assert ifbs() == [names[1]]
    two.check()
    one.delete()
    two.check()
    two.delete()
    assert ifbs() == []


@pytest.mark.parametrize("kind", ["ingress", "clsact"])
def test_ingress_qdisc_of_another_program(attach: Attach, kind: str) -> None:
    one = attach(**BOTH)
    run_in(None, ["tc", "qdisc", "add", "dev", "veth0", kind])
    one.add()
    assert away(one).rate(after=BURST // 8) == pytest.approx(2 * RATE, rel=0.1)
    one.check()
    one.delete()
    # An ingress qdisc without filters is of no use; others may keep a clsact for theirs.
    left = ["noqueue"] if kind == "ingress" else ["noqueue", "clsact"]
    assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == left
    assert run_in(None, ["tc", "filter", "show", "dev", "veth0", "ingress"]).stdout == ""


@pytest.mark.parametrize("subnets", [[], ["192.0.2.0/24"]])
def test_delete_leaves_the_interface_without_limits(attach: Attach, subnets: list[str]) -> None:
    one = attach(**BOTH, unshapedSubnets=subnets)
    one.add()
    one.result = None
    del one.config["prevResult"]
    one.delete()
    assert ifbs() == []
    assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == ["noqueue"]
    one.delete()


def test_delete_leaves_what_it_did_not_set(attach: Attach) -> None:
    one = attach(egressRate=RATE, egressBurst=BURST)
    one.add()
    limit = ["rate", "1mbit", "burst", "10000", "latency", "25ms"]
    run_in(None, ["tc", "qdisc", "add", "dev", "veth0", "root", "handle", "1:", "tbf", *limit])
    match = ["prio", "7", "u32", "match", "u32", "0", "0", "flowid", "1:1"]
    run_in(None, ["tc", "filter", "add", "dev", "veth0", "ingress", *match])
    one.delete()
    assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == ["tbf", "ingress"]
    assert "pref 7" in run_in(None, ["tc", "filter", "show", "dev", "veth0", "ingress"]).stdout


def test_filters_of_another_program(attach: Attach) -> None:
    one = attach(**BOTH)
    run_in(None, ["tc", "qdisc", "add", "dev", "veth0", "clsact"])
    match = ["u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", "lo"]
    run_in(None, ["tc", "filter", "add", "dev", "veth0", "ingress", *match])
    error = one.refused()
    assert error["code"] == 101
    assert "something else filters what veth0 receives (u32)" in error["msg"]
    assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == ["noqueue", "clsact"]
    assert ifbs() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tc qdisc del dev veth0 root", "Failed to find qdisc: nothing limits what veth0 sends"),
        (
            "tc qdisc change dev veth0 root handle 1: tbf rate 1mbit burst 100000 latency 25ms",
            "Rate doesn't match: that of veth0 is 125000, expected 2500000",
        ),
        ("tc qdisc del dev IFB root", "Failed to find qdisc: nothing limits what IFB sends"),
        ("tc filter del dev veth0 parent ffff:", "what veth0 receives is not redirected to IFB"),
        ("tc qdisc del dev veth0 ingress", "what veth0 receives is not redirected to IFB"),
        ("ip link del IFB", "interface IFB is missing: no egress limit"),
    ],
)
def test_check_names_what_changed(attach: Attach, change: str, message: str) -> None:
    one = attach(**BOTH)
    ifb = one.add()["interfaces"][2]["name"]
    run_in(None, change.replace("IFB", ifb).split())
    assert message.replace("IFB", ifb) in one.drift()


# --- removal and failure -------------------------------------------------------------------------


def test_delete_without_interface_namespace_or_result(attach: Attach) -> None:
    one, two, three = attach(**BOTH), attach(**BOTH), attach(**BOTH)
    for each in (one, two, three):
        each.add()
    assert len(ifbs()) == 3
    run_in(None, ["ip", "link", "del", "veth0"])
    one.delete()
    assert two.sandbox is not None
    two.sandbox.delete()
    two.delete()
    three.sandbox = three.result = None
    three.config = {key: three.config[key] for key in ("cniVersion", "name", "type")}
    three.delete()
    assert ifbs() == []


def test_add_after_one_that_was_cut_short(attach: Attach) -> None:
    one = attach(**BOTH)
    ifb = one.add()["interfaces"][2]["name"]
    run_in(None, ["ip", "link", "del", "veth0"])
    previous = one.config["prevResult"]
    again = attach(netns=one.sandbox, **BOTH)
    assert again.container == one.container
    assert again.add()["interfaces"][2]["name"] == ifb
    assert previous != again.config["prevResult"]
    again.check()


def test_add_of_the_second_interface_after_one_that_was_cut_short(attach: Attach) -> None:
    """Its ifb has a name of its own, since the first one's has that of both."""
    one = attach(**BOTH)
    two = attach(netns=one.sandbox, ifname="net1", **BOTH)
    one.add()
    previous = two.config["prevResult"]
    name = two.add()["interfaces"][2]["name"]
    two.delete()
    run_in(None, ["ip", "link", "add", name, "type", "ifb"])
    two.result, two.config["prevResult"] = None, previous
    assert two.add()["interfaces"][2]["name"] == name
    two.check()
    one.check()


def test_gc_removes_what_is_not_kept(attach: Attach) -> None:
    kept, stale, other = attach(**BOTH), attach(**BOTH), attach(name="other", **BOTH)
    names = [each.add()["interfaces"][2]["name"] for each in (kept, stale, other)]
    run_in(None, ["ip", "link", "add", "bwp0", "type", "ifb"])
    valid = [{"containerID": kept.container, "ifname": "eth0"}]
    run = kept.run("GC", **{"cni.dev/valid-attachments": valid})
    assert (run.code, run.stdout) == (0, "")
    assert sorted(ifbs()) == sorted([names[0], names[2], "bwp0"])


def test_undo_leaves_the_ingress_qdisc_of_another_program(attach: Attach) -> None:
    one = attach(**BOTH)
    run_in(None, ["tc", "qdisc", "add", "dev", "veth0", "clsact"])
    for _ in each_request_failing(lambda: one.run("ADD")):
        assert [qdisc["kind"] for qdisc in qdiscs("veth0")] == ["noqueue", "clsact"]
        assert run_in(None, ["tc", "filter", "show", "dev", "veth0", "ingress"]).stdout == ""


@pytest.mark.parametrize("subnets", [[], ["192.0.2.0/24"]])
def test_failing_half_way_leaves_everything_as_it_was(attach: Attach, subnets: list[str]) -> None:
    one = attach(**BOTH, unshapedSubnets=subnets)

    def state() -> list[Any]:
        kinds = ("qdisc", "filter", "class")
        tc = [run_in(None, ["tc", kind, "show", "dev", "veth0"]).stdout for kind in kinds]
        return [ifbs(), *tc]

    before = state()
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert state() == before, f"refused was: {what}"
    assert any(what.startswith("add filter") for what in refused)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ingressRate": 100}, "if rate is set, burst must also be set"),
        ({"egressBurst": 100}, "if burst is set, rate must also be set"),
        (
            {"egressRate": 100, "egressBurst": 8 * (2**32 - 1)},
            "burst cannot be more than 4GB",
        ),
        ({"ingressRate": 7, "ingressBurst": 80}, "rate and burst must be 8 bits at least"),
        (
            {**BOTH, "shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["10.0.0.0/8"]},
            (
                "unshapedSubnets and shapedSubnets cannot be both specified, "
                "one of them should be discarded"
            ),
        ),
        ({"ingressRate": -1, "ingressBurst": 1}, "ingressRate: -1 is not valid"),
        ({**BOTH, "shapedSubnets": ["hello"]}, "shapedSubnets[0]: invalid CIDR address: hello"),
    ],
)
def test_refused_limits(attach: Attach, keys: dict[str, Any], message: str) -> None:
    for given in (keys, {"runtimeConfig": {"bandwidth": keys}}):
        error = attach(**given).refused()
        assert error["code"] == 7
        assert error["msg"].removeprefix("runtimeConfig.bandwidth.") == message


def test_largest_burst(attach: Attach) -> None:
    one = attach(ingressRate=8, ingressBurst=8 * (2**32 - 1) - 1)
    one.add()
    one.check()


def test_refused_interfaces(attach: Attach) -> None:
    one = attach(**BOTH)
    previous = one.config.pop("prevResult")
    assert one.refused()["msg"] == "must be called as chained plugin"
    host, inner = previous["interfaces"]
    one.config["prevResult"] = {**previous, "interfaces": [{**host, "name": "veth9"}, inner]}
    assert one.refused()["msg"] == "no veth peer of container interface found in host ns"
    one.ifname = "lo"
    assert "container interface lo has no veth peer" in one.refused()["msg"]
    assert one.sandbox is not None
    pair = ["ip", "link", "add", "a0", "type", "veth", "peer", "a1"]
    run_in(one.sandbox, pair)
    one.ifname = "a0"
    assert "is not in host ns" in one.refused()["msg"]
    one.ifname = "no-such"
    assert one.refused()["code"] == 100


def test_old_versions_are_refused(attach: Attach) -> None:
    one = attach(**BOTH)
    one.config["cniVersion"] = "0.2.0"
    error = one.refused()
    assert (error["code"], error["msg"]) == (1, "incompatible CNI versions")


def test_gc_removes_an_ifb_that_was_not_marked_yet(attach: Attach) -> None:
    """ADD was killed in between; one that the reference has set up is not taken for it."""
    kept = attach(**BOTH)
    kept.add()
    run_in(None, ["ip", "link", "add", "bwpdead00000000", "type", "ifb"])
    run_in(None, ["ip", "link", "add", "bwpbeef00000000", "up", "type", "ifb"])
    valid = [{"containerID": kept.container, "ifname": kept.ifname}]
    assert kept.run("GC", **{"cni.dev/valid-attachments": valid}).code == 0
    names = {link["ifname"] for link in ip_json("link")}
    assert "bwpdead00000000" not in names
    assert "bwpbeef00000000" in names
    kept.check()
