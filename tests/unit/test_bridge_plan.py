"""What bridge plans, as data: from configuration, request and addresses to steps."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from typing import Any

import pytest

from pycni.plan.plan import Plan
from pycni.plan.steps import (
    HOST,
    SANDBOX,
    Address,
    Bridge,
    BridgePort,
    Forwarding,
    GatewayAddress,
    LinkUp,
    Masquerade,
    PortRunning,
    Route,
    SpoofGuard,
    Step,
    Sysctl,
    VethPair,
    VLANGateway,
    VLANs,
)
from pycni.plugins.bridge import BridgeConfig, plugin
from pycni.sdk.interface import override_dns
from pycni.sdk.mac import mac_of_owner
from pycni.sdk.request import Request
from pycni.spec.config import DNS
from pycni.spec.errors import CNIError
from pycni.spec.ip import default_network, parse_address, parse_network
from pycni.spec.result import Interface, IPConfig, Result
from pycni.spec.result import Route as ResultRoute

BASE = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}
IPAM = {"type": "host-local"}


def request(config: dict[str, Any], command: str = "ADD", args: str = "") -> Request:
    return Request(
        command, {**BASE, **config}, container_id="one", netns="/n", ifname="eth0", args=args
    )


def network(*addresses: str, gateways: tuple[str, ...] = ()) -> Result:
    found = [IPConfig(address=parse_network(address)) for address in addresses]
    for index, gateway in enumerate(gateways):
        found[index] = found[index].replace(gateway=parse_address(gateway))
    return Result(ips=tuple(found))


def plan(
    config: dict[str, Any], addresses: Result | None = None, args: str = "", command: str = "ADD"
) -> Plan:
    asked = request(config, command, args)
    decoded = BridgeConfig.decode(asked.document)
    return plugin.plan(asked, decoded, plugin.fill_in_gateways(decoded, addresses or Result()))


def steps(found: Plan, kind: type[Step]) -> list[Any]:
    return [step for step in found.steps if isinstance(step, kind)]


def only(found: Plan, kind: type[Step]) -> Any:
    (step,) = steps(found, kind)
    return step


def fault(config: dict[str, Any]) -> CNIError:
    with pytest.raises(CNIError) as caught:
        BridgeConfig.decode({**BASE, **config})
    assert caught.value.code == 7
    return caught.value


# --- the plan's shape --------------------------------------------------------------------------


def test_least_there_is() -> None:
    found = plan({})
    outer, owner = only(found, VethPair).host_name, request({}).owner
    assert found.steps == (
        Bridge("br0"),
        VethPair(owner, "eth0", outer, mac=mac_of_owner(owner), port=BridgePort("br0")),
        LinkUp(SANDBOX, "eth0"),
        PortRunning(outer),
    )
    assert [(item.where, item.name) for item in found.interfaces] == [
        (HOST, "br0"),
        (HOST, outer),
        (SANDBOX, "eth0"),
    ]


def test_bridge_is_cni0_unless_named() -> None:
    document = {key: value for key, value in BASE.items() if key != "bridge"}
    assert BridgeConfig.decode(document).bridge == "cni0"


def test_addresses_then_up_then_routes() -> None:
    addresses = network("10.1.0.2/24", "fd00::2/64").replace(
        routes=(ResultRoute(dst=default_network(AF_INET), gw=parse_address("10.1.0.1")),)
    )
    found = plan({"ipam": IPAM}, addresses)
    kinds = [step.kind for step in found.steps if step.kind in ("address", "link_up", "route")]
    assert kinds == ["address", "address", "link_up", "route"]
    assert [str(step.address) for step in steps(found, Address)] == ["10.1.0.2/24", "fd00::2/64"]
    route = only(found, Route)
    assert (str(route.dst), str(route.gw), route.link) == ("0.0.0.0/0", "10.1.0.1", "eth0")


def test_planning_is_pure() -> None:
    config = {"ipam": IPAM, "isGateway": True, "ipMasq": True, "macspoofchk": True}
    addresses = network("10.1.0.2/24")
    assert plan(config, addresses) == plan(config, addresses)
    assert addresses == network("10.1.0.2/24")


def test_every_attachment_has_a_host_end_of_its_own() -> None:
    names = set()
    for container, ifname in (("a", "eth0"), ("a", "eth1"), ("b", "eth0")):
        asked = request({}).replace(container_id=container, ifname=ifname)
        found = plugin.plan(asked, BridgeConfig.decode(asked.document), Result())
        names.add(only(found, VethPair).host_name)
    assert len(names) == 3
    assert all(name.startswith("veth") and len(name) <= 15 for name in names)


def test_host_end_is_the_one_that_add_reported() -> None:
    known = Result(
        interfaces=(
            Interface(name="br0", mac="0a:00:00:00:00:01"),
            Interface(name="veth1fbfe91d"),
            Interface(name="eth0", sandbox="/n"),
        )
    )
    asked = request({}, "DEL")
    found = plugin.plan(asked, BridgeConfig.decode(asked.document), known)
    assert only(found, VethPair).host_name == "veth1fbfe91d"


# --- gateways and routes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "gateway"), [("10.1.2.7/24", "10.1.2.1/24"), ("2001:db8::9/64", "2001:db8::1/64")]
)
def test_gateway_is_the_networks_first_address_unless_given(address: str, gateway: str) -> None:
    found = plan({"ipam": IPAM, "isGateway": True}, network(address))
    assert only(found, GatewayAddress) == GatewayAddress("br0", (parse_network(gateway),))
    found = plan({"ipam": IPAM, "isGateway": True}, network("10.1.2.7/24", gateways=("10.1.2.9",)))
    assert only(found, GatewayAddress).addresses == (parse_network("10.1.2.9/24"),)


def test_without_is_gateway_the_bridge_gets_no_address() -> None:
    found = plan({"ipam": IPAM}, network("10.1.2.7/24", gateways=("10.1.2.1",)))
    assert steps(found, GatewayAddress) == []
    assert steps(found, Forwarding) == []


@pytest.mark.parametrize(
    ("addresses", "families"),
    [
        (("10.1.2.7/24",), [AF_INET]),
        (("fd00::2/64",), [AF_INET6]),
        (("10.1.2.7/24", "fd00::2/64"), [AF_INET, AF_INET6]),
        (("fd00::2/64", "10.1.2.7/24", "fd01::2/64"), [AF_INET, AF_INET6]),
    ],
)
def test_forwarding_comes_last_for_each_family(
    addresses: tuple[str, ...], families: list[int]
) -> None:
    found = plan({"ipam": IPAM, "isGateway": True, "ipMasq": True}, network(*addresses))
    assert [step.family for step in steps(found, Forwarding)] == families
    assert all(isinstance(step, Forwarding) for step in found.steps[-len(families) :])


def test_default_gateway_implies_gateway_and_adds_a_route_per_family() -> None:
    found = plan({"ipam": IPAM, "isDefaultGateway": True}, network("10.1.2.7/24", "fd00::2/64"))
    assert [(str(step.dst), str(step.gw)) for step in steps(found, Route)] == [
        ("0.0.0.0/0", "10.1.2.1"),
        ("::/0", "fd00::1"),
    ]
    assert len(only(found, GatewayAddress).addresses) == 2


def test_default_gateway_adds_one_route_though_there_are_several_addresses() -> None:
    found = plan({"ipam": IPAM, "isDefaultGateway": True}, network("fd00::2/64", "fd01::2/64"))
    assert [str(step.gw) for step in steps(found, Route)] == ["fd00::1"]


def test_default_gateway_adds_no_route_where_one_with_a_gateway_is() -> None:
    addresses = network("10.1.2.7/24").replace(
        routes=(ResultRoute(dst=default_network(AF_INET), gw=parse_address("10.1.2.254")),)
    )
    found = plan({"ipam": IPAM, "isDefaultGateway": True}, addresses)
    assert [str(step.gw) for step in steps(found, Route)] == ["10.1.2.254"]


@pytest.mark.parametrize(
    "given",
    [
        {"mtu": 1400},
        {"priority": 100},
        {"table": 254},
        {"gw": parse_address("10.1.2.254"), "mtu": 9},
    ],
)
def test_default_gateway_leaves_a_default_route_that_was_given(given: dict[str, Any]) -> None:
    own = ResultRoute(dst=default_network(AF_INET), **given)
    addresses = network("10.1.2.7/24").replace(routes=(own,))
    config = BridgeConfig.decode({**BASE, "ipam": IPAM, "isDefaultGateway": True})
    gateway = given.get("gw", parse_address("10.1.2.1"))
    assert plugin.fill_in_gateways(config, addresses).routes == (own.replace(gw=gateway),)


@pytest.mark.parametrize("given", [{"table": 100}, {"dst": parse_network("10.9.0.0/16")}])
def test_default_gateway_is_in_the_main_table(given: dict[str, Any]) -> None:
    own = ResultRoute(**{"dst": default_network(AF_INET), **given})
    addresses = network("10.1.2.7/24").replace(routes=(own,))
    config = BridgeConfig.decode({**BASE, "ipam": IPAM, "isDefaultGateway": True})
    assert plugin.fill_in_gateways(config, addresses).routes == (
        own,
        ResultRoute(dst=default_network(AF_INET), gw=parse_address("10.1.2.1")),
    )


def test_completing_twice_is_completing_once() -> None:
    config = BridgeConfig.decode({**BASE, "ipam": IPAM, "isDefaultGateway": True})
    once = plugin.fill_in_gateways(config, network("10.1.2.7/24", "fd00::2/64"))
    assert plugin.fill_in_gateways(config, once) == once


def test_route_without_a_gateway_goes_through_the_first_of_its_family() -> None:
    addresses = network("10.1.2.7/24", "fd00::2/64", gateways=("10.1.2.1", "fd00::1")).replace(
        routes=(
            ResultRoute(dst=parse_network("10.9.0.0/16"), table=5000),
            ResultRoute(dst=parse_network("fd09::/64"), mtu=1400, advmss=1300, priority=7),
        )
    )
    four, six = steps(plan({"ipam": IPAM}, addresses), Route)
    assert (str(four.gw), four.table) == ("10.1.2.1", 5000)
    assert (str(six.gw), six.mtu, six.advmss, six.priority) == ("fd00::1", 1400, 1300, 7)


# --- single keys -------------------------------------------------------------------------------


def test_keys_of_the_bridge() -> None:
    assert only(plan({"mtu": 1400, "promiscMode": True}), Bridge) == Bridge(
        "br0", 1400, promiscuous=True
    )
    assert only(plan({"forceAddress": True, "isGateway": True, "ipam": IPAM},
                     network("10.1.2.7/24")), GatewayAddress).force is True  # fmt: skip
    assert BridgeConfig.decode(BASE).force_address is False


def test_keys_of_the_port() -> None:
    found = plan({"hairpinMode": True, "portIsolation": True, "mtu": 1400})
    pair = only(found, VethPair)
    assert pair.port == BridgePort("br0", hairpin=True, isolated=True)
    assert pair.mtu == 1400


def test_dad_only_where_wanted() -> None:
    found = plan({"ipam": IPAM}, network("fd00::2/64"))
    assert only(found, Address).dad is False
    settings = {step.key: step.value for step in steps(found, Sysctl)}
    assert settings["net/ipv6/conf/eth0/accept_dad"] == "0"
    found = plan({"ipam": IPAM, "enabledad": True}, network("fd00::2/64"))
    assert only(found, Address).dad is True
    settings = {step.key: step.value for step in steps(found, Sysctl)}
    assert settings["net/ipv6/conf/eth0/accept_dad"] == "1"
    assert settings["net/ipv6/conf/eth0/enhanced_dad"] == "1"


def test_probes_and_announcements_come_when_the_bridge_carries_them() -> None:
    for enabledad in (False, True):
        config = {"ipam": IPAM, "enabledad": enabledad}
        kinds = [step.kind for step in plan(config, network("fd00::2/64")).steps]
        assert (
            kinds.index("port_running")
            < kinds.index("dad_finished")
            < kinds.index("gratuitous_arp")
        )
        config["runtimeConfig"] = {"mac": "c2:11:22:33:44:55"}
        kinds = [step.kind for step in plan(config, network("10.1.0.2/24")).steps]
        assert "dad_finished" not in kinds
        assert kinds.index("port_running") < kinds.index("gratuitous_arp")
    assert "gratuitous_arp" not in [step.kind for step in plan({}).steps]


def test_neighbours_are_notified() -> None:
    found = plan({"ipam": IPAM}, network("10.1.0.2/24", "fd00::2/64"))
    settings = {step.key: step.value for step in steps(found, Sysctl)}
    assert settings["net/ipv4/conf/eth0/arp_notify"] == "1"
    assert settings["net/ipv6/conf/eth0/ndisc_notify"] == "1"


def test_mac_address_goes_with_the_address_and_need_not_be_announced() -> None:
    found = plan({"ipam": IPAM}, network("10.1.0.2/24"))
    assert only(found, VethPair).mac == "0a:58:0a:01:00:02"
    assert "gratuitous_arp" not in [step.kind for step in found.steps]


@pytest.mark.parametrize("mac", ["0a:58:0a:01:00:02", "02:00:00:00:00:07", ""])
@pytest.mark.parametrize("command", ["CHECK", "DEL"])
def test_mac_address_after_add_is_the_one_that_the_result_lists(command: str, mac: str) -> None:
    listed = Interface(name="eth0", sandbox="/n", mac=mac)
    previous = network("10.1.0.2/24").replace(interfaces=(listed,))
    found = plan({"ipam": IPAM, "macspoofchk": True}, previous, command=command)
    assert (only(found, VethPair).mac, only(found, SpoofGuard).mac) == (mac, mac)


@pytest.mark.parametrize("addresses", [Result(), network("fd00::2/64")])
def test_mac_address_without_an_ipv4_address_is_the_attachment_s_own(addresses: Result) -> None:
    mac = mac_of_owner(request({}).owner)
    assert only(plan({"ipam": IPAM}, addresses), VethPair).mac == mac
    other = request({}).replace(container_id="two").owner
    assert mac_of_owner(other) != mac


def test_disabled_interface_stays_down_and_is_not_waited_for() -> None:
    found = plan({"disableContainerInterface": True})
    assert steps(found, LinkUp) == []
    assert steps(found, PortRunning) == []


def test_masquerade() -> None:
    config = {"ipam": IPAM, "ipMasq": True}
    addresses = network("10.1.0.2/24", "fd00::2/64")
    expected = Masquerade(
        request({}).owner, (parse_network("10.1.0.2/24"), parse_network("fd00::2/64"))
    )
    assert only(plan(config, addresses), Masquerade) == expected
    for backend in ("nftables", "iptables"):
        found = plan({**config, "ipMasqBackend": backend}, addresses)
        assert only(found, Masquerade).backend == backend
    # null is as good as absent, and without addresses there is nothing to masquerade.
    assert only(plan({**config, "ipMasqBackend": None}, addresses), Masquerade) == expected
    assert steps(plan({"ipMasq": True}), Masquerade) == []


def test_spoof_guard_is_there_before_the_interface_is_up() -> None:
    found = plan({"macspoofchk": True, "ipam": IPAM}, network("10.1.0.2/24"))
    kinds = [step.kind for step in found.steps]
    assert kinds.index("spoof_guard") < kinds.index("link_up")
    guard = only(found, SpoofGuard)
    assert guard.mac == "0a:58:0a:01:00:02"
    assert guard.host_link == only(found, VethPair).host_name


@pytest.mark.parametrize(
    ("config", "args", "mac"),
    [
        ({}, "", ""),
        ({}, "MAC=c2:11:22:33:44:55", "c2:11:22:33:44:55"),
        ({}, "MAC=C2-11-22-33-44-55", "c2:11:22:33:44:55"),
        ({}, "MAC=", ""),
        ({}, "IgnoreUnknown=1;K8S_POD_NAME=x;MAC=c2:11:22:33:44:55", "c2:11:22:33:44:55"),
        (
            {"args": {"cni": {"mac": "c2:11:22:33:44:66"}}},
            "MAC=c2:11:22:33:44:55",
            "c2:11:22:33:44:66",
        ),
        (
            {
                "args": {"cni": {"mac": "c2:11:22:33:44:66"}},
                "RuntimeConfig": {"mac": "c2:11:22:33:44:77"},
            },
            "MAC=c2:11:22:33:44:55",
            "c2:11:22:33:44:77",
        ),
        ({"args": {"other": 1}, "runtimeConfig": {}}, "", ""),
    ],
)
def test_mac_by_three_ways(config: dict[str, Any], args: str, mac: str) -> None:
    expected = mac or mac_of_owner(request({}).owner)
    assert only(plan(config, args=args), VethPair).mac == expected


@pytest.mark.parametrize(
    "args", ["MAC=nonsense", "MAC=c2:11:22:33:44", "nonsense", "A=1", "MAC=a=b"]
)
def test_bad_arguments_are_refused_by_name(args: str) -> None:
    with pytest.raises(CNIError) as caught:
        plan({}, args=args)
    assert args.removeprefix("MAC=") in str(caught.value)


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        (None, "ipam"),
        ({}, "ipam"),
        ({"domain": ""}, "ipam"),
        ({"nameservers": ["9.9.9.9"]}, "config"),
        ({"domain": "x"}, "config"),
        ({"search": ["x"]}, "config"),
        ({"options": ["x"]}, "config"),
        ({"nameservers": []}, "config"),
    ],
)
def test_dns_of_the_configuration_replaces_the_address_plugins(
    dns: dict[str, Any] | None, expected: str
) -> None:
    asked = request({} if dns is None else {"dns": dns})
    config = BridgeConfig.decode(asked.document)
    given = Result(dns=DNS(nameservers=("1.1.1.1",)))
    result = override_dns(asked, config, given)
    assert result.dns == (given.dns if expected == "ipam" else DNS.decode(dns))


# --- VLANs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "ranges"),
    [
        ([], ()),
        ([{}], ()),
        ([{"minID": 100, "maxID": 105}], ((100, 105),)),
        ([{"id": 77}], ((77, 77),)),
        ([{"id": 101}, {"minID": 200, "maxID": 210}], ((101, 101), (200, 210))),
        ([{"id": 99, "minID": 100, "maxID": 105}], ((99, 105),)),
        ([{"minID": 5, "maxID": 9}, {"minID": 1, "maxID": 6}, {"id": 8}], ((1, 9),)),
        ([{"minID": 1, "maxID": 4094}], ((1, 4094),)),
        ([{"minID": 7, "maxID": 7}], ((7, 7),)),
    ],
)
def test_trunk(trunk: list[dict[str, int]], ranges: tuple[tuple[int, int], ...]) -> None:
    config = BridgeConfig.decode({**BASE, "vlanTrunk": trunk})
    assert config.vlans.trunk == ranges
    # Even an empty list asks for a bridge that filters.
    assert only(plan({"vlanTrunk": trunk}), Bridge).vlan_filtering is True


BOTH = "minID and maxID should be configured simultaneously"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"minID": 100}, f"{BOTH}, maxID is missing"),
        ({"maxID": 100}, f"{BOTH}, minID is missing"),
        ({"minID": -1, "maxID": 5}, "incorrect trunk minID parameter"),
        ({"minID": 0, "maxID": 5}, "incorrect trunk minID parameter"),
        ({"minID": 4095, "maxID": 4095}, "incorrect trunk minID parameter"),
        ({"minID": 1, "maxID": 4095}, "incorrect trunk maxID parameter"),
        ({"minID": 1, "maxID": -1}, "incorrect trunk maxID parameter"),
        ({"minID": 9, "maxID": 8}, "minID is greater than maxID in trunk parameter"),
        ({"id": 4095}, "incorrect trunk id parameter"),
        ({"id": 0}, "incorrect trunk id parameter"),
        ({"id": -1}, "incorrect trunk id parameter"),
    ],
)
def test_trunk_faults(item: dict[str, int], message: str) -> None:
    error = fault({"vlanTrunk": [item]})
    assert error.message == message
    assert "vlanTrunk" in error.details


@pytest.mark.parametrize("vlan", [-100, 5000, 4095])
def test_vlan_out_of_range(vlan: int) -> None:
    error = fault({"vlan": vlan})
    assert error.message == f"invalid VLAN ID {vlan} (must be between 0 and 4094)"


def test_vlan_of_the_port() -> None:
    found = plan({"vlan": 100})
    assert only(found, Bridge).vlan_filtering is True
    assert only(found, VethPair).port.vlans == VLANs(100)
    assert only(plan({"vlan": 0}), Bridge).vlan_filtering is False
    assert not only(plan({"vlan": 0}), VethPair).port.vlans
    found = plan({"vlan": 100, "preserveDefaultVlan": True, "vlanTrunk": [{"id": 5}]})
    assert only(found, VethPair).port.vlans == VLANs(100, ((5, 5),), keep_default=True)


def test_gateway_of_a_vlan() -> None:
    config = {"vlan": 100, "isGateway": True, "ipam": IPAM}
    found = plan(config, network("10.1.2.7/24"))
    assert only(found, VLANGateway) == VLANGateway("br0.100", "br0", VLANs(100))
    assert only(found, GatewayAddress).link == "br0.100"
    assert [item.name for item in found.interfaces][3:] == ["br0.100"]
    assert steps(plan({"vlan": 100, "ipam": IPAM}, network("10.1.2.7/24")), VLANGateway) == []


def test_gateway_of_a_vlan_must_have_a_name_that_fits() -> None:
    long = {"bridge": "a-bridge-name", "vlan": 100}
    error = fault({**long, "isGateway": True})
    assert "a-bridge-name.100" in error.message
    BridgeConfig.decode({**BASE, **long})


# --- faults ------------------------------------------------------------------------------------


def test_conflicts() -> None:
    error = fault({"ipam": IPAM, "disableContainerInterface": True})
    assert error.message == "cannot use IPAM when DisableContainerInterface flag is set"
    error = fault({"hairpinMode": True, "promiscMode": True})
    assert error.message == "cannot set hairpin mode and promiscuous mode at the same time"
    # Of two conflicts the reference says the first.
    error = fault({"ipam": IPAM, "disableContainerInterface": True, "hairpinMode": True,
                   "promiscMode": True})  # fmt: skip
    assert "IPAM" in error.message
    assert fault({"ipMasqBackend": "pf"}).message == 'unknown ipmasq backend "pf"'


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"bridge": "a/b"}, "a/b"),
        ({"bridge": "a-name-far-too-long"}, "a-name-far-too-long"),
        ({"bridge": ".."}, '".."'),
        ({"bridge": ""}, '"bridge"'),
        ({"bridge": 7}, "bridge"),
        ({"mtu": "1500"}, "mtu"),
        ({"mtu": -1}, "mtu"),
        ({"mtu": 70000}, "mtu"),
        ({"isGateway": "yes"}, "isGateway"),
        ({"vlan": 1.5}, "vlan"),
        ({"vlanTrunk": {"id": 1}}, "vlanTrunk"),
        ({"vlanTrunk": [7]}, "vlanTrunk[0]"),
        ({"runtimeConfig": {"mac": "x"}}, "runtimeConfig.mac"),
        ({"args": {"cni": {"mac": 5}}}, "args.cni.mac"),
        ({"dns": ["1.1.1.1"]}, "dns"),
    ],
)
def test_fault_names_the_key_or_its_value(config: dict[str, Any], name: str) -> None:
    assert name in str(fault(config))


@pytest.mark.parametrize(
    ("config", "args"),
    [
        ({"vlanTrunk": [{"minID": 5}, {"id": 9999}, {"minID": 9, "maxID": 3}]}, ""),
        ({"vlan": -5}, ""),
        ({"vlanTrunk": "nonsense", "mtu": "nonsense", "isGateway": 7}, ""),
        ({"args": 3, "runtimeConfig": {"mac": 7}}, ""),
        ({}, "MAC=nonsense;garbage"),
    ],
)
def test_what_is_to_be_removed_does_not_depend_on_faults(config: dict[str, Any], args: str) -> None:
    asked = request(config, "DEL", args)
    lenient = BridgeConfig.read_lenient(asked.document, "", [])
    found = plugin.plan(asked.replace(args=""), lenient, Result())
    assert only(found, VethPair).name == "eth0"
