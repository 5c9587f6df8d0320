"""Section 2, "CHECK": silent while all is as ADD left it, an error after each kind of drift."""

from __future__ import annotations

import os
import shutil
from typing import Any

from pycni.conformance import host
from pycni.conformance.case import Attachment, Case, changed, expect, listed, require
from pycni.conformance.checks.result import is_route
from pycni.conformance.requirement import CHAINED, INTERFACE, IPAM, NotApplicable, requirement

CHECK = "2 CHECK"

_LISTED_RESOURCE = (
    "The plugin should return an error if a resource included in the CNI Result type ... was "
    "created by the plugin, and is listed in prevResult, but is missing or in an invalid state."
)
_LATER = (
    "The plugin must allow for a later chained plugin to have modified networking resources, e.g. "
    "routes, on ADD."
)
_OTHER_RESOURCE = (
    "The plugin should return an error if other resources not tracked in the Result type such as "
    "the following are missing or are in an invalid state"
)


@requirement(
    "check.after-add", CHECK, "MUST",
    "CHECK right after ADD succeeds, and again",
    "The plugin must handle CHECK being called immediately after an ADD",
    since="0.4.0",
)  # fmt: skip
def after_add(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    for _ in range(2):
        answer = attachment.check()
        expect(answer.ok, str(answer))


@requirement(
    "check.consults-prev-result", CHECK, "MUST",
    "CHECK goes by prevResult: an address there that is not on the interface is an error",
    "The plugin must consult the prevResult to determine the expected interfaces and addresses.",
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def consults_prev_result(case: Case) -> None:
    attachment = _checked(case)
    require(attachment.own_ips(), "the result lists no addresses")

    def move(result: Any) -> None:
        result["ips"][0]["address"] = "10.254.254.254/24"

    answer = attachment.check(prevResult=changed(attachment.result or {}, move))
    expect(not answer.ok, "an address in prevResult that the container does not have passes")


@requirement(
    "check.interface-missing", CHECK, "SHOULD",
    "CHECK fails when the container's interface is gone",
    _LISTED_RESOURCE,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def interface_missing(case: Case) -> None:
    require(case.subject.makes_link, f"{case.subject.ifname} cannot be deleted")
    attachment = _checked(case)
    host.run(["ip", "-n", attachment.netns, "link", "delete", attachment.ifname])
    _expect_failure(attachment, f"{attachment.ifname} is gone")


@requirement(
    "check.interface-down", CHECK, "SHOULD",
    "CHECK fails when the container's interface is down",
    "The plugin should return an error if it is aware of a condition where the container is "
    "generally unreachable.",
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def interface_down(case: Case) -> None:
    attachment = _checked(case)
    host.run(["ip", "-n", attachment.netns, "link", "set", attachment.ifname, "down"])
    _expect_failure(attachment, f"{attachment.ifname} is down")


@requirement(
    "check.host-interface-missing", CHECK, "SHOULD",
    "CHECK fails when an interface on the host that the result lists is gone",
    _LISTED_RESOURCE,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def host_interface_missing(case: Case) -> None:
    before = set(host.links())
    attachment = _checked(case)
    names = [
        item["name"] for item in attachment.interfaces()
        if not item.get("sandbox") and item.get("name") not in before
    ]  # fmt: skip
    require(names, "the result lists no interface that it made on the host")
    # The first is what attachments share, if any is.
    host.run(["ip", "link", "delete", names[0]])
    _expect_failure(attachment, f"{names[0]} on the host is gone")


@requirement(
    "check.mac-changed", CHECK, "SHOULD",
    "CHECK fails when the interface has another hardware address than prevResult says",
    _LISTED_RESOURCE,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def mac_changed(case: Case) -> None:
    attachment = _checked(case)
    own = [item for item in attachment.interfaces() if item.get("name") == attachment.ifname]
    require(own and own[0].get("mac"), "the result lists no hardware address")
    require(case.subject.makes_link, f"the address of {case.subject.ifname} cannot be changed")
    _set_mac(attachment)
    _expect_failure(attachment, "the hardware address is another")


@requirement(
    "check.address-missing", CHECK, "SHOULD",
    "CHECK fails when an address of the result is not on the interface any more",
    _LISTED_RESOURCE,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def address_missing(case: Case) -> None:
    attachment = _checked(case)
    require(attachment.own_ips(), "the result lists no addresses")
    address = attachment.own_ips()[0]["address"]
    # Its routes would go with it, and be missed in its place.
    routes = host.run(["ip", "-n", attachment.netns, "route", "show"]).splitlines()
    change = ["ip", "-n", attachment.netns, "address"]
    host.run([*change, "add", "10.254.254.2/16", "dev", attachment.ifname], check=False)
    host.run([*change, "delete", address, "dev", attachment.ifname])
    for route in routes:
        words = [word for word in route.split() if word != "linkdown"]
        if "src" not in words:
            argv = ["ip", "-n", attachment.netns, "route", "replace", *words, "onlink"]
            host.run(argv, check=False)
    _expect_failure(attachment, f"{address} is not there any more")


@requirement(
    "check.route-missing", CHECK, "SHOULD",
    "CHECK fails when a route of the result is not there any more",
    _LISTED_RESOURCE,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def route_missing(case: Case) -> None:
    attachment = _checked(case)
    routes = listed(attachment.result, "routes")
    require(routes, "the result lists no routes")
    (route, *_) = [item for item in host.routes(attachment.netns) if is_route(routes[0], item)]
    family = "-6" if ":" in routes[0]["dst"] else "-4"
    host.run(["ip", family, "-n", attachment.netns, "route", "delete", route["dst"]])
    _expect_failure(attachment, f"the route to {route['dst']} is gone")


@requirement(
    "check.later-plugin", CHECK, "MUST",
    "CHECK allows what a later plugin changed and prevResult lists: a route more, another hardware "
    "address",
    _LATER,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def later_plugin(case: Case) -> None:
    require(case.subject.makes_link, f"{case.subject.ifname} is no later plugin's to change")
    attachment = _checked(case)
    result = attachment.result or {}
    index = _own_index(attachment)
    mac = _set_mac(attachment)
    # Setting it took the interface down, and its routes away.
    _restore_routes(attachment)
    inside = ["ip", "-n", attachment.netns]
    route = {"dst": "10.205.0.0/16"}
    gateways = [item["gateway"] for item in attachment.own_ips() if item.get("gateway")]
    if gateways:
        route["gw"] = gateways[0]
    where = ["via", gateways[0]] if gateways else ["dev", attachment.ifname]
    host.run([*inside, "route", "add", route["dst"], *where])

    def modify(later: Any) -> None:
        if later["interfaces"][index].get("mac"):
            later["interfaces"][index]["mac"] = mac
        later.setdefault("routes", []).append(route)

    attachment.result = changed(result, modify)
    answer = attachment.check()
    expect(answer.ok, f"with a later plugin's route and hardware address, {answer}")


@requirement(
    "check.later-address", CHECK, "MUST",
    "CHECK allows an address that a later plugin added and prevResult lists",
    _LATER,
    kinds=(INTERFACE,), since="0.4.0",
)  # fmt: skip
def later_address(case: Case) -> None:
    require(case.subject.makes_link, f"{case.subject.ifname} is no later plugin's to change")
    attachment = _checked(case)
    index = _own_index(attachment)
    address = ["address", "add", "10.204.0.2/24", "dev", attachment.ifname]
    host.run(["ip", "-n", attachment.netns, *address])
    extra: dict[str, Any] = {"address": "10.204.0.2/24", "interface": index}
    if attachment.version == "0.4.0":
        extra["version"] = "4"
    attachment.result = changed(
        attachment.result or {}, lambda later: later.setdefault("ips", []).append(extra)
    )
    answer = attachment.check()
    expect(answer.ok, f"with a later plugin's address, {answer}")


@requirement(
    "check.reservation-missing", CHECK, "SHOULD",
    "CHECK of an address plugin fails when the reservation is gone",
    _OTHER_RESOURCE + ": IP reservations",
    kinds=(IPAM,), since="0.4.0",
)  # fmt: skip
def reservation_missing(case: Case) -> None:
    before = host.snapshot()
    attachment = _checked(case)
    new = host.snapshot()["files"] - before["files"]
    folders = {os.path.dirname(path) for path in new if path.startswith("/var/lib/cni/")}
    require(folders, "the plugin keeps no reservations in files below /var/lib/cni")
    for folder in folders:
        shutil.rmtree(folder)
    _expect_failure(attachment, f"{', '.join(sorted(folders))} is gone")


@requirement(
    "check.rules-missing", CHECK, "SHOULD",
    "CHECK fails when the packet filter rules that ADD made are gone",
    _OTHER_RESOURCE + ": Firewall rules",
    kinds=(INTERFACE, CHAINED), since="0.4.0",
)  # fmt: skip
def rules_missing(case: Case) -> None:
    attachment, _ = _made(case, "packet filter", "makes no packet filter rules")
    host.run(["nft", "flush", "ruleset"])
    _expect_failure(attachment, "all rules are gone")


@requirement(
    "check.queues-missing", CHECK, "SHOULD",
    "CHECK fails when the traffic shaping that ADD made is gone",
    _OTHER_RESOURCE + ": Traffic shaping controls",
    kinds=(CHAINED,), since="0.4.0",
)  # fmt: skip
def queues_missing(case: Case) -> None:
    attachment, lines = _made(case, "queues", "shapes no traffic")
    for line in lines:
        words = line.split()
        where = ["dev", words[words.index("dev") + 1]]
        handle = ["ingress"] if "ingress" in words else ["root"]
        host.run(["tc", "qdisc", "delete", *where, *handle], check=False)
    _expect_failure(attachment, "the queues are gone")


@requirement(
    "check.settings-lost", CHECK, "SHOULD",
    "CHECK fails when an attribute of the interface that a chained plugin set is another",
    _OTHER_RESOURCE,
    kinds=(CHAINED,), since="0.4.0",
)  # fmt: skip
def settings_lost(case: Case) -> None:
    attachment = case.attachment()
    before = host.links(attachment.netns)[attachment.ifname]
    attachment.add()
    after = host.links(attachment.netns)[attachment.ifname]
    require(after["mtu"] != before["mtu"], "the plugin does not set the MTU")
    require(attachment.check().ok, "CHECK right after ADD fails, see check.after-add")
    mtu = str(before["mtu"])
    host.run(["ip", "-n", attachment.netns, "link", "set", attachment.ifname, "mtu", mtu])
    _expect_failure(attachment, f"the MTU is {mtu} again")


@requirement(
    "check.policy-rules-missing", CHECK, "SHOULD",
    "CHECK fails when the routing rules that ADD made in the container are gone",
    _OTHER_RESOURCE,
    kinds=(CHAINED,), since="0.4.0",
)  # fmt: skip
def policy_rules_missing(case: Case) -> None:
    attachment, lines = _made(case, "c1: rules", "makes no routing rules in the container")
    for line in lines:
        priority = line.split()[1]
        rule = ["rule", "delete", "priority", priority]
        host.run(["ip", f"-{line[0]}", "-n", attachment.netns, *rule])
    _expect_failure(attachment, "the rules are gone")


def _made(case: Case, section: str, lacking: str) -> tuple[Attachment, list[str]]:
    """An attachment that CHECK is content with, and what its ADD made in a section."""
    attachment = case.attachment()
    before = host.snapshot(attachment.netns)
    attachment.add()
    after = host.snapshot(attachment.netns)
    lines = sorted(after[section] - before[section])
    require(lines, f"the plugin {lacking}")
    require(attachment.check().ok, "CHECK right after ADD fails, see check.after-add")
    return attachment, lines


def _checked(case: Case) -> Attachment:
    """An attachment that CHECK is content with."""
    attachment = case.attachment()
    attachment.add()
    require(attachment.check().ok, "CHECK right after ADD fails, see check.after-add")
    return attachment


def _expect_failure(attachment: Attachment, drift: str) -> None:
    expect(not attachment.check().ok, f"CHECK succeeds although {drift}")


def _own_index(attachment: Attachment) -> int:
    """Where the container's interface is in the result's list."""
    for index, item in enumerate(attachment.interfaces()):
        if item.get("name") == attachment.ifname:
            return index
    raise NotApplicable("the result does not list the container's interface")


def _set_mac(attachment: Attachment) -> str:
    """Give the container's interface another hardware address; returns it."""
    mac = "02:00:00:0a:0b:0c"
    link = ["ip", "-n", attachment.netns, "link", "set", attachment.ifname]
    host.run([*link, "address", mac], check=False)
    found = host.links(attachment.netns)[attachment.ifname].get("address")
    require(found == mac, "the interface's hardware address cannot be changed")
    return mac


def _restore_routes(attachment: Attachment) -> None:
    for route in listed(attachment.result, "routes"):
        gateways = [item["gateway"] for item in attachment.own_ips() if item.get("gateway")]
        via = route.get("gw") or (gateways[0] if gateways else "")
        where = ["via", via] if via else ["dev", attachment.ifname]
        replace = ["route", "replace", route["dst"], *where]
        host.run(["ip", "-n", attachment.netns, *replace], check=False)
