"""The addresses that host-local has handed out: one file each, in the reference's own layout.

`<data dir>/<network>/` holds, byte for byte as the reference writes it, so that both may work on
one directory at the same time:

- `<address>`: who has it, `<container id> CR LF <interface>`; the oldest releases wrote the
  container id only;
- `last_reserved_ip.<n>`: the address last handed out of the n-th range set;
- `lock`: the flock that every operation takes.

`<data dir>/.pycni/<network>.index` is a cache of it (see `lease_index`), outside of what the
reference walks; no network's name begins with a dot.

A lease file appears with its content or not at all. The reference creates and then writes, so a
crash of it leaves an empty file that blocks an address for ever. Under the lock no process is
between the two, so an empty file seen there is such a remnant. An ADD removes it, if it is a plain
file of this user's or root's (and the address not in use: then the disk has lost what was in it);
other operations leave it. Whatever else stands under an address's name keeps that address.
(To keep an address from being handed out, write any text into a file of its name.) Lease files are
not synced: containers do not outlive a power failure, and a lease that does is read as a remnant.

Called by the host-local plugin, and by the command line's view of addresses.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG

from pycni.spec.config import Attachment
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.ip import IPAddress, parse_address
from pycni.spec.names import check_network_name, is_name
from pycni.spec.record import Record
from pycni.state.files import (
    LOCK_TIMEOUT,
    Lock,
    below,
    create_file,
    is_directory,
    open_directory,
    open_or_make_directory,
    read_file,
    remove_file,
    writer_of,
)
from pycni.state.lease_index import BadIndex, DamagedIndex, LeaseIndex, MemoryIndex, holder_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Self

DATA_DIR = "/var/lib/cni/networks"  # unless `dataDir` says otherwise
_LAST_RESERVED = "last_reserved_ip."
_BLANK = b"\0 \t\n\r\v\f"
_MAX_LEASE = 1 << 18  # bytes; a container id may have as many as a variable (MAX_ARG_STRLEN)


class Lease(Record):
    """An address that is taken. ifname is "" in the oldest format; both are "" if not known.

    since: when it was reserved, in seconds since the epoch.
    """

    address: IPAddress
    container_id: str
    ifname: str
    since: float

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container_id, self.ifname)


def _silent(_text: str) -> None:
    return None


def _not_used(_attachment: Attachment) -> bool:
    return False


def _no(_address: IPAddress) -> bool:
    return False


class LeaseStore:
    """The leases of one network, locked for the length of a `with` block.

    data_dir, network: the directory is made if `create` is set; without it, a directory that is not
    there is one without leases, and stays away. timeout: seconds to wait for the lock; cancel: a
    descriptor that is readable once the lock is not wanted any more. note: gets a line of text for
    each repair of the files. gives: whether the caller may give an address, so that an empty file
    of it is in the way; in_use: whether it is in use whatever the files say.
    Raises CNIError: code 5 for what the file system refuses, code 11 when the lock stays taken or
    it was cancelled.
    """

    def __init__(
        self,
        data_dir: str,
        network: str,
        *,
        create: bool = False,
        timeout: float | None = LOCK_TIMEOUT,
        cancel: int | None = None,
        note: Callable[[str], None] = _silent,
        gives: Callable[[IPAddress], bool] = _no,
        in_use: Callable[[IPAddress], bool] = _no,
    ) -> None:
        check_network_name(network)
        self.path = below(data_dir, network)
        self._data_dir = data_dir
        self._network = network
        self._create = create
        self._timeout = timeout
        self._cancel = cancel
        self._note = note
        self._gives = gives
        self._in_use = in_use
        self._dir = -1
        self._lock: Lock | None = None
        self._index: LeaseIndex | MemoryIndex | None = None
        self._walked = False  # the index was made in this block, so it is beyond doubt

    def __enter__(self) -> Self:
        try:
            opened = open_or_make_directory if self._create else open_directory
            self._dir = opened(self.path)
        except FileNotFoundError:
            if self._create:
                raise self._failure(FileNotFoundError(2, "removed while it was made")) from None
            return self
        except OSError as error:
            raise self._failure(error) from None
        lock = Lock(
            "lock",
            dir_fd=self._dir,
            timeout=self._timeout,
            cancel=self._cancel,
            shown_as=f"{self.path}/lock",
        )
        try:
            lock.__enter__()
        except BaseException:
            posix.close(self._dir)
            raise
        self._lock = lock
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._lock is None:
            return
        index, self._index = self._index, None
        try:
            if index is not None:
                if error is None or isinstance(error, CNIError):
                    index.settle(self._dir)
                index.close()
        except OSError:
            pass  # an index without a stamp is made again, at the cost of reading the directory
        finally:
            self._lock.__exit__(None)
            self._lock = None
            posix.close(self._dir)
        if isinstance(error, OSError):
            raise self._failure(error) from None

    # --- questions ---------------------------------------------------------------------------

    def owned(self, attachment: Attachment) -> list[IPAddress]:
        """The addresses of an attachment; leases of the oldest format only if it has no other."""
        return self._held(_content(attachment)) or self._held(attachment.container_id.encode())

    def find(self, attachment: Attachment, likely: Collection[IPAddress] = ()) -> list[IPAddress]:
        """`owned`, also where another program has rewritten files in place, which no index sees.

        likely: addresses that it should have. Reads the directory if there is none, or one more
        than is known.
        """
        owned = self.owned(attachment)
        content = _content(attachment)
        unknown = [
            address
            for address in likely
            if address not in owned and self._content_of(str(address)) == content
        ]
        if owned and not unknown:
            return owned
        self.recheck()
        return self.owned(attachment)

    def holder(self, address: IPAddress) -> Lease | None:
        """The lease of an address, None if it is free."""
        if self._lock is None:
            return None
        return self._lease(address)

    def leases(self) -> list[Lease]:
        """Every lease, in the order of addresses. Reads the whole directory."""
        leases = (self._lease(address) for address, _ in self._files())
        return sorted((lease for lease in leases if lease), key=lambda lease: lease.address)

    def last_reserved(self, range_set: int) -> IPAddress | None:
        """The address last reserved for the range set of this number; None if not known."""
        if self._lock is None:
            return None
        try:
            return parse_address(read_file(_LAST_RESERVED + str(range_set), self._dir).decode())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._note(f"{self.path}/{_LAST_RESERVED}{range_set} is not used: {error}")
            return None

    def next_free(self, family: int, first: int, last: int) -> int | None:
        """The lowest free address of a family (AF_INET, AF_INET6) from `first` to `last`.

        Addresses are numbers. Before None is believed, `recheck` and ask again.
        """
        if self._lock is None:
            return first if first <= last else None
        try:
            return self._opened().next_free(family, first, last)
        except (BadIndex, OSError) as error:
            return self._recover(error).next_free(family, first, last)

    def recheck(self) -> bool:
        """Rebuild the index from the directory; False if it is already known to be right."""
        if self._lock is None or self._walked:
            return False
        self._rebuild()
        return True

    # --- changes -----------------------------------------------------------------------------

    def reserve(self, address: IPAddress, attachment: Attachment, range_set: int) -> bool:
        """Give an address to an attachment; False if it is taken.

        range_set: the number of the range set whose last reserved address it becomes.
        """
        content = _content(attachment)
        self._opened()  # it is judged by the directory as it is before
        if not self._create_lease(address, content):
            number = int(address)
            if self.next_free(address.family, number, number) is not None:  # so it is mistaken
                self.recheck()
            return False
        try:
            self._opened().add(holder_key(content), address)
        except (BadIndex, OSError) as error:
            self._recover(error)
        self._write_last_reserved(address, range_set)
        return True

    def _create_lease(self, address: IPAddress, content: bytes) -> bool:
        """Make the file of an address; False if it is taken."""
        while True:
            try:
                create_file(str(address), content, dir_fd=self._dir)
            except FileExistsError:
                if self._content_of(str(address)) != b"" or not self._clear(address):
                    return False
            else:
                return True

    def release(
        self,
        attachment: Attachment,
        addresses: Collection[IPAddress] | None = None,
        likely: Collection[IPAddress] = (),
    ) -> list[IPAddress]:
        """Free the addresses of an attachment, or those of them that are given; return them.

        likely: as for `find`.
        """
        released, errors = [], []
        for address in self.find(attachment, likely):
            if addresses is not None and address not in addresses:
                continue
            content = self._content_of(str(address)) or b""
            try:
                remove_file(str(address), self._dir)
            except OSError as error:
                errors.append(error)
                continue
            released.append(address)
            try:
                self._opened().remove(holder_key(content), address)
            except (BadIndex, OSError) as error:
                self._recover(error)
        if errors:
            raise errors[0]
        return released

    def collect(
        self,
        keep: Collection[Attachment],
        is_used: Callable[[Attachment], bool] = _not_used,
    ) -> list[Lease]:
        """Free every address whose attachment is not to be kept; return the leases that ended.

        is_used: whether something else speaks for keeping an attachment's.

        A lease of the oldest format stays with any attachment of its container. What names no
        container was written by hand, and stays.
        """
        containers = {attachment.container_id for attachment in keep}
        ended, errors = [], []
        for lease in self.leases():
            if not is_name(lease.container_id) or (
                lease.attachment in keep if lease.ifname else lease.container_id in containers
            ):
                continue
            if lease.ifname and is_used(lease.attachment):
                continue
            try:
                remove_file(str(lease.address), self._dir)
                ended.append(lease)
            except OSError as error:
                errors.append(error)
        if ended:
            self._rebuild()
        if errors:
            raise errors[0]
        return ended

    # --- files ---------------------------------------------------------------------------------

    def _files(self) -> Iterator[tuple[IPAddress, bytes | None]]:
        """Each address that has a file, with its content (None if unreadable); tidies up.

        Names that are no addresses are the lock, the last reserved addresses, what a crash of ours
        left (no other process writes while we hold the lock), and others' files.
        """
        if self._lock is None:
            return
        for name in posix.listdir(self._dir):
            try:
                address = parse_address(name)
            except ValueError:
                if _is_remnant(name):
                    remove_file(name, self._dir)
                continue
            if str(address) != name:
                continue
            content = self._content_of(name)
            if content == b"" and self._clear(address):
                continue
            yield address, content or None

    def _clear(self, address: IPAddress) -> bool:
        """Remove the empty file of an address, if a crash has left it in the caller's way."""
        name = str(address)
        try:
            found = posix.stat(name, dir_fd=self._dir, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if (
            not S_ISREG(found.st_mode)
            or found.st_nlink != 1
            or found.st_uid not in (0, posix.geteuid())
            or not self._gives(address)
        ):
            return False
        if self._in_use(address):
            self._note(
                f"{self.path}/{name} is empty, but the address is set in a network namespace of "
                "this host: it stays taken; remove the file to free it"
            )
            return False
        if remove_file(name, self._dir):
            self._note(
                f"removed {self.path}/{name}: an empty file, left by a crash while the address was "
                "being reserved"
            )
        return True

    def _content_of(self, name: str) -> bytes | None:
        """What is in a file, "" for nothing but blanks and NULs; None if it cannot be read."""
        try:
            return read_file(name, self._dir, _MAX_LEASE).strip(_BLANK)
        except OSError:
            return None

    def _lease(self, address: IPAddress) -> Lease | None:
        try:
            since = posix.stat(str(address), dir_fd=self._dir, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return None
        content = self._content_of(str(address)) or b""
        container_id, _, ifname = content.decode("utf-8", "replace").partition("\r\n")
        return Lease(address, container_id, ifname, since)

    def _held(self, content: bytes) -> list[IPAddress]:
        if self._lock is None:
            return []
        try:
            noted = self._opened().addresses(holder_key(content))
        except (BadIndex, OSError) as error:
            noted = self._recover(error).addresses(holder_key(content))
        held = [address for address in noted if self._content_of(str(address)) == content]
        if len(held) < len(noted) and self.recheck():  # it is mistaken
            return self._held(content)
        return held

    def _write_last_reserved(self, address: IPAddress, range_set: int) -> None:
        """Written in place, which is ten times cheaper: whatever a crash leaves of it is a hint."""
        name = _LAST_RESERVED + str(range_set)
        flags = (
            posix.O_WRONLY | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
        )
        text = str(address).encode()
        try:
            descriptor = posix.open(name, flags, 0o600, dir_fd=self._dir)
            try:
                posix.ftruncate(descriptor, len(text))
                posix.pwrite(descriptor, text, 0)
            finally:
                posix.close(descriptor)
        except OSError as error:
            self._note(f"{self.path}/{name} could not be written: {error.strerror}")

    # --- the index -----------------------------------------------------------------------------

    def _opened(self) -> LeaseIndex | MemoryIndex:
        if self._index is None:
            try:
                descriptor = self._open_index_file()
            except OSError:
                return self._rebuild()
            try:
                self._index = LeaseIndex.load(descriptor, self._dir)
            except (BadIndex, OSError) as error:  # OSError: a FIFO, say
                posix.close(descriptor)
                return self._recover(error)
            if self._index is None:
                posix.close(descriptor)
                return self._rebuild()
        return self._index

    def _recover(self, error: Exception) -> LeaseIndex | MemoryIndex:
        """Rebuild the index after it has failed."""
        if isinstance(error, DamagedIndex):
            self._note(f"the index of {self.path} was damaged ({error}), and is rebuilt")
        return self._rebuild()

    def _rebuild(self) -> LeaseIndex | MemoryIndex:
        """Read the directory into a new index; from memory if no file can be had for it."""
        if self._index is not None:
            self._index.close()
            self._index = None
        holders = [
            (holder_key(content) if content else b"", address) for address, content in self._files()
        ]
        self._walked = True
        self._index = self._build(holders)
        return self._index

    def _build(self, holders: list[tuple[bytes, IPAddress]]) -> LeaseIndex | MemoryIndex:
        try:
            descriptor = self._open_index_file()
        except OSError:
            return MemoryIndex(holders)
        try:
            return LeaseIndex.build(descriptor, holders)
        except (BadIndex, OSError):
            posix.close(descriptor)
            return MemoryIndex(holders)

    def _open_index_file(self) -> int:
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
        folder = open_or_make_directory(below(self._data_dir, ".pycni"), 0o700)
        try:
            return posix.open(self._network + ".index", flags, 0o600, dir_fd=folder)
        finally:
            posix.close(folder)

    def _failure(self, error: OSError) -> CNIError:
        return CNIError(
            IO_FAILURE,
            f"leases of network {self._network}: {error.strerror}: {error.filename or self.path}",
            f'state is kept below {self._data_dir}; "dataDir" of "ipam" names another directory',
        )


def networks(data_dir: str) -> list[str]:
    """The names of the networks that have a directory of leases below a data directory."""
    try:
        with posix.scandir(data_dir) as entries:
            return sorted(
                item.name for item in entries if is_name(item.name) and is_directory(item.path)
            )
    except FileNotFoundError:
        return []


def _is_remnant(name: str) -> bool:
    """Whether a name is a temporary one of a lease's file."""
    if writer_of(name) is None:
        return False
    try:
        parse_address(name.rpartition(".")[0].rpartition(".")[0])
    except ValueError:
        return False
    return True


def _content(attachment: Attachment) -> bytes:
    return f"{attachment.container_id}\r\n{attachment.ifname}".encode("utf-8", "surrogateescape")
