"""Section 2, "DEL"."""

from __future__ import annotations

from pycni.conformance import host
from pycni.conformance.case import Attachment, Case, exists, expect, expect_gone, require
from pycni.conformance.requirement import CHAINED, INTERFACE, IPAM, requirement

DEL = "2 DEL"

_TO_THE_FULLEST = (
    "plugins should always complete a DEL action without error to the fullest extent possible, "
    "even if some resources or state are missing"
)


@requirement(
    "del.undoes", DEL, "SHOULD",
    "DEL undoes what ADD did to interfaces, addresses, routes, rules, queues, files",
    "delete the interface ..., or undo any modifications applied in the plugin's ADD functionality",
)  # fmt: skip
def undoes(case: Case) -> None:
    case.warm_up()
    attachment = case.attachment()
    before = host.snapshot(attachment.netns)
    attachment.add()
    answer = attachment.delete()
    expect(answer.ok, str(answer))
    after = host.snapshot(attachment.netns)
    expect_gone(before, after, "left after DEL")
    expect_gone(after, before, "not restored by DEL")
    if case.makes_link:
        expect(not exists(attachment), f"{attachment.ifname} is still there")


@requirement(
    "del.repeated", DEL, "MUST",
    "a second DEL of the same attachment succeeds",
    "Plugins MUST accept multiple DEL calls for the same (CNI_CONTAINERID, CNI_IFNAME) pair",
)  # fmt: skip
def repeated(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    for which in ("first", "second", "third"):
        answer = attachment.delete()
        expect(answer.ok, f"the {which} {answer}")


@requirement(
    "del.without-add", DEL, "MUST",
    "DEL of what was never added succeeds",
    "return success if the interface in question, or any modifications added, are missing",
)  # fmt: skip
def without_add(case: Case) -> None:
    attachment = case.attachment()
    answer = attachment.run("DEL")
    expect(answer.ok, str(answer))


@requirement(
    "del.interface-missing", DEL, "MUST",
    "DEL succeeds when the interface is gone, and still removes the rest",
    "return success if the interface in question ... [is] missing",
    kinds=(INTERFACE, CHAINED),
)  # fmt: skip
def interface_missing(case: Case) -> None:
    require(case.subject.ifname != "lo", "lo cannot be deleted")

    def lose(attachment: Attachment) -> None:
        host.run(["ip", "-n", attachment.netns, "link", "delete", attachment.ifname])

    _after_loss(case, lose)


@requirement(
    "del.netns-missing", DEL, "SHOULD",
    "DEL succeeds when the namespace is gone, and still removes the rest, addresses above all",
    _TO_THE_FULLEST,
)  # fmt: skip
def netns_missing(case: Case) -> None:
    _after_loss(case, Attachment.remove_netns)


@requirement(
    "del.netns-unset", DEL, "SHOULD",
    "DEL without CNI_NETNS succeeds and releases what it can",
    "Optional environment parameters: CNI_NETNS",
)  # fmt: skip
def netns_unset(case: Case) -> None:
    case.warm_up()
    attachment = case.attachment()
    before = host.snapshot()
    attachment.add()
    # What the container held went with it.
    attachment.remove_netns()
    answer = attachment.delete(CNI_NETNS=None)
    expect(answer.ok, str(answer))
    expect_gone(before, _settled(before), "left after DEL without CNI_NETNS")


def _after_loss(case: Case, lose: object) -> None:
    assert callable(lose)
    case.warm_up()
    attachment = case.attachment()
    before = host.snapshot()
    attachment.add()
    lose(attachment)
    answer = attachment.delete()
    expect(answer.ok, str(answer))
    expect_gone(before, _settled(before), "left after DEL")


def _settled(before: host.Snapshot) -> host.Snapshot:
    """The host once the kernel has cleaned up a namespace that is gone, for which it takes time."""
    import time

    deadline = time.monotonic() + 5
    while True:
        after = host.snapshot()
        if not host.appeared(before, after) or time.monotonic() > deadline:
            return after
        time.sleep(0.05)


@requirement(
    "del.prev-result-empty", DEL, "SHOULD",
    "DEL succeeds without a prevResult, and still removes everything",
    "Plugins should still return without error if prevResult is empty",
)  # fmt: skip
def prev_result_empty(case: Case) -> None:
    case.warm_up()
    attachment = case.attachment()
    before = host.snapshot(attachment.netns)
    attachment.add()
    answer = attachment.run("DEL", {"prevResult": None})
    expect(answer.ok, str(answer))
    expect_gone(before, host.snapshot(attachment.netns), "left after DEL without prevResult")


@requirement(
    "del.not-others", DEL, "SHOULD",
    "DEL of one container leaves another of the same network as it is",
    "delete the interface ..., or undo any modifications applied in the plugin's ADD functionality",
)  # fmt: skip
def not_others(case: Case) -> None:
    first, second = case.attachment(1), case.attachment(2)
    first.add()
    between = host.snapshot(first.netns)
    second.add()
    answer = second.delete()
    expect(answer.ok, str(answer))
    after = host.snapshot(first.netns)
    lost = host.appeared(
        {key: lines for key, lines in after.items() if key != "files"},
        {key: lines for key, lines in between.items() if key != "files"},
    )
    expect(not lost, f"DEL of one container took from the other: {'; '.join(lost)}")
    if case.subject.can("CHECK") and case.kind != IPAM:
        answer = first.check()
        expect(answer.ok, f"after DEL of another container, {answer}")


@requirement(
    "del.released", DEL, "SHOULD",
    "an address that DEL released can be given again",
    "an IPAM plugin should generally release an IP allocation",
    kinds=(IPAM,), since="0.3.0",
)  # fmt: skip
def released(case: Case) -> None:
    require(case.subject.exhausted is not None, "no configuration with one address is known")
    first = case.attachment(1, config=case.subject.exhausted)
    first.add()
    second = case.attachment(2, config=case.subject.exhausted)
    answer = second.try_add()
    require(not answer.ok, "two containers got the only address")
    first.remove_netns()
    expect(first.delete().ok, "DEL failed")
    answer = second.try_add()
    expect(answer.ok, f"the only address was released, and {answer}")
