"""The runtime's memory of each attachment: libcni's result cache, in its own files.

CHECK and DEL need the result of the ADD, and often the configuration and arguments it was made
with, long after the caller that made it is gone. `<root>/results/<network>-<container>-<interface>`
holds them as JSON, schema `cniCacheV1`; other runtimes read and write the same files. Before that
schema a file was the bare result, and such files are still read.

Unlike libcni's, files are written whole, so no reader meets half of one, and the parts of a name
are checked, so none leaves the directory. They are not synced, which would take longer than an
attachment does: no container outlives a power failure, and an empty file counts as none. Called by
the runtime.
"""

from __future__ import annotations

import posix

from pycni.spec.config import Attachment
from pycni.spec.errors import DECODING_FAILURE, IO_FAILURE, CNIError
from pycni.spec.jsontext import JSONError, dumps, loads
from pycni.spec.names import check_container_id, check_interface_name, check_network_name
from pycni.spec.record import Record
from pycni.spec.result import Result, decode_result, result_version
from pycni.state.files import (
    below,
    is_remnant,
    open_or_make_directory,
    read_file,
    remove_file,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

ROOT = "/var/lib/cni"
KIND = "cniCacheV1"


class CachedAttachment(Record):
    """What is remembered of one attachment.

    config: the bytes of the network configuration list, None if unknown. netns: the sandbox's path.
    cni_args: pairs of CNI_ARGS. capability_args: what the runtime gave for capabilities.
    result: the last plugin's, as JSON in its own version; None if there is none.
    """

    network: str
    container_id: str
    ifname: str
    config: bytes | None = None
    netns: str = ""
    cni_args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] | None = None
    result: Any = None

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container_id, self.ifname)

    def decoded_result(self) -> Result | None:
        """The result, whatever version it is in; None if there is none. Raises CNIError."""
        if self.result is None:
            return None
        return decode_result(self.result, result_version(self.result))


class ResultCache:
    """The cache below one root directory, `/var/lib/cni` for the runtimes of a host."""

    def __init__(self, root: str = ROOT) -> None:
        self._directory = below(root or ROOT, "results")

    def path(self, network: str, container_id: str, ifname: str) -> str:
        """The file of an attachment. Raises CNIError for a part that cannot be a name."""
        return below(self._directory, _file_name(network, container_id, ifname))

    def write(self, entry: CachedAttachment) -> None:
        """Remember an attachment, in place of what was known of it. Raises CNIError (code 5)."""
        name = _file_name(entry.network, entry.container_id, entry.ifname)
        text = dumps(_encode(entry)).encode()
        try:
            directory = open_or_make_directory(self._directory, 0o700)
            try:
                write_file(name, text, dir_fd=directory, sync=False)
            finally:
                posix.close(directory)
        except OSError as error:
            raise _failure("write", below(self._directory, name), error) from None

    def read(self, network: str, container_id: str, ifname: str) -> CachedAttachment | None:
        """What is remembered; None if nothing is. Raises CNIError (code 6) for a damaged file.

        From a file older than the schema comes an entry that has a result and nothing else.
        """
        path = self.path(network, container_id, ifname)
        try:
            data = read_file(path, own=True)
        except OSError:
            return None
        if not data:
            return None
        try:
            document = loads(data)
        except JSONError as error:
            raise CNIError(
                DECODING_FAILURE,
                f"decoding version from network config: {error}",
                f"{path} is damaged; removing it lets DEL go on without the result",
            ) from None
        if isinstance(document, dict) and document.get("kind") == KIND:
            entry = _decode(document)
            if entry is None:
                raise CNIError(
                    DECODING_FAILURE,
                    f'failed to unmarshal cached network "{network}" config: not a {KIND} object',
                    f"{path} is damaged; removing it lets DEL go on without the result",
                )
            return entry.replace(network=network, container_id=container_id, ifname=ifname)
        return CachedAttachment(network, container_id, ifname, result=document)

    def delete(self, network: str, container_id: str, ifname: str) -> None:
        """Forget an attachment; nothing known of it is no error. Raises CNIError (code 5)."""
        path = self.path(network, container_id, ifname)
        try:
            remove_file(path)
        except OSError as error:
            raise _failure("remove", path, error) from None

    def attachments(self, container_id: str = "", network: str = "") -> list[CachedAttachment]:
        """All that is remembered, or of one container or network, in the order of file names.

        Files that are older than the schema, or damaged, do not say whose they are; they are left
        out, as are those that tell of another attachment than their name does. What a crash left of
        a file that was being written is removed. Raises CNIError (code 5) if the directory cannot
        be read.
        """
        try:
            names = sorted(posix.listdir(self._directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure("read", self._directory, error) from None
        found = []
        for name in names:
            if is_remnant(name):
                self._forget_remnant(name)
                continue
            if container_id and f"-{container_id}-" not in name:
                continue
            if network and not name.startswith(f"{network}-"):
                continue
            try:
                document = loads(read_file(below(self._directory, name), own=True))
            except (OSError, JSONError):
                continue
            if not isinstance(document, dict) or document.get("kind") != KIND:
                continue
            entry = _decode(document)
            if (
                entry is not None
                and _is_named(entry, name)
                and container_id in ("", entry.container_id)
                and network in ("", entry.network)
            ):
                found.append(entry)
        return found

    def _forget_remnant(self, name: str) -> None:
        try:
            remove_file(below(self._directory, name))
        except OSError:
            pass


def _file_name(network: str, container_id: str, ifname: str) -> str:
    """The name of an attachment's file. Raises CNIError for a part that cannot be a name."""
    if not (network and container_id and ifname):
        raise CNIError(
            IO_FAILURE,
            f'cache file path requires network name ("{network}"), container ID '
            f'("{container_id}"), and interface name ("{ifname}")',
        )
    check_network_name(network)
    check_container_id(container_id)
    check_interface_name(ifname)
    return f"{network}-{container_id}-{ifname}"


def _is_named(entry: CachedAttachment, name: str) -> bool:
    """Whether a file of this name is the attachment's that it tells of."""
    try:
        return _file_name(entry.network, entry.container_id, entry.ifname) == name
    except CNIError:
        return False


def _encode(entry: CachedAttachment) -> dict[str, Any]:
    from binascii import b2a_base64

    config = None if entry.config is None else b2a_base64(entry.config, newline=False).decode()
    document: dict[str, Any] = {
        "kind": KIND,
        "containerId": entry.container_id,
        "config": config,
        "ifName": entry.ifname,
        "networkName": entry.network,
    }
    if entry.netns:
        document["netns"] = entry.netns
    if entry.cni_args:
        document["cniArgs"] = [list(pair) for pair in entry.cni_args]
    if entry.capability_args:
        document["capabilityArgs"] = _sorted(entry.capability_args)
    if entry.result is not None:
        document["result"] = _sorted(entry.result)
    return document


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def _decode(document: dict[str, Any]) -> CachedAttachment | None:
    """An entry from JSON; None if a part has the wrong type."""
    from binascii import Error, a2b_base64

    texts = [document.get(key) or "" for key in ("networkName", "containerId", "ifName", "netns")]
    pairs = document.get("cniArgs") or []
    capability_args = document.get("capabilityArgs")
    config = document.get("config")
    if not (
        all(isinstance(text, str) for text in texts)
        and isinstance(pairs, list)
        and all(_is_pair(pair) for pair in pairs)
        and isinstance(capability_args, dict | None)
        and isinstance(config, str | None)
    ):
        return None
    try:
        raw = a2b_base64(config, strict_mode=True) if config else None
    except (Error, ValueError):
        return None
    network, container_id, ifname, netns = texts
    return CachedAttachment(
        network,
        container_id,
        ifname,
        raw,
        netns,
        tuple((key, value) for key, value in pairs),
        capability_args,
        document.get("result"),
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
    )


def _failure(what: str, path: str, error: OSError) -> CNIError:
    return CNIError(
        IO_FAILURE,
        f"cannot {what} {path}: {error.strerror}",
        "the runtime keeps the result of each ADD there",
    )
