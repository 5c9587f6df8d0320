"""The node's own notes of attachments: their identities, and one lock for each of them.

    /run/pycni/attachments/<owner's tag>                     identity, `pycni.spec.identity`
    /run/pycni/addresses/<network's tag>-<address>           link to its attachment's tag

They are in /run, since what they describe does not outlive the machine's start either. The file of
an attachment is its lock as well: an operation on it holds an flock on it, across processes. An
empty one was made by an ADD that is under way, or was killed; other operations write into what they
make. Called by the SDK for every plugin, by the runtime, and by host-local.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import time
from _thread import get_ident

from pycni.spec.errors import (
    INVALID_ENVIRONMENT,
    IO_FAILURE,
    NEEDS_ROOT,
    TRY_AGAIN_LATER,
    CNIError,
)
from pycni.spec.identity import decode, encode
from pycni.spec.owner import network_tag
from pycni.state.files import (
    LOCK_TIMEOUT,
    acquire,
    holder_of_lock,
    make_directories,
    read_file,
    release,
    remove_file,
    try_lock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from pycni.spec.identity import Identity, NetnsID
    from pycni.spec.owner import Owner
    from pycni.state.masters import MasterNote
    from pycni.state.sandboxes import SandboxLock

# In a delegated plugin's environment: the tag of the attachment that its caller has locked.
HELD = "PYCNI_ATTACHMENT_HELD"

DIRECTORY = "/run/pycni/attachments"
ADDRESSES = "/run/pycni/addresses"

_LIMIT = 1 << 18  # bytes of one identity
_NO_ADD = b"{}\n"  # of a file that another operation made: nothing was attached under it
_OPEN = posix.O_RDWR | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
_MAKE = _OPEN | posix.O_CREAT | posix.O_EXCL


class _NothingNoted(Exception):
    """There is no file, and none can be made: nothing is noted here."""

    def __init__(self, reason: OSError) -> None:
        self.reason = reason


class AttachmentLock:
    """One attachment, for one operation at a time, during a `with` block.

    owner: whose it is; adding: for an ADD, which fails where nothing can be noted; deleting: for a
    DEL, which goes on all the same, and reports `problem`; lockless: the caller's caller has the
    lock, nothing is noted here; timeout: seconds to wait for another operation; cancel: a
    descriptor that is readable once this one is cancelled. identity: what is noted, None for
    nothing; is_known: whether there was a file of an ADD before; is_unfinished: whether that ADD
    was killed before it noted anything. A thread that has the lock gets the same object again.
    Raises CNIError: code 11 when the time is over or it was cancelled, code 5 or 4 if what is noted
    cannot be read or written.
    """

    _held: ClassVar[dict[tuple[int, str], AttachmentLock]] = {}

    def __init__(
        self,
        owner: Owner,
        *,
        adding: bool = False,
        deleting: bool = False,
        lockless: bool = False,
        timeout: float = LOCK_TIMEOUT,
        cancel: int | None = None,
    ) -> None:
        self.owner = owner
        self.identity: Identity | None = None
        self.is_known = False
        self.is_unfinished = False
        self.problem: CNIError | None = None
        self._path = path_of(owner.tag)
        self._adding = adding
        self._deleting = deleting
        self._outer: AttachmentLock | None = None  # which the thread has already
        self._befores: list[Identity | None] = []  # at the start of each block, the outer first
        self._timeout = timeout
        self._cancel = cancel
        self._lockless = lockless
        self._key = get_ident(), owner.tag
        self._descriptor = -1
        self._inode = (0, 0)
        self._data = b""  # what the file has
        self._others: Identity | None = None  # what another host has noted

    def __enter__(self) -> AttachmentLock:
        outer = self._held.get(self._key)
        if outer is not None:
            outer._befores.append(outer.identity)
            self._outer = outer
            return outer
        if self._lockless:
            self.identity = read(self.owner.tag)
            return self
        try:
            self._look(self._lock())
        except _NothingNoted as nothing:
            if self._adding:
                raise self._failure(nothing.reason) from None
            return self
        except OSError as error:
            if self._descriptor >= 0:
                self._unlock()
            elif not self.is_known:
                self._discard()
            self.problem = self._failure(error)
            if self._deleting:
                return self
            raise self.problem from None
        self._befores = [self.identity]
        self._held[self._key] = self
        return self

    def __exit__(self, *_: object) -> None:
        (self._outer or self).close()

    def write(self, identity: Identity) -> None:
        """Note an identity in place of the one before. Raises CNIError (code 5)."""
        if self._descriptor < 0:
            return
        before = self._addresses
        try:
            self._put(encode(identity))
            self.identity = identity
            self._release(address for address in before if address not in identity.addresses)
            for address in identity.addresses:
                if address not in before:
                    self._claim(address)
        except OSError as error:
            raise self._failure(error) from None

    def remove(self) -> None:
        """Forget the attachment. Raises CNIError (code 5); then it is still noted."""
        if self._descriptor < 0 or self._is_others:
            return
        try:
            self._release(self._addresses)
            remove_file(self._path)
        except OSError as error:
            raise self._failure(error) from None
        self.identity = None
        self._unlock()

    def revert(self) -> None:
        """Note again what was noted when the block began: what came since is taken back."""
        if not self._befores or self.identity == self._befores[-1]:
            return
        before = self._befores[-1]
        try:
            if before is not None:
                self.write(before)
            elif self._others is not None:
                self.write(self._others)
                self.identity = None
            elif len(self._befores) > 1:
                self.start_over()
            else:
                self.remove()
        except CNIError:
            pass  # the failure that led here is the one to report

    def keep(self) -> None:
        """Have `revert` leave what is noted now, or that an ADD has begun."""
        self._befores = [self.identity for _ in self._befores]
        self.is_known = True

    def disregard(self) -> None:
        """Take what is noted for nothing, and leave it: it is not about this host."""
        self._others = self.identity
        self.identity = None
        self._befores = [None for _ in self._befores]

    @property
    def _addresses(self) -> tuple[str, ...]:
        return () if self.identity is None else self.identity.addresses

    @property
    def _is_others(self) -> bool:
        return self._others is not None and self.identity is None

    def start_over(self) -> None:
        """Forget what is noted, but keep the lock: an ADD takes the place of what is gone."""
        if self._descriptor >= 0:
            try:
                self._release(self._addresses)
                posix.ftruncate(self._descriptor, 0)
            except OSError as error:
                raise self._failure(error) from None
        self._data = b""
        self.identity = None
        self._befores = [None for _ in self._befores]

    def lock_sandbox(self, device: int, inode: int) -> SandboxLock:
        """A context manager: no other operation that locks a network namespace, meanwhile."""
        from pycni.state.sandboxes import SandboxLock  # few plugins need it

        return SandboxLock(device, inode, self._cancel)

    def lock_master(self, netns: NetnsID, index: int) -> MasterNote:
        """A context manager: no other ADD notes the mode of a link's ipvlans, meanwhile."""
        from pycni.state.masters import MasterNote  # for ipvlan alone

        return MasterNote(netns, index, self._cancel)

    def close(self) -> None:
        """Let the next operation in; a file that an operation made and left empty goes."""
        if len(self._befores) > 1:
            self._befores.pop()
            return
        if self._descriptor < 0:
            return
        if self.identity is None and not self.is_known:
            self._discard()
        self._unlock()

    def _lock(self) -> int:
        """Lock the file, made if it is missing; returns its size. Raises OSError, CNIError."""
        deadline = 0.0
        while True:
            descriptor = self._open()
            try:
                found = posix.fstat(descriptor)
                self._inode = (found.st_dev, found.st_ino)
                if not try_lock(descriptor, self._inode):
                    deadline = deadline or time.monotonic() + self._timeout
                    what = f"another operation on {_words(self.owner)}"
                    if not acquire(descriptor, what, deadline, self._cancel):
                        raise self._busy(descriptor)
                found = posix.fstat(descriptor)
                if found.st_nlink:
                    self._descriptor = descriptor
                    return found.st_size
            finally:
                if self._descriptor < 0:
                    release(descriptor, self._inode)

    def _look(self, size: int) -> None:
        """Read what the locked file has. Raises OSError."""
        if not size:
            self.is_unfinished = self.is_known
            if not (self.is_known or self._adding):
                try:
                    self._put(_NO_ADD)
                except OSError:
                    pass  # a full file system, on which no ADD can note anything either
            return
        self._data = posix.pread(self._descriptor, min(size, _LIMIT), 0)
        identity = decode(self._data)
        if identity is not None and identity.owner == self.owner:
            self.identity = identity
        elif self._data == _NO_ADD:  # of an operation that was killed
            self.is_known = False
            if self._adding:
                posix.ftruncate(self._descriptor, 0)
                self._data = b""

    def _open(self) -> int:
        """Open the file, or make it: an ADD most often makes it, all others find it."""
        self.is_known = not self._adding
        while True:
            try:
                return posix.open(self._path, _OPEN if self.is_known else _MAKE, 0o600)
            except FileExistsError:
                self.is_known = True
            except FileNotFoundError:
                if not self.is_known:
                    self._make_directory()
                self.is_known = False
            except OSError as error:
                if self.is_known:
                    raise
                raise _NothingNoted(error) from None

    def _put(self, data: bytes) -> None:
        """Replace what the file has by what is whole at any instant. Raises OSError.

        `read` takes no lock, and a kill may come at any time: so nothing is cut off afterwards,
        but blanks take the place of what was longer.
        """
        data = data.ljust(len(self._data))
        if posix.pwrite(self._descriptor, data, 0) < len(data):  # the file system is full
            posix.pwrite(self._descriptor, self._data, 0)
            posix.ftruncate(self._descriptor, len(self._data))
            raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))
        self._data = data

    def _release(self, addresses: Iterable[str]) -> None:
        """Have addresses lead nowhere, but for those that another one has by now."""
        for address in addresses:
            if holder(self.owner.network, address) == self.owner.tag:
                remove_file(_address_path(self.owner.network, address))

    def _make_directory(self) -> None:
        try:
            make_directories(DIRECTORY, 0o700)
        except OSError as error:
            raise _NothingNoted(error) from None

    def _discard(self) -> None:
        try:
            remove_file(self._path)
        except OSError:
            pass  # it is empty, and counts as an ADD that was killed

    def _unlock(self) -> None:
        self._held.pop(self._key, None)
        release(self._descriptor, self._inode)
        self._descriptor = -1

    def _claim(self, address: str) -> None:
        """Have an address lead to its holder, in place of an earlier one."""
        path = _address_path(self.owner.network, address)
        while True:
            try:
                posix.symlink(self.owner.tag, path)
                return
            except FileNotFoundError:
                make_directories(ADDRESSES, 0o700)
            except FileExistsError:
                remove_file(path)

    def _busy(self, descriptor: int) -> CNIError:
        return CNIError(
            TRY_AGAIN_LATER,
            f"another operation on {_words(self.owner)} is under way, by "
            f"{holder_of_lock(posix.fstat(descriptor))}",
            f"waited {self._timeout:g} s; if that process hangs, end it, and try again",
        )

    def _failure(self, error: OSError) -> CNIError:
        if error.errno in (errno.EACCES, errno.EPERM):
            code, hint = INVALID_ENVIRONMENT, NEEDS_ROOT
        else:
            code, hint = IO_FAILURE, "what was made is recognized by that note; see its file system"
        return CNIError(
            code, f"cannot note {_words(self.owner)} in {self._path}: {error.strerror}", hint
        )


def path_of(tag: str) -> str:
    """The file of an attachment, by its owner's tag."""
    return f"{DIRECTORY}/{tag}"


def remove_files(identity: Identity | None, by: str = "") -> list[CNIError]:
    """Remove what plugins keep for a DEL that is not needed. Returns what failed.

    by: a plugin at its own DEL, which leaves what is its own, and what awaits another's DEL.
    """
    failures = []
    for part in identity.parts if identity is not None else ():
        if by and (part.plugin == by or part.awaits_delete):
            continue
        for path in part.files:
            try:
                remove_file(path)
            except OSError as error:
                failures.append(CNIError(IO_FAILURE, f"cannot remove {path}: {error.strerror}"))
    return failures


def is_held(tag: str) -> bool:
    """Whether the calling thread has the lock of the attachment with an owner's tag."""
    return (get_ident(), tag) in AttachmentLock._held


def is_noted(tag: str) -> bool:
    """Whether there is an attachment with an owner's tag, or an ADD of it under way."""
    return posix.access(path_of(tag), posix.F_OK)


def remove_abandoned(tag: str) -> None:
    """Remove a file that notes nothing, with the links to it; not one of an ADD under way.

    It is empty, for instance, since an ADD was killed, or it is damaged.
    """
    try:
        descriptor = posix.open(path_of(tag), _OPEN)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not posix.fstat(descriptor).st_nlink:
            return  # an ADD has made another since
        identity = decode(posix.pread(descriptor, _LIMIT, 0))
        if identity is None or identity.owner.tag != tag:
            _remove_links(tag)
            remove_file(path_of(tag))
    except OSError:
        pass  # an operation is at work on it
    finally:
        posix.close(descriptor)


def _remove_links(tag: str) -> None:
    """Remove the links of addresses that lead to an attachment of which nothing is known."""
    try:
        names = posix.listdir(ADDRESSES)
    except FileNotFoundError:
        return
    for name in names:
        path = f"{ADDRESSES}/{name}"
        if name.startswith(tag.partition("-")[0]) and posix.readlink(path) == tag:
            remove_file(path)


def read(tag: str) -> Identity | None:
    """What is noted of an attachment, without its lock; None for nothing."""
    if not is_noted(tag):  # as most often, and cheaper than an exception
        return None
    try:
        return decode(read_file(path_of(tag), None, _LIMIT, own=True))
    except OSError:
        return None


def tags(network: str = "") -> list[str]:
    """The tags of all attachments that are noted, or of a network's, in order."""
    prefix = f"{network_tag(network)}-" if network else ""
    try:
        return sorted(name for name in posix.listdir(DIRECTORY) if name.startswith(prefix))
    except OSError:
        return []


def holder(network: str, address: str) -> str:
    """The tag of the attachment that has an address of a network, "" if none is noted."""
    try:
        return posix.readlink(_address_path(network, address))
    except OSError:
        return ""


def _address_path(network: str, address: str) -> str:
    return f"{ADDRESSES}/{network_tag(network)}-{address}"


def _words(owner: Owner) -> str:
    return f"the attachment of {owner.container_id} to {owner.network} by {owner.ifname}"
