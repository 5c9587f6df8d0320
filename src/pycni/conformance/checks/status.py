"""Section 2, "STATUS"."""

from __future__ import annotations

from pycni.conformance.case import Case, expect, require
from pycni.conformance.requirement import INTERFACE, IPAM, requirement

STATUS = "2 STATUS"


@requirement(
    "status.ready", STATUS, "MUST",
    "STATUS succeeds while ADD would",
    "A plugin must exit with a zero (success) return code if the plugin is ready to service ADD "
    "requests.",
    since="1.1.0",
)  # fmt: skip
def ready(case: Case) -> None:
    answer = case.status()
    expect(answer.ok, str(answer))
    attachment = case.attachment()
    attachment.add()
    answer = case.status()
    expect(answer.ok, f"with a container attached, {answer}")


@requirement(
    "status.path-optional", STATUS, "MUST",
    "STATUS needs no parameter but CNI_COMMAND where nothing is delegated",
    "Optional environment parameters: CNI_PATH",
    since="1.1.0",
)  # fmt: skip
def path_optional(case: Case) -> None:
    require(not case.subject.delegates, "the configuration delegates, which takes CNI_PATH")
    answer = case.call("STATUS", case.network(), CNI_PATH=None)
    expect(answer.ok, f"without CNI_PATH, {answer}")


@requirement(
    "status.exhausted", STATUS, "SHOULD",
    "STATUS fails once all addresses are taken, with code 50 or 51",
    "it should return an error if those resources are exhausted and no new ADD requests can be "
    "serviced",
    kinds=(IPAM,), since="1.1.0",
)  # fmt: skip
def exhausted(case: Case) -> None:
    config = case.subject.exhausted
    require(config is not None, "no configuration with one address is known")
    attachment = case.attachment(config=config)
    attachment.add()
    answer = case.status(**(config or {}))
    expect(not answer.ok, "all addresses are taken, and STATUS succeeds")
    document = answer.document
    code = document.get("code") if isinstance(document, dict) else None
    expect(code in (50, 51), f"the code of the error is {code!r}")


@requirement(
    "status.not-ready", STATUS, "MUST",
    "STATUS fails when the plugin it delegates to cannot be run",
    "If the plugin knows that it is not able to service ADD requests, it must exit with a non-zero "
    "return code",
    kinds=(INTERFACE,), since="1.1.0",
)  # fmt: skip
def not_ready(case: Case) -> None:
    require(case.subject.ipam_type, "the configuration delegates nothing")
    answer = case.status(ipam={"type": "no-such-plugin"})
    expect(not answer.ok, "the address plugin is not there, and STATUS succeeds")


@requirement(
    "status.not-relied-on", STATUS, "MUST",
    "ADD works without a STATUS before it",
    "A plugin MUST NOT rely on STATUS being called.",
    since="1.1.0",
)  # fmt: skip
def not_relied_on(case: Case) -> None:
    attachment = case.attachment()
    answer = attachment.try_add()
    require(answer.ok or case.status().ok, f"{answer}, and STATUS fails too")
    if not answer.ok:
        again = attachment.try_add()
        expect(not again.ok, f"before STATUS {answer}; after it ADD succeeds")
