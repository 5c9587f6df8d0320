"""Section 2, "GC"."""

from __future__ import annotations

import time

from pycni.conformance import host
from pycni.conformance.case import Case, expect, require
from pycni.conformance.requirement import requirement

GC = "2 GC"


@requirement(
    "gc.succeeds", GC, "SHOULD",
    "GC succeeds, also when there is nothing to do and when it is repeated",
    "Plugins should generally complete a GC action without error.",
    since="1.1.0",
)  # fmt: skip
def succeeds(case: Case) -> None:
    answer = case.gc()
    expect(answer.ok, f"on a fresh host, {answer}")
    attachment = case.attachment()
    attachment.add()
    for _ in range(2):
        answer = case.gc(attachment)
        expect(answer.ok, str(answer))


@requirement(
    "gc.silent", GC, "MUST",
    "GC that succeeds writes nothing on stdout",
    "No output on success",
    since="1.1.0",
)  # fmt: skip
def silent(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    answer = case.gc()
    require(answer.ok, f"{answer}, see gc.succeeds")
    expect(not answer.stdout.strip(), f"it wrote {answer.stdout!r}")


@requirement(
    "gc.removes-stale", GC, "SHOULD",
    "GC removes what is left of attachments that are not listed: reservations, rules",
    "A plugin SHOULD remove as many stale resources as possible.",
    since="1.1.0",
)  # fmt: skip
def removes_stale(case: Case) -> None:
    case.warm_up()
    keep = case.attachment(1)
    keep.add()
    lost = case.attachment(2)
    before = host.snapshot()
    lost.add()
    lost.remove_netns()
    leftovers = _leftovers(before, 1.0)
    require(leftovers, "nothing outlives the container's namespace")
    answer = case.gc(keep)
    expect(answer.ok, str(answer))
    left = _leftovers(before, 1.0)
    expect(not left, f"left after GC: {'; '.join(left)}")


@requirement(
    "gc.keeps-valid", GC, "MUST",
    "GC leaves alone what belongs to attachments that are listed",
    "cni.dev/valid-attachments: The list of still valid attachments to this network",
    since="1.1.0",
)  # fmt: skip
def keeps_valid(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    before = host.snapshot(attachment.netns)
    answer = case.gc(attachment)
    require(answer.ok, f"{answer}, see gc.succeeds")
    lost = host.appeared(host.snapshot(attachment.netns), before)
    expect(not lost, f"GC took from a valid attachment: {'; '.join(lost)}")


@requirement(
    "gc.keeps-other-networks", GC, "MUST",
    "GC of one network leaves alone what belongs to another",
    "The list of still valid attachments to this network",
    since="1.1.0",
)  # fmt: skip
def keeps_other_networks(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    before = host.snapshot(attachment.netns)
    case.gc(name="another-network")
    lost = host.appeared(host.snapshot(attachment.netns), before)
    expect(not lost, f"GC of another network took: {'; '.join(lost)}")


@requirement(
    "gc.by-interface", GC, "MUST",
    "an attachment is container and interface: another interface of the container does not keep it",
    "containerID (string): ..., ifname (string): the value of CNI_IFNAME as provided during the "
    "CNI ADD operation",
    since="1.1.0",
)  # fmt: skip
def by_interface(case: Case) -> None:
    case.warm_up()
    lost, other, again = (case.attachment(number) for number in (2, 3, 4))
    before = host.snapshot()
    lost.add()
    lost.remove_netns()
    require(_leftovers(before, 1.0), "nothing outlives the container's namespace")
    other.container, other.ifname = lost.container, "net9"
    answer = case.gc(other)
    require(answer.ok, f"{answer}, see gc.succeeds")
    require(case.gc().ok, "see gc.succeeds")
    require(not _leftovers(before, 1.0), "GC removes nothing at all, see gc.removes-stale")
    # Again, with only the listing in question.
    again.add()
    again.remove_netns()
    other.container = again.container
    case.gc(other)
    left = _leftovers(before, 1.0)
    expect(not left, f"kept for an attachment with another interface: {'; '.join(left)}")


def _leftovers(before: host.Snapshot, timeout: float) -> list[str]:
    """What is there and was not before, once the kernel has had time to clean up a namespace."""
    deadline = time.monotonic() + timeout
    while True:
        left = host.appeared(before, host.snapshot())
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)
