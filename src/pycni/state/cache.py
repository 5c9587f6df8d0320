"""The runtime's memory of each attachment: libcni's result cache, in its own files.

CHECK and DEL need the result of the ADD, and often the configuration and arguments it was made
with, long after the caller that made it is gone. `<root>/results/<network>-<container>-<interface>`
holds them as JSON, schema `cniCacheV1`; other runtimes read and write the same files. Before that
schema a file was the bare result, and such files are still read.

Unlike libcni's, files are written whole, so no reader meets half of one, and the parts of a name
are checked, so none leaves the directory. Two attachments may have one such name, as those of
containers `web-1` and `1` to networks `lab` and `lab-web` have: the second one's file then has its
owner's tag behind the name. Where a name is longer than a file's may be, the tag alone is it.
Files are not synced, which would take longer than an attachment does: no container outlives a power
failure, and an empty file counts as none. Called by the runtime.
"""

from __future__ import annotations

import posix
from errno import EACCES, EPERM

from pycni.spec.config import Attachment
from pycni.spec.errors import DECODING_FAILURE, IO_FAILURE, CNIError, is_shortage
from pycni.spec.jsontext import JSONError, dumps, loads
from pycni.spec.names import check_container_id, check_interface_name, check_network_name
from pycni.spec.owner import Owner, tag_of
from pycni.spec.record import Record
from pycni.spec.result import Result, decode_result, result_version
from pycni.state.files import (
    below,
    is_file_name,
    is_remnant,
    open_or_make_directory,
    read_file,
    remove_file,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Any

    Path = str | PathLike[str]

ROOT = "/var/lib/cni"
# Where clients have theirs by default: Multus; kubelet of old, and cri-dockerd.
ROOTS_OF_CLIENTS = ("/var/lib/cni/multus", "/var/lib/cni/cache")
KIND = "cniCacheV1"

_KEYS = ("networkName", "containerId", "ifName")


class CachedAttachment(Record):
    """What is remembered of one attachment.

    config: the bytes of the network configuration list, None if unknown. netns: the sandbox's path,
    which libcni before 1.2.0 has in the result only; "" if unknown. cni_args: pairs of
    CNI_ARGS. capability_args: what the runtime gave for capabilities. result: the last plugin's, as
    JSON in its own version; None if there is none.
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

    @property
    def owner(self) -> Owner:
        return Owner(self.network, self.container_id, self.ifname)

    def decoded_result(self) -> Result | None:
        """The result, whatever version it is in; None if there is none. Raises CNIError."""
        if self.result is None:
            return None
        return decode_result(self.result, result_version(self.result))


class Unreadable(Record):
    """A file of the cache that does not say what is attached, and why it does not."""

    path: str
    reason: str


class ResultCache:
    """The cache below one root directory, `/var/lib/cni` for the runtimes of a host."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = root or ROOT
        self._directory = below(self.root, "results")

    def path(self, network: str, container_id: str, ifname: str) -> str:
        """The file of an attachment, or the one that it would get.

        Raises CNIError for a part that cannot be a name.
        """
        return self._find(network, container_id, ifname)[0]

    def write(self, entry: CachedAttachment) -> None:
        """Remember an attachment, in place of what was known of it. Raises CNIError (code 5)."""
        path = self.path(entry.network, entry.container_id, entry.ifname)
        data = _encode(entry)
        try:
            directory = open_or_make_directory(self._directory, 0o700)
            try:
                write_file(path.rpartition("/")[2], data, dir_fd=directory, sync=False)
            finally:
                posix.close(directory)
        except OSError as error:
            raise _failure("write", path, error) from None

    def read(self, network: str, container_id: str, ifname: str) -> CachedAttachment | None:
        """What is remembered; None if nothing is. Raises CNIError (code 6) for a damaged file.

        From a file older than the schema comes an entry that has a result and nothing else.
        """
        path, data = self._find(network, container_id, ifname)
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

    def _find(self, network: str, container_id: str, ifname: str) -> tuple[str, bytes]:
        """The file of an attachment and what is in it, nothing if it is not there."""
        name = _file_name(network, container_id, ifname)
        path = below(self._directory, name)
        data = self._content(path)
        if data and not _is_anothers(data, (network, container_id, ifname)):
            return path, data
        second = below(self._directory, _second_name(name, Owner(network, container_id, ifname)))
        found = self._content(second)
        return (second, found) if found or data else (path, b"")

    def _content(self, path: str) -> bytes:
        """What a file holds that may be believed. Raises CNIError where that cannot be judged."""
        if not posix.access(path, posix.F_OK):  # as most often, and cheaper than an exception
            self._require_access()
            return b""
        try:
            return read_file(path, own=True)
        except OSError as error:
            if is_shortage(error):
                raise _failure("read", path, error) from error
            return b""

    def _require_access(self) -> None:
        """What cannot be seen is not absent. Raises CNIError (code 5)."""
        if posix.access(self._directory, posix.X_OK):
            return
        try:
            posix.stat(below(self._directory, "."))
        except PermissionError as error:
            raise _failure("look into", self._directory, error) from None
        except OSError:
            pass  # there is no such directory

    def attachments(self, container_id: str = "", network: str = "") -> list[CachedAttachment]:
        """All that is remembered, or of one container or network, in the order of file names.

        Files that do not say whose they are are left out; see `scan`. Raises CNIError (code 5) if
        the directory cannot be read.
        """
        return self.scan(container_id, network)[0]

    def scan(
        self, container_id: str = "", network: str = ""
    ) -> tuple[list[CachedAttachment], list[Unreadable]]:
        """What is remembered, and the files that cannot be believed or read.

        Those are damaged, older than the schema, another user's, or describe another attachment
        than their name does. What a crash left of a file that was being written is removed, and an
        empty one counts as none. Raises CNIError (code 5) if the directory cannot be read.
        """
        try:
            names = sorted(posix.listdir(self._directory))
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise _failure("read", self._directory, error) from None
        entries: list[CachedAttachment] = []
        unreadable: list[Unreadable] = []
        for name in names:
            if is_remnant(name):
                self._forget_remnant(name)
                continue
            if tag_of(name) != name and not (
                name.startswith(f"{network}-" if network else "")
                and (f"-{container_id}-" if container_id else "") in name
            ):
                continue
            path = below(self._directory, name)
            try:
                data = read_file(path, own=True)
                if data:
                    entry = _entry(loads(data), name)
                    if container_id in ("", entry.container_id) and network in ("", entry.network):
                        entries.append(entry)
            except FileNotFoundError:
                continue  # deleted in the meantime
            except OSError as error:
                unreadable.append(Unreadable(path, f"cannot be read: {error.strerror}"))
            except JSONError as error:
                unreadable.append(Unreadable(path, f"is damaged: {error}"))
            except ValueError as error:
                unreadable.append(Unreadable(path, str(error)))
        return entries, unreadable

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
    name = f"{network}-{container_id}-{ifname}"
    return name if is_file_name(name) else Owner(network, container_id, ifname).tag


def _second_name(name: str, owner: Owner) -> str:
    """Where the first is another's."""
    second = f"{name}.{owner.tag}"
    return second if is_file_name(second) else owner.tag


def _is_anothers(data: bytes, attachment: tuple[str, str, str]) -> bool:
    """Whether a file describes another attachment than the one of its name."""
    # As pycni and libcni write it; names need no escapes.
    if all(f'"{key}":"{name}"'.encode() in data for key, name in zip(_KEYS, attachment)):  # noqa: B905
        return False
    try:
        document = loads(data)
    except JSONError:
        return False
    if not isinstance(document, dict) or document.get("kind") != KIND:
        return False
    found = [name for key in _KEYS if isinstance(name := document.get(key), str) and name]
    return found != list(attachment) and "-".join(found) == "-".join(attachment)


def _entry(document: Any, name: str) -> CachedAttachment:
    """The entry in a file of this name. Raises ValueError that says why there is none."""
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ValueError("does not say whose it is: noted by a libcni before 0.8.0, or by others")
    entry = _decode(document)
    if entry is None:
        raise ValueError(f"is damaged: not a {KIND} object")
    if not _is_named(entry, name):
        raise ValueError("describes another attachment than its name")
    return entry


def _is_named(entry: CachedAttachment, name: str) -> bool:
    """Whether a file of this name is the attachment's that it describes."""
    try:
        own = _file_name(entry.network, entry.container_id, entry.ifname)
    except CNIError:
        return False
    return name in (own, _second_name(own, entry.owner))


def _encode(entry: CachedAttachment) -> bytes:
    """An entry as JSON, its keys in libcni's order."""
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
    text = dumps(document)
    if entry.capability_args:
        text = f'{text[:-1]},"capabilityArgs":{dumps(entry.capability_args, sort_keys=True)}}}'
    if entry.result is not None:
        text = f'{text[:-1]},"result":{dumps(entry.result, sort_keys=True)}}}'
    return text.encode()


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
    result = document.get("result")
    return CachedAttachment(
        network,
        container_id,
        ifname,
        raw,
        netns or _sandbox(result, ifname),
        tuple((key, value) for key, value in pairs),
        capability_args,
        result,
    )


def _sandbox(result: Any, ifname: str) -> str:
    """The path of the namespace that a result lists an interface in, "" if it does not."""
    interfaces = result.get("interfaces") if isinstance(result, dict) else None
    for interface in interfaces if isinstance(interfaces, list) else ():
        if isinstance(interface, dict) and interface.get("name") == ifname:
            sandbox = interface.get("sandbox")
            # That of a virtual machine need not be a path (SPEC 1.1.0, "Success").
            if isinstance(sandbox, str) and sandbox.startswith("/"):
                return sandbox
    return ""


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
    )


def roots(given: Path | Sequence[Path] = ()) -> list[str]:
    """The root directories to look through: those given or, without any, the usual one and those
    that well-known clients have on this machine."""
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return [posix.fspath(given)]
    return [posix.fspath(path) for path in given] or [
        ROOT, *(root for root in ROOTS_OF_CLIENTS if posix.access(root, posix.F_OK))
    ]  # fmt: skip


def _failure(what: str, path: str, error: OSError) -> CNIError:
    hint = "the runtime keeps the result of each ADD there"
    if error.errno in (EACCES, EPERM) and posix.geteuid() != 0:
        hint += ", for root alone: run this as root"
    return CNIError(IO_FAILURE, f"cannot {what} {path}: {error.strerror}", hint)
