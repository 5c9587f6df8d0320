"""The keys of a plugin's configuration that the specification itself names.

A plugin declares its own keys in a subclass of `NetConf`. What the runtime adds on the way
(`prevResult`, `runtimeConfig`, the attachments that GC must keep) is read here too.
"""

from __future__ import annotations

from pycni.spec import versions
from pycni.spec.errors import DECODING_FAILURE, INVALID_CONFIG, CNIError
from pycni.spec.jsontext import JSONError, has_key, loads, lookup
from pycni.spec.names import is_name
from pycni.spec.schema import Anything, Config, Flag, ListOf, MapOf, Object, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VALID_ATTACHMENTS = "cni.dev/valid-attachments"
LEGACY_ATTACHMENTS = "cni.dev/attachments"  # what drafts of 1.1.0 called it


class Attachment(Config):
    """One interface of one container: what ADD makes, and what GC's list says to keep."""

    container_id: str = field("containerID", Text(), required=True, doc="the container's id")
    ifname: str = field("ifname", Text(), required=True, doc="the interface's name in it")


class DNS(Config):
    """Name resolution, as a configuration gives it and a result returns it."""

    nameservers: tuple[str, ...] = field(
        "nameservers", ListOf(Text()), (), doc="DNS servers, in order of preference"
    )
    domain: str = field("domain", Text(), "", doc="the local domain")
    search: tuple[str, ...] = field(
        "search", ListOf(Text()), (), doc="domains to search, in order of preference"
    )
    options: tuple[str, ...] = field("options", ListOf(Text()), (), doc="resolver options")


class NetConf(Config):
    """The configuration of one plugin, as it arrives on stdin."""

    cni_version: str = field(
        "cniVersion", Text(), "", doc="version of the specification", default_doc="`0.1.0`"
    )
    name: str = field(
        "name", Text(), "", doc="the network's name, unique on the host", default_doc="required"
    )
    type: str = field(
        "type", Text(), "", doc="the plugin: the name of its executable", default_doc="required"
    )
    capabilities: dict[str, bool] = field(
        "capabilities", MapOf(Flag()), None, doc="runtime settings the plugin wants, by name"
    )
    args: Any = field("args", Anything(), None, doc="free arguments; by convention in `args.cni`")
    runtime_config: Any = field(
        "runtimeConfig",
        Anything(),
        None,
        doc="from the runtime: what it gives for the capabilities",
    )
    ipam: Any = field(
        "ipam", Anything(), None, doc="the address plugin, by its `type`, and its settings"
    )
    dns: DNS | None = field(
        "dns",
        Object(DNS),
        None,
        doc="name resolution for the result, in the place of `ipam`'s if any key is set",
        default_doc="what `ipam` gives",
    )
    prev_result: Any = field(
        "prevResult", Anything(), None, doc="from the runtime: the result of the plugin before"
    )
    log_file: str = field(
        "logFile",
        Text(),
        "",
        doc="file to log calls to, in the log directory or where the administrator allows",
        default_doc="none; stderr with `logLevel`",
    )
    log_level: str = field(
        "logLevel",
        Text(),
        "",
        doc="what to log: `error`, `warning`, `info` or `debug`",
        default_doc="`info` with `logFile`",
    )
    valid_attachments: tuple[Attachment, ...] | None = field(
        VALID_ATTACHMENTS,
        ListOf(Object(Attachment)),
        None,
        doc="from the runtime: what GC must keep",
    )

    @property
    def version(self) -> str:
        """The specification's version that this configuration is written for."""
        return self.cni_version or versions.DEFAULT

    @property
    def ipam_type(self) -> str:
        """The address plugin's name; "" for none."""
        return ipam_type(self.ipam)


def parse_config(data: bytes) -> dict[str, Any]:
    """The configuration on stdin as a JSON object. Raises CNIError (code 6 or 7)."""
    try:
        document = loads(data)
    except JSONError as error:
        raise CNIError(
            DECODING_FAILURE,
            f"error unmarshall network config: {error}",
            "stdin must hold the network configuration as one JSON object",
        ) from None
    if not isinstance(document, dict):
        raise CNIError(
            DECODING_FAILURE,
            "error unmarshall network config: the document is not a JSON object",
            "stdin must hold the network configuration as one JSON object",
        )
    return document


def ipam_type(ipam: Any) -> str:
    """The address plugin that the value of `ipam` names; "" for none."""
    kind = lookup(ipam, "type") if isinstance(ipam, dict) else None
    return kind if isinstance(kind, str) else ""


def network_name(document: Mapping[str, Any]) -> str:
    """The network's name, checked as a plugin must (code 7)."""
    name = lookup(document, "name")
    if name is not None and not isinstance(name, str):
        raise CNIError(DECODING_FAILURE, "error unmarshall network config: name is not a string")
    if not name:
        raise CNIError(
            INVALID_CONFIG, "missing network name", 'the configuration needs "name": the network'
        )
    if not is_name(name):
        raise CNIError(INVALID_CONFIG, "invalid characters found in network name", name)
    return name


def config_version(document: Mapping[str, Any]) -> str:
    """The configuration's version; 0.1.0 where it names none (code 6 if it is not a string)."""
    version = lookup(document, "cniVersion")
    if version is not None and not isinstance(version, str):
        raise CNIError(
            DECODING_FAILURE,
            "decoding version from network config: cniVersion is not a string",
            f"expected one of {', '.join(versions.ALL)}",
        )
    return version or versions.DEFAULT


def valid_attachments(document: Mapping[str, Any]) -> frozenset[Attachment] | None:
    """What GC must keep; None where the runtime did not say, which is not the same as nothing.

    A key whose value is null says nothing is to be kept: libcni sends an empty list so.
    """
    keys = [key for key in (VALID_ATTACHMENTS, LEGACY_ATTACHMENTS) if has_key(document, key)]
    if not keys:
        return None
    listed: Any = next((found for key in keys if (found := lookup(document, key)) is not None), [])
    found = NetConf.decode({VALID_ATTACHMENTS: listed}).valid_attachments or ()
    for item in found:
        if not item.container_id or not item.ifname:
            raise CNIError(
                INVALID_CONFIG,
                f"{VALID_ATTACHMENTS}: an attachment without containerID or ifname",
                f'"{item.container_id}" by "{item.ifname}" is none; nothing has been removed',
            )
    return frozenset(found)
