"""Section 4: what a plugin does with the address plugin that its configuration names.

The address plugin is the kit's own, which writes down how it is called.
"""

from __future__ import annotations

from typing import Any

from pycni.conformance import delegate, host
from pycni.conformance.case import Attachment, Case, exists, expect, require
from pycni.conformance.requirement import INTERFACE, requirement

PROTOCOL = "4 Delegated Plugin protocol"
PROCEDURE = "4 Delegated plugin execution procedure"

_CONFIG = {"ipam": {"type": delegate.TYPE, "note": "handed on"}}
_ALSO = (
    "If a plugin is executed with CNI_COMMAND=CHECK, DEL, or GC, it must also execute any "
    "delegated plugins."
)
_ERRORS = (
    "If any of the delegated plugins return error, error should be returned by the upper plugin."
)


def _delegating(case: Case, **environ: str) -> Attachment:
    """An attachment whose addresses come from the kit's address plugin."""
    require(case.subject.ipam_type, "the configuration delegates nothing")
    attachment = case.attachment(config=_CONFIG)
    attachment.answer = attachment.run("ADD", None, **environ)
    document = attachment.answer.document
    require(
        attachment.answer.ok and isinstance(document, dict),
        f"ADD with another address plugin is the beginning of this check, and {attachment.answer}",
    )
    attachment.result = document
    return attachment


def _called(command: str) -> list[delegate.Call]:
    return [one for one in delegate.calls() if one.command == command]


@requirement(
    "delegation.add", PROCEDURE, "SHOULD",
    "ADD runs the address plugin found on CNI_PATH, and uses its address",
    "Look up the plugin binary by searching the directories provided in CNI_PATH",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def add(case: Case) -> None:
    attachment = _delegating(case)
    expect(_called("ADD"), "the address plugin on CNI_PATH was not run")
    found = [item.get("address") for item in attachment.own_ips()]
    expect(any(str(item).startswith("10.202.") for item in found), f"the result has {found}")


@requirement(
    "delegation.environment", PROTOCOL, "MUST",
    "the address plugin gets all variables that the plugin got",
    "The delegated plugin must receive all the same environment variables that were passed in to "
    "the CNI plugin.",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def environment(case: Case) -> None:
    extra = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web", "TRACEPARENT": "00-1-2-01"}
    attachment = _delegating(case, **extra)
    calls = _called("ADD")
    require(calls, "the address plugin was not run")
    wanted = {**attachment.environ(), **extra, "CNI_COMMAND": "ADD", "CNI_PATH": case.path()}
    for name, value in wanted.items():
        found = calls[0].environ.get(name)
        expect(found == value, f"{name} is {found!r}, the plugin got {value!r}")


@requirement(
    "delegation.config", PROTOCOL, "MUST",
    "the address plugin gets the complete configuration, not its own part only",
    'Delegated plugins are provided the complete network configuration passed to the "upper" '
    "plugin.",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def config(case: Case) -> None:
    attachment = _delegating(case)
    calls = _called("ADD")
    require(calls, "the address plugin was not run")
    found = calls[0].stdin
    expect(isinstance(found, dict), f"its stdin is {found!r}")
    different = [key for key, value in attachment.document.items() if found.get(key) != value]
    expect(not different, f"its configuration differs in {', '.join(different)}: {found}")


@requirement(
    "delegation.stderr", PROCEDURE, "SHOULD",
    "what the address plugin writes on stderr comes out of the plugin's",
    "Ensure that the delegated plugin's stderr is output to the calling plugin's stderr.",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def stderr(case: Case) -> None:
    attachment = _delegating(case)
    require(_called("ADD"), "the address plugin was not run")
    assert attachment.answer is not None
    expect(delegate.SAID in attachment.answer.stderr, f"it is {attachment.answer.stderr!r}")


def _also(case: Case, command: str) -> Any:
    """Run an operation that must reach the address plugin; returns the answer."""
    attachment = _delegating(case)
    delegate.forget()
    return _run(case, attachment, command)


def _run(case: Case, attachment: Attachment, command: str) -> Any:
    if command == "GC":
        return case.gc(attachment, **_CONFIG)
    if command == "STATUS":
        return case.status(**_CONFIG)
    return attachment.run(command)


def _declare(command: str, since: str, sentence: str, section: str = PROCEDURE) -> None:
    """The two requirements for an operation: it reaches the address plugin, and so do errors."""

    @requirement(
        f"delegation.{command.lower()}", section, "MUST",
        f"{command} runs the address plugin too", sentence,
        kinds=(INTERFACE,), since=since,
    )  # fmt: skip
    def reaches(case: Case) -> None:
        answer = _also(case, command)
        expect(_called(command), f"the address plugin was not run, and {answer}")

    @requirement(
        f"delegation.{command.lower()}-error", section, "SHOULD",
        f"an error of the address plugin at {command} is an error of the plugin",
        _ERRORS, kinds=(INTERFACE,), since=since,
    )  # fmt: skip
    def fails(case: Case) -> None:
        attachment = _delegating(case)
        delegate.refuse(command, 50 if command == "STATUS" else 123, "no, says the delegate")
        delegate.forget()
        answer = _run(case, attachment, command)
        require(_called(command), "the address plugin was not run")
        expect(not answer.ok, f"the address plugin failed, and {command} succeeded")
        said = f"{answer.stdout} {answer.stderr}"
        expect("no, says the delegate" in said, f"the address plugin's error is lost: {answer}")


_declare("CHECK", "0.4.0", _ALSO)
_declare("DEL", "0.3.0", _ALSO)
_declare(
    "GC", "1.1.0",
    "Plugins MUST, additionally, forward any GC calls to delegated plugins they are configured to "
    "use",
    "2 GC",
)  # fmt: skip
_declare("STATUS", "1.1.0", "it must also execute a STATUS request to that plugin", "2 STATUS")


@requirement(
    "delegation.gc-attachments", "2 GC", "MUST",
    "the address plugin gets the list of valid attachments",
    "Plugins MUST, additionally, forward any GC calls to delegated plugins",
    kinds=(INTERFACE,), since="1.1.0",
)  # fmt: skip
def gc_attachments(case: Case) -> None:
    attachment = _delegating(case)
    case.gc(attachment, **_CONFIG)
    calls = _called("GC")
    require(calls, "the address plugin was not run, see delegation.gc")
    found = calls[0].stdin.get("cni.dev/valid-attachments")
    wanted = [{"containerID": attachment.container, "ifname": attachment.ifname}]
    expect(found == wanted, f"cni.dev/valid-attachments is {found}, the plugin got {wanted}")


@requirement(
    "delegation.del-without-netns", "2 DEL", "SHOULD",
    "DEL reaches the address plugin when the namespace is gone",
    "the bridge plugin should delegate the DEL action to the IPAM plugin and clean up its own "
    "resources even if the container network namespace ... no longer exist",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def del_without_netns(case: Case) -> None:
    attachment = _delegating(case)
    delegate.forget()
    attachment.remove_netns()
    answer = attachment.delete()
    expect(_called("DEL"), f"the address plugin was not run, and {answer}")


@requirement(
    "delegation.add-error", PROCEDURE, "SHOULD",
    "when the address plugin fails at ADD, it is run again with DEL, and ADD fails and leaves "
    "nothing",
    'If, on ADD, a delegated plugin fails, the "upper" plugin should execute again with DEL '
    "before returning failure.",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def add_error(case: Case) -> None:
    require(case.subject.ipam_type, "the configuration delegates nothing")
    delegate.refuse("ADD", 123, "no, says the delegate")
    attachment = case.attachment(config=_CONFIG)
    answer = attachment.try_add()
    require(_called("ADD"), f"the address plugin was not run, and {answer}")
    expect(not answer.ok, "the address plugin failed, and ADD succeeded")
    expect(not exists(attachment), f"ADD failed, and left {attachment.ifname}")
    expect(_called("DEL"), "the address plugin was not run with DEL")


@requirement(
    "delegation.released", PROCEDURE, "SHOULD",
    "when ADD fails after the address plugin gave an address, the address is released",
    'the "upper" plugin should execute again with DEL before returning failure',
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def released(case: Case) -> None:
    require(case.subject.ipam_type, "the configuration delegates nothing")
    require(case.subject.makes_link, "there is no way to have ADD fail")
    attachment = case.attachment(config=_CONFIG)
    pair = ["link", "add", attachment.ifname, "type", "veth", "peer", "name", "other"]
    host.run(["ip", "-n", attachment.netns, *pair])
    answer = attachment.try_add()
    require(not answer.ok, "ADD succeeded over an interface, see add.interface-exists")
    if _called("ADD"):
        expect(_called("DEL"), f"the address was not released, and {answer}")
