"""Who holds which address, answered without walking a directory: the cache beside the leases.

The lease files are the truth; this is a hash table over them, in one file that any call may throw
away. Every question costs a few reads of one page, whatever the number of leases, and so does every
change. It holds two kinds of records of 32 bytes, a 16-byte key and a 16-byte value:

- a holder (an attachment, or a container of the old format) and one address it has;
- a node of a tree of bitmaps, 128 bits each. At the lowest level a bit is an address that is taken;
  above, a bit is a node below that is full. The next free address is found by climbing out of full
  nodes, never by trying addresses one by one.

Records are kept in buckets of one page, and the table grows by one bucket at a time (linear
hashing), so no single change pays for all.

When it may be believed. A directory's modification time changes with every name made or removed in
it. After our last change the store *sets* that time to a value in the past (the stamp) and notes it
here: any later writer overwrites the stamp with the time of its own change, and two
changes within one tick of the kernel's clock cannot look the same. Hence: same boot, same directory
(device and inode), modification time equal to the noted stamp: nothing has been made or removed
since. While changes are under way the header holds no stamp, so a crash leaves an index that is not
believed; the pages changed are written at the end, before the stamp. The boot id is compared
because after a power failure some pages may be old.
Header and buckets carry checksums: what was damaged on the disk is not believed either.
What the rule cannot see is a name made or removed without the lock during our own change. Such a
removal leaves an address that looks taken, so the store reads the directory before it says that a
range is full; such a creation is stopped by the file system when the address is reserved.
Nor does it see a file that another program rewrites in place: no file is believed to be a holder's
without a look at it, and a holder that seems to have none is looked for in the directory at DEL.

Used by `pycni.state.leases` only, under its lock.
"""

from __future__ import annotations

import posix
import time
from _socket import AF_INET
from _struct import Struct

from pycni.spec.ip import IPAddress
from pycni.spec.owner import sha512
from pycni.state import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = b"pycniLI3"
_PAGE = 4096
_RECORD = 32
_KEY = 16
_HEAD = 32  # bytes at the start of a bucket: how many records follow, and their checksum
_CAPACITY = (_PAGE - _HEAD) // _RECORD
_LOAD = 48  # records a bucket has on average before another is added
_MAX_SPLITS = 64  # more than that in a row: too many records of one key, the index gives up

_FAN = 128  # bits of a node
_FULL = (1 << _FAN) - 1

# magic, boot id, device, inode, stamp, buckets, records
_HEADER = Struct("<8s36sQQqQQ")
_CHECKSUM = 8  # bytes, behind the header and from the eighth byte of a bucket on
_NO_STAMP = 0
_MAX_LEVEL = 19  # of the tree: 128 bits of an address, 7 of them a level


class BadIndex(Exception):
    """The index is damaged or cannot hold more; the directory must be read instead."""


class DamagedIndex(BadIndex):
    """Something else than this module has written to the index, or the disk has failed."""


class LeaseIndex:
    """The hash table, on an open file that it owns."""

    def __init__(
        self, descriptor: int, boot: bytes, buckets: int, records: int, settled: bool
    ) -> None:
        self._file = descriptor
        self._boot = boot
        self._buckets = buckets
        self._records = records
        self._settled = settled  # the header on file carries a stamp
        self._pages: dict[int, bytes] = {}  # the records of buckets that were read or written
        self._changed: set[int] = set()  # buckets yet to be written to the file

    @classmethod
    def load(cls, descriptor: int, directory: int) -> LeaseIndex | None:
        """The index on a file, if it may be believed for this directory (both open files).

        Raises DamagedIndex.
        """
        header = posix.pread(descriptor, _HEADER.size + _CHECKSUM, 0)
        if len(header) < _HEADER.size + _CHECKSUM:
            return None
        if not header.startswith(_MAGIC):
            if header.strip(b"\0") and not header.startswith(_MAGIC[:-1]):
                raise DamagedIndex("it does not begin as an index does")
            return None
        header, checksum = header[: _HEADER.size], header[_HEADER.size :]
        if checksum != _checksum(header):
            raise DamagedIndex("its header is damaged")
        magic, boot, device, inode, stamp, buckets, records = _HEADER.unpack(header)
        now = posix.fstat(directory)
        if (
            magic != _MAGIC
            or stamp == _NO_STAMP
            or (device, inode, stamp) != (now.st_dev, now.st_ino, now.st_mtime_ns)
            or boot != boot_id()
            or not 0 < buckets < 1 << 40
            or records > buckets * _CAPACITY
        ):
            return None
        return cls(descriptor, boot, buckets, records, settled=True)

    @classmethod
    def build(cls, descriptor: int, holders: list[tuple[bytes, IPAddress]]) -> LeaseIndex:
        """Write a new index: one (holder's key, address) for each lease; no key, no holder."""
        records = [(key, _pack(address)) for key, address in holders if key]
        records += _bitmaps([address for _, address in holders])
        buckets = max(1, len(records) // _LOAD)
        pages: list[list[bytes]] = [[] for _ in range(buckets)]
        spilled = []
        for key, value in records:
            page = pages[_bucket(key, buckets)]
            if len(page) < _CAPACITY:
                page.append(key + value)
            else:
                spilled.append((key, value))
        posix.ftruncate(descriptor, 0)
        index = cls(descriptor, boot_id(), buckets, len(records) - len(spilled), settled=False)
        data = bytes(_PAGE) + b"".join(
            _page(bucket, b"".join(page)) for bucket, page in enumerate(pages)
        )
        view, offset = memoryview(data), 0
        while offset < len(data):
            offset += posix.pwrite(descriptor, view[offset:], offset)
        for key, value in spilled:
            index._insert(key, value)
        return index

    def close(self) -> None:
        posix.close(self._file)

    # --- questions and changes ---------------------------------------------------------------

    def addresses(self, holder: bytes) -> list[IPAddress]:
        """The addresses noted for a holder's key."""
        return [_unpack(value) for value in self._values(holder)]

    def add(self, holder: bytes, address: IPAddress) -> None:
        """Note that an address is taken, and by whom; an empty key if that is not known."""
        self._unsettle()
        if holder:
            self._insert(holder, _pack(address))
        self._set_bit(address.family, 0, int(address))

    def remove(self, holder: bytes, address: IPAddress) -> None:
        """Note that an address is free again."""
        self._unsettle()
        if holder:
            self._delete(holder, _pack(address))
        self._clear_bit(address.family, 0, int(address))

    def next_free(self, family: int, first: int, last: int) -> int | None:
        """The lowest address from `first` to `last` that is not noted as taken, as a number."""
        found = self._next_clear(family, 0, first)
        return found if found <= last else None

    def settle(self, directory: int) -> None:
        """Stamp the directory and note the stamp: from here on the index may be believed."""
        if self._settled:
            return
        for bucket in self._changed:
            posix.pwrite(self._file, _page(bucket, self._pages[bucket]), _PAGE * (bucket + 1))
        self._changed.clear()
        # At least two seconds back, for file systems that keep whole seconds only; and unlike any
        # stamp before it.
        stamp = time.time_ns() - 2_000_000_000 - int.from_bytes(posix.urandom(4), "big")
        posix.utime(directory, ns=(stamp, stamp))
        now = posix.fstat(directory)
        self._write_header(now.st_dev, now.st_ino, now.st_mtime_ns)
        self._settled = True

    def _unsettle(self) -> None:
        if self._settled:
            self._write_header(0, 0, _NO_STAMP)
            self._settled = False

    def _write_header(self, device: int, inode: int, stamp: int) -> None:
        header = _HEADER.pack(
            _MAGIC, self._boot, device, inode, stamp, self._buckets, self._records
        )
        posix.pwrite(self._file, header + _checksum(header), 0)

    # --- the tree of bitmaps -------------------------------------------------------------------

    def _next_clear(self, family: int, level: int, position: int) -> int:
        """The first clear bit of a level at or after a position."""
        node, bit = divmod(position, _FAN)
        bits = self._node(_node_key(family, level, node))
        clear = ~bits & _FULL & -(1 << bit)
        if not clear:
            if level > _MAX_LEVEL:
                raise BadIndex("the tree has no end")
            node = self._next_clear(family, level + 1, node + 1)
            clear = ~self._node(_node_key(family, level, node)) & _FULL
            if not clear:
                raise BadIndex("a node is full and its parent does not know")
        return node * _FAN + (clear & -clear).bit_length() - 1

    def _set_bit(self, family: int, level: int, position: int) -> None:
        node, bit = divmod(position, _FAN)
        key = _node_key(family, level, node)
        old = self._node(key)
        new = old | 1 << bit
        self._change_node(key, old, new)
        if old != new == _FULL:
            self._set_bit(family, level + 1, node)

    def _clear_bit(self, family: int, level: int, position: int) -> None:
        node, bit = divmod(position, _FAN)
        key = _node_key(family, level, node)
        old = self._node(key)
        new = old & ~(1 << bit)
        self._change_node(key, old, new)
        if old == _FULL != new:
            self._clear_bit(family, level + 1, node)

    def _change_node(self, key: bytes, old: int, new: int) -> None:
        if old == new:
            return
        if not old:
            self._insert(key, new.to_bytes(16, "big"))
        elif not new:
            self._delete(key, old.to_bytes(16, "big"))
        else:
            self._replace(key, old.to_bytes(16, "big"), new.to_bytes(16, "big"))

    def _node(self, key: bytes) -> int:
        for value in self._values(key):
            return int.from_bytes(value, "big")
        return 0

    # --- the hash table ------------------------------------------------------------------------

    def _values(self, key: bytes) -> Iterator[bytes]:
        records = self._read(_bucket(key, self._buckets))
        for offset in _matches(records, key):
            yield records[offset + _KEY : offset + _RECORD]

    def _insert(self, key: bytes, value: bytes) -> None:
        for _ in range(_MAX_SPLITS):
            bucket = _bucket(key, self._buckets)
            records = self._read(bucket)
            if len(records) < _CAPACITY * _RECORD:
                break
            self._split()
        else:
            raise BadIndex("too many records of one key")
        self._write(bucket, records + key + value)
        self._records += 1
        if self._records > self._buckets * _LOAD:
            self._split()

    def _replace(self, key: bytes, old: bytes, new: bytes) -> bool:
        bucket = _bucket(key, self._buckets)
        records = self._read(bucket)
        for offset in _matches(records, key + old):
            record = key + new if new else b""
            self._write(bucket, records[:offset] + record + records[offset + _RECORD :])
            return True
        return False

    def _delete(self, key: bytes, value: bytes) -> None:
        if self._replace(key, value, b""):
            self._records = max(0, self._records - 1)

    def _split(self) -> None:
        """Add a bucket, and move to it what now belongs there: all of it is in one other bucket."""
        new = self._buckets
        old = new - (1 << (new.bit_length() - 1))
        records = self._read(old)
        stay, move = b"", b""
        for offset in range(0, len(records), _RECORD):
            record = records[offset : offset + _RECORD]
            if _bucket(record[:_KEY], new + 1) == new:
                move += record
            else:
                stay += record
        self._write(new, move)
        self._write(old, stay)
        self._buckets += 1

    def _read(self, bucket: int) -> bytes:
        known = self._pages.get(bucket)
        if known is not None:
            return known
        page = posix.pread(self._file, _PAGE, _PAGE * (bucket + 1))
        if len(page) != _PAGE or page[0] > _CAPACITY:
            raise DamagedIndex("a page is damaged")
        records = page[_HEAD : _HEAD + page[0] * _RECORD]
        if page[_CHECKSUM : 2 * _CHECKSUM] != _checksum_of_page(bucket, records):
            raise DamagedIndex("a page is damaged")
        self._pages[bucket] = records
        return records

    def _write(self, bucket: int, records: bytes) -> None:
        self._pages[bucket] = records
        self._changed.add(bucket)


class MemoryIndex:
    """The same answers from memory, for one call: where the table cannot be kept in a file."""

    def __init__(self, holders: list[tuple[bytes, IPAddress]]) -> None:
        self._held: dict[bytes, list[IPAddress]] = {}
        self._taken = {address for _, address in holders}
        for holder, address in holders:
            self._held.setdefault(holder, []).append(address)

    def addresses(self, holder: bytes) -> list[IPAddress]:
        return list(self._held.get(holder, ()))

    def add(self, holder: bytes, address: IPAddress) -> None:
        self._held.setdefault(holder, []).append(address)
        self._taken.add(address)

    def remove(self, holder: bytes, address: IPAddress) -> None:
        self._held[holder].remove(address)
        self._taken.discard(address)

    def next_free(self, family: int, first: int, last: int) -> int | None:
        while first <= last and IPAddress.from_int(first, family) in self._taken:
            first += 1
        return first if first <= last else None

    def settle(self, directory: int) -> None:
        pass

    def close(self) -> None:
        pass


def holder_key(content: bytes) -> bytes:
    """The key of the holder in a lease file with this content."""
    return _digest(b"holder " + content)


def boot_id() -> bytes:
    """This boot's id as 36 bytes, see `files`."""
    if not _boot_ids:
        _boot_ids.append(files.boot_id().encode())
    return _boot_ids[0]


_boot_ids: list[bytes] = []  # once read, the only one


def _bitmaps(taken: list[IPAddress]) -> list[tuple[bytes, bytes]]:
    """The records of the bitmap nodes in which these addresses are taken."""
    records = []
    level = 0
    positions = [(address.family, int(address)) for address in taken]
    while positions:
        nodes: dict[tuple[int, int], int] = {}
        for family, position in positions:
            node, bit = divmod(position, _FAN)
            nodes[family, node] = nodes.get((family, node), 0) | 1 << bit
        positions = []
        for (family, node), bits in nodes.items():
            records.append((_node_key(family, level, node), bits.to_bytes(16, "big")))
            if bits == _FULL:
                positions.append((family, node))
        level += 1
    return records


def _node_key(family: int, level: int, node: int) -> bytes:
    return _digest(b"node %d %d %d" % (4 if family == AF_INET else 6, level, node))


def _digest(text: bytes) -> bytes:
    digest: bytes = sha512(text).digest()
    return digest[:_KEY]


def _bucket(key: bytes, buckets: int) -> int:
    """Linear hashing: the low bits of the key, one bit fewer where that bucket is not there yet."""
    bits = (buckets - 1).bit_length()
    bucket = int.from_bytes(key[:8], "big") & ((1 << bits) - 1)
    return bucket if bucket < buckets else bucket - (1 << (bits - 1))


def _matches(records: bytes, prefix: bytes) -> Iterator[int]:
    offset = records.find(prefix)
    while offset >= 0:
        if offset % _RECORD == 0:
            yield offset
        offset = records.find(prefix, offset + 1)


def _page(bucket: int, records: bytes) -> bytes:
    count = bytes((len(records) // _RECORD,)).ljust(_CHECKSUM, b"\0")
    head = (count + _checksum_of_page(bucket, records)).ljust(_HEAD, b"\0")
    return (head + records).ljust(_PAGE, b"\0")


def _checksum_of_page(bucket: int, records: bytes) -> bytes:
    """With its place: a sound page in another's place is damage too."""
    return _checksum(b"%d " % bucket + records)


def _checksum(data: bytes) -> bytes:
    return _digest(data)[:_CHECKSUM]


def _pack(address: IPAddress) -> bytes:
    """An address as 16 bytes; IPv4 as IPv6 maps it, which no lease has as IPv6."""
    return address.packed if not address.is_ipv4 else bytes(10) + b"\xff\xff" + address.packed


def _unpack(value: bytes) -> IPAddress:
    return IPAddress(value[12:] if value.startswith(bytes(10) + b"\xff\xff") else value)
