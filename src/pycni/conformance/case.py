"""What a check works with: the plugin on a fresh host, and attachments of containers there."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pycni.conformance import defaults, delegate, host
from pycni.conformance.requirement import CHAINED, INTERFACE, Broken, NotApplicable
from pycni.conformance.subject import Answer, Subject, call
from pycni.kernel import namespace


class Case:
    """A plugin on a host of its own. Made in a process that called `host.isolate`."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        delegate.install()
        for command in subject.setup:
            host.shell(command, PLUGIN=str(subject.path))

    @property
    def kind(self) -> str:
        return self.subject.kind

    @property
    def makes_link(self) -> bool:
        """Whether ADD makes an interface in the container."""
        return self.kind == INTERFACE and self.subject.makes_link

    def path(self) -> str:
        """CNI_PATH."""
        return ":".join((*self.subject.directories, delegate.DIRECTORY))

    def call(self, command: str, stdin: Mapping[str, Any] | str, **environ: str | None) -> Answer:
        """Call the plugin with just these variables, and CNI_PATH unless it is None."""
        variables = {"CNI_PATH": self.path(), **environ}
        given = {name: value for name, value in variables.items() if value is not None}
        return call(self.subject.path, command, stdin, given)

    def attachment(
        self,
        number: int = 1,
        *,
        ifname: str = "",
        version: str = "",
        config: Mapping[str, Any] | None = None,
        sharing: Attachment | None = None,
    ) -> Attachment:
        """A container with its namespace, to be attached; a chained plugin finds its interface.

        number: which container of the check it is; sharing: another attachment of the same
        container; config: changes to the configuration, by key.
        """
        ifname = ifname or self.subject.ifname
        netns = sharing.netns if sharing else f"c{number}"
        document = {**self.subject.document(number, version), **(config or {})}
        attachment = Attachment(
            self, sharing.container if sharing else f"conformance-{number}", netns, ifname, document
        )
        if sharing is None:
            namespace.create_named(netns).close()
            variables = {"NETNS": netns, "IFNAME": ifname, "N": str(number)}
            for command in self.subject.container_setup:
                host.shell(command, PLUGIN=str(self.subject.path), **variables)
        delegate.give(attachment.container, ifname, number, document["cniVersion"])
        if self.kind == CHAINED:
            attachment.previous = _chained_interface(attachment, number)
        return attachment

    def renew(self, attachment: Attachment, number: int = 1) -> None:
        """What happens between the DEL and a new ADD of a chained plugin: its interface, too."""
        if attachment.previous is not None:
            host.run(["ip", "link", "delete", f"up{number}"], check=False)
            attachment.previous = _chained_interface(attachment, number)

    def network(self, **keys: Any) -> dict[str, Any]:
        """The request configuration for an operation on the network as a whole."""
        return {**self.subject.document(defaults.CONTAINERS), **keys}

    def status(self, **keys: Any) -> Answer:
        """STATUS."""
        return self.call("STATUS", self.network(**keys))

    def gc(self, *keep: Attachment, **keys: Any) -> Answer:
        """GC, with these attachments valid and no others."""
        valid = [{"containerID": item.container, "ifname": item.ifname} for item in keep]
        return self.call("GC", self.network(**{"cni.dev/valid-attachments": valid}, **keys))

    def warm_up(self) -> None:
        """Attach and detach once, so that what attachments share is there."""
        attachment = self.attachment(7)
        attachment.add()
        require(attachment.delete().ok, "a first ADD and DEL did not succeed")


@dataclass
class Attachment:
    """One interface of one container, and the calls about it.

    netns: the name of its namespace; document: the request configuration; previous: the prevResult
    that a chained plugin is given at ADD; result: what ADD answered.
    """

    case: Case
    container: str
    netns: str
    ifname: str
    document: dict[str, Any]
    previous: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    answer: Answer | None = field(default=None, repr=False)

    @property
    def netns_path(self) -> str:
        return f"{namespace.NAMED}/{self.netns}"

    @property
    def version(self) -> str:
        version: str = self.document["cniVersion"]
        return version

    def environ(self, **changes: str | None) -> dict[str, str | None]:
        """The variables of a call; None takes one away."""
        return {
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.netns_path,
            "CNI_IFNAME": self.ifname,
            **changes,
        }

    def run(
        self, command: str, keys: Mapping[str, Any] | None = None, **environ: str | None
    ) -> Answer:
        """One call, however it ends, with prevResult as a runtime gives it.

        keys: changes to the configuration; None as a value takes a key away.
        """
        document = dict(self.document)
        previous = self.previous if command == "ADD" else self.result or self.previous
        if previous is not None:
            document["prevResult"] = previous
        document.update(keys or {})
        document = {key: value for key, value in document.items() if value is not None}
        return self.case.call(command, document, **self.environ(**environ))

    def try_add(self) -> Answer:
        """ADD, however it ends; the result is kept."""
        self.answer = self.run("ADD")
        document = self.answer.document
        if self.answer.ok and isinstance(document, dict):
            self.result = document
        return self.answer

    def add(self) -> dict[str, Any]:
        """ADD, where it is only the beginning of a check: one that fails is judged elsewhere."""
        answer = self.try_add()
        require(self.result is not None, f"ADD is the beginning of this check, and {answer}")
        assert self.result is not None
        return self.result

    def check(self, **keys: Any) -> Answer:
        """CHECK, with the result of ADD."""
        return self.run("CHECK", keys)

    def delete(self, **environ: str | None) -> Answer:
        """DEL, with the result of ADD."""
        return self.run("DEL", None, **environ)

    def remove_netns(self) -> None:
        """Remove the namespace with all that is in it."""
        namespace.delete_named(self.netns)

    def own_ips(self) -> list[dict[str, Any]]:
        """The addresses of the result."""
        return listed(self.result, "ips")

    def interfaces(self) -> list[dict[str, Any]]:
        """The interfaces of the result."""
        return listed(self.result, "interfaces")


def listed(result: Mapping[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The objects in a list of a result, whatever else stands there."""
    found = (result or {}).get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def expect(condition: object, seen: str) -> None:
    """Raise `Broken` unless the condition holds."""
    if not condition:
        raise Broken(seen)


def require(condition: object, reason: str) -> None:
    """Raise `NotApplicable` unless the condition holds."""
    if not condition:
        raise NotApplicable(reason)


def expect_gone(before: host.Snapshot, after: host.Snapshot, what: str) -> None:
    """Raise `Broken` if there is more than before."""
    left = host.appeared(before, after)
    expect(not left, f"{what}: {'; '.join(left)}")


def _chained_interface(attachment: Attachment, number: int) -> dict[str, Any]:
    """Make the interface that the plugin before would have made; return that one's result."""
    outer, netns = f"up{number}", attachment.netns
    address, gateway = f"10.201.0.{number + 1}/16", "10.201.0.1"
    pair = ["ip", "link", "add", outer, "type", "veth", "peer", "name", attachment.ifname]
    host.run([*pair, "netns", netns])
    host.run(["ip", "address", "add", f"{gateway}/32", "dev", outer])
    host.run(["ip", "link", "set", outer, "up"])
    host.run(["ip", "route", "add", address.split("/", maxsplit=1)[0], "dev", outer])
    inside = ["ip", "-n", netns]
    host.run([*inside, "address", "add", address, "dev", attachment.ifname])
    host.run([*inside, "link", "set", attachment.ifname, "up"])
    host.run([*inside, "route", "add", "default", "via", gateway])
    interfaces = [
        {"name": outer, "mac": host.links()[outer]["address"]},
        {
            "name": attachment.ifname,
            "mac": host.links(netns)[attachment.ifname]["address"],
            "sandbox": attachment.netns_path,
        },
    ]
    return delegate.result_document(
        attachment.version, address, gateway, interfaces=interfaces, interface=1
    )


def changed(document: Mapping[str, Any], change: Callable[[Any], None]) -> dict[str, Any]:
    """A deep copy of a document, changed."""
    copied = copy.deepcopy(dict(document))
    change(copied)
    return copied


def exists(attachment: Attachment) -> bool:
    """Whether the attachment's interface is in its namespace."""
    return os.path.exists(attachment.netns_path) and attachment.ifname in host.links(
        attachment.netns
    )
