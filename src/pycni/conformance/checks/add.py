"""Section 2, "ADD"."""

from __future__ import annotations

from typing import Any

from pycni.conformance import host
from pycni.conformance.case import Case, exists, expect, expect_gone, listed, require
from pycni.conformance.delegate import result_document
from pycni.conformance.requirement import CHAINED, INTERFACE, Broken, requirement

ADD = "2 ADD"


@requirement(
    "add.succeeds", ADD, "MUST",
    "ADD succeeds, and its stdout is one result object",
    "If the CNI plugin is successful, it must output a result structure on standard out.",
)  # fmt: skip
def succeeds(case: Case) -> None:
    answer = case.attachment().try_add()
    expect(answer.ok, f"{answer}")
    expect(isinstance(answer.document, dict), f"stdout is not one JSON object: {answer}")


@requirement(
    "add.interface", ADD, "SHOULD",
    "ADD makes the interface CNI_IFNAME in CNI_NETNS",
    "create the interface defined by CNI_IFNAME inside the container at CNI_NETNS",
    kinds=(INTERFACE,),
)  # fmt: skip
def makes_interface(case: Case) -> None:
    require(case.subject.makes_link, f"the plugin works on {case.subject.ifname}, there before")
    for number, ifname in ((1, "eth0"), (2, "net.1-a_b")):
        attachment = case.attachment(number, ifname=ifname)
        attachment.add()
        expect(
            exists(attachment),
            f"there is no {ifname}, but {', '.join(sorted(host.links(attachment.netns)))}",
        )


@requirement(
    "add.interface-exists", ADD, "MUST",
    "an interface of that name in the container already is an error, and is left as it is",
    "If an interface of the requested name already exists in the container, the CNI plugin MUST "
    "return with an error.",
    kinds=(INTERFACE,),
)  # fmt: skip
def interface_exists(case: Case) -> None:
    require(case.subject.makes_link, f"the plugin works on {case.subject.ifname}, there before")
    attachment = case.attachment()
    name = attachment.ifname
    inside = ["ip", "-n", attachment.netns]
    host.run([*inside, "link", "add", name, "type", "veth", "peer", "name", "other"])
    host.run([*inside, "address", "add", "10.222.0.1/24", "dev", name])
    before = host.links(attachment.netns)[name]["address"], host.addresses(attachment.netns)
    answer = attachment.try_add()
    expect(not answer.ok, f"ADD succeeded over the {name} that was there")
    link = host.links(attachment.netns).get(name)
    expect(link is not None, f"ADD failed, and the {name} that was there is gone")
    assert link is not None
    now = link["address"], host.addresses(attachment.netns)
    expect(now == before, f"the {name} that was there was {before}, and is {now} after ADD failed")


@requirement(
    "add.prev-result", ADD, "MUST",
    "what prevResult lists is in the result, but for what the plugin changed",
    "it MUST handle prevResult by either passing it through, or modifying it appropriately",
    kinds=(INTERFACE, CHAINED),
)  # fmt: skip
def prev_result(case: Case) -> None:
    attachment = case.attachment(version=_with_interfaces(case))
    previous = attachment.previous
    if previous is None:
        previous = _earlier_result(attachment.version)
        attachment.previous = previous
    result = attachment.add()
    missing = [
        f"{key} {item}"
        for key, identity in (("interfaces", ("name", "sandbox")), ("ips", ("address",)))
        for item in listed(previous, key)
        if not any(_same(item, other, identity) for other in listed(result, key))
    ]
    missing += [
        f"route {route}"
        for route in listed(previous, "routes")
        if not any(_same(route, other, ("dst",)) for other in listed(result, "routes"))
    ]
    expect(not missing, f"the result lacks what prevResult has: {'; '.join(missing)}")


@requirement(
    "add.prev-result-dns", "5 ADD Success", "MUST",
    "a chained plugin hands on the DNS settings of prevResult",
    "it must output a result equivalent to the provided prevResult",
    kinds=(CHAINED,),
)  # fmt: skip
def prev_result_dns(case: Case) -> None:
    attachment = case.attachment(version=_with_interfaces(case))
    assert attachment.previous is not None
    attachment.previous["dns"] = {"nameservers": ["10.201.0.1"], "domain": "example.net"}
    wanted, found = attachment.previous["dns"], attachment.add().get("dns")
    expect(found == wanted, f"dns of prevResult is {wanted}, of the result {found}")


@requirement(
    "add.second-interface", ADD, "SHOULD",
    "a container can be added to a network again with another interface name, and lose one alone",
    "a given container ID may be added to a specific network more than once only if each addition "
    "is done with a different interface name",
    kinds=(INTERFACE,),
)  # fmt: skip
def second_interface(case: Case) -> None:
    require(case.subject.makes_link, f"the plugin works on {case.subject.ifname}, there before")
    first = case.attachment(1)
    first.add()
    second = case.attachment(2, ifname="net1", sharing=first)
    answer = second.try_add()
    if not answer.ok:
        raise Broken(f"the second interface was refused: {answer}")
    answer = first.delete()
    expect(answer.ok, f"with two interfaces, {answer}")
    expect(not exists(first), f"DEL of {first.ifname} left it there")
    expect(exists(second), f"DEL of {first.ifname} took {second.ifname} away too")
    missing = {address for name, address in host.addresses(second.netns) if name == "net1"}
    listed_there = {item["address"] for item in second.own_ips()}
    expect(listed_there <= missing, f"DEL of {first.ifname} took addresses of {second.ifname}")


@requirement(
    "add.failure-undone", "3 Lifecycle & Ordering", "MUST",
    "an ADD that failed, and the DEL that follows it, leave nothing",
    "A delete must still be executed even if the add fails",
)  # fmt: skip
def failure_undone(case: Case) -> None:
    case.warm_up()
    attachment = case.attachment()
    if case.makes_link:
        pair = ["link", "add", attachment.ifname, "type", "veth", "peer", "name", "other"]
        host.run(["ip", "-n", attachment.netns, *pair])
    else:
        attachment.ifname = "not-there"
    before = host.snapshot()
    answer = attachment.try_add()
    require(not answer.ok, "the ADD that should have failed succeeded")
    answer = attachment.delete()
    expect(answer.ok, f"after an ADD that failed, {answer}")
    expect_gone(before, host.snapshot(), "left after an ADD that failed, and DEL")


def _with_interfaces(case: Case) -> str:
    """The version in use, which must be one whose results have interfaces."""
    version = case.subject.version
    require(version not in ("0.1.0", "0.2.0"), f"results of {version} list no interfaces")
    return version


def _earlier_result(version: str) -> dict[str, Any]:
    """The result of a plugin that made something else before."""
    return result_document(
        version,
        "10.203.0.2/24",
        "10.203.0.1",
        interfaces=[{"name": "earlier0", "mac": "02:00:00:00:00:01"}],
        interface=0,
    )


def _same(one: dict[str, Any], other: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return all(one.get(key, "") == other.get(key, "") for key in keys)
