"""Section 3, "Lifecycle & Ordering": many containers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pycni.conformance import host
from pycni.conformance.case import Case, expect, expect_gone, require
from pycni.conformance.requirement import requirement

LIFECYCLE = "3 Lifecycle & Ordering"
CONTAINERS = 6


@requirement(
    "lifecycle.concurrent", LIFECYCLE, "MUST",
    f"{CONTAINERS} containers are added, checked and deleted at once, each with an address of its "
    "own, and nothing is left",
    "Plugins must handle being executed concurrently across different containers.",
)  # fmt: skip
def concurrent(case: Case) -> None:
    case.warm_up()
    attachments = [case.attachment(number) for number in range(1, CONTAINERS + 1)]
    before = host.snapshot()
    with ThreadPoolExecutor(CONTAINERS) as pool:
        answers = list(pool.map(lambda one: one.try_add(), attachments))
        for answer in answers:
            expect(answer.ok, f"{CONTAINERS} at once: {answer}")
        given = [item["address"] for one in attachments for item in one.own_ips()]
        if case.kind != "chained" and case.subject.ifname != "lo":
            twice = sorted({address for address in given if given.count(address) > 1})
            expect(not twice, f"given to more than one container: {', '.join(twice)}")
        if case.subject.can("CHECK"):
            for answer in pool.map(lambda one: one.check(), attachments):
                expect(answer.ok, f"{CONTAINERS} at once: {answer}")
        for answer in pool.map(lambda one: one.delete(), attachments):
            expect(answer.ok, f"{CONTAINERS} at once: {answer}")
    expect_gone(before, host.snapshot(), f"left after {CONTAINERS} at once")


@requirement(
    "lifecycle.add-again", LIFECYCLE, "MUST",
    "after DEL, the same container and interface can be added again",
    "add is eventually followed by a corresponding delete",
)  # fmt: skip
def add_again(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    require(attachment.delete().ok, "DEL fails, see del.undoes")
    case.renew(attachment)
    answer = attachment.try_add()
    expect(answer.ok, f"after DEL, {answer}")
