"""Files that outlive a call: written whole or not at all, and locked.

- `write_file` replaces a file, `create_file` makes one that must not be there yet. At any instant,
  and after a crash at any instant, the name holds the old content, the new content, or (for a new
  file) nothing; never a part.
- `Lock` is an flock, as the reference takes it. It holds between processes and between threads;
  how to wait for one that is taken is in `waiting`.
- A symbolic link as the last component of a path is never followed: a state directory's content
  may have been planted by a user who may write there, and these calls run as root.

Called by the stores of this room and by plugins that keep a state file.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import time
from _stat import S_ISDIR, S_ISLNK, S_ISREG

from pycni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

MAX_NAME = 255  # bytes: NAME_MAX of linux/limits.h
LOCK_TIMEOUT = 60.0  # seconds; runtimes give a whole ADD two to four minutes
MAX_SIZE = 16 * 1024 * 1024  # bytes that `read_file` takes; our largest are results with configs

# O_NONBLOCK: opening a FIFO that was left under the name must not hang.
_READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
_WRITE_NEW = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EXDEV)
_CHUNK = 1 << 16
_NEW = ".new"  # how temporary names end

_queues: dict[tuple[int, int], list[int]] = {}  # see `waiting`


def below(directory: str, name: str) -> str:
    """The path of a name in a directory."""
    return f"{directory}/{name}" if directory and directory[-1] != "/" else directory + name


def is_file_name(name: str) -> bool:
    """Whether a name is no longer than that of a file may be."""
    return len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory and the ones above it, each with `mode` less the umask."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        if not is_directory(path):
            raise
    except FileNotFoundError:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        make_directories(parent, mode)
        make_directories(path, mode)


def is_directory(path: str) -> bool:
    """Whether a path leads to a directory; one that leads nowhere, in whatever way, does not."""
    try:
        return S_ISDIR(posix.stat(path).st_mode)
    except OSError:
        return False


def open_directory(path: str) -> int:
    """Open a directory to work in; the caller closes it.

    A symbolic link is followed if root or this user made it: operators do move state that way.
    """
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    try:
        return posix.open(path, flags | posix.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        made_by = posix.lstat(path)
        if not S_ISLNK(made_by.st_mode) or made_by.st_uid not in (0, posix.geteuid()):
            raise
        return posix.open(path, flags)


def open_or_make_directory(path: str, mode: int = 0o755) -> int:
    """The same for one that is made, with those above it, where it is missing."""
    try:
        return open_directory(path)
    except FileNotFoundError:
        make_directories(path, mode)
        return open_directory(path)


def boot_id() -> str:
    """The id of this host's current boot, which no other host and no other boot has."""
    return read_file("/proc/sys/kernel/random/boot_id").decode().strip()


def read_file(
    name: str, dir_fd: int | None = None, limit: int = MAX_SIZE, *, own: bool = False
) -> bytes:
    """The first `limit` bytes of a plain file; own: only if root or this user made it.

    Raises OSError, also for a FIFO, device or the like, which says nothing of what was written.
    """
    descriptor = posix.open(name, _READ, dir_fd=dir_fd)
    try:
        found = posix.fstat(descriptor)
        if S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, posix.strerror(errno.EISDIR), name)
        if not S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", name)
        if own and found.st_uid not in (0, posix.geteuid()):
            raise PermissionError(errno.EPERM, "it belongs to another user", name)
        data = posix.read(descriptor, min(limit, _CHUNK))
        if len(data) < _CHUNK:  # most files end here, and a second read would be a tenth of it all
            return data
        chunks = [data]
        while data and (limit := limit - len(data)) > 0:
            data = posix.read(descriptor, min(limit, _CHUNK))
            chunks.append(data)
        return b"".join(chunks)
    finally:
        posix.close(descriptor)


def write_file(
    name: str, data: bytes, mode: int = 0o600, *, dir_fd: int | None = None, sync: bool = True
) -> None:
    """Write a file whole, in the place of the one that may be there. Raises OSError.

    mode: less the umask. sync: have it on the disk before it takes the name, which costs a
    millisecond or more; without it a power failure may leave an empty file.
    """
    temporary = _temporary(name)
    _write_new(temporary, data, mode, dir_fd, sync)
    try:
        posix.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        posix.unlink(temporary, dir_fd=dir_fd)
        raise


def create_file(
    name: str, data: bytes, mode: int = 0o600, *, dir_fd: int, sync: bool = False
) -> None:
    """Make a file with its content in one step. Raises FileExistsError if the name is taken.

    The content is written to a file without a name, which a crash leaves nothing of, and then
    linked. File systems without such files get one with a name ending in ".new".
    """
    try:
        descriptor = posix.open(
            ".", posix.O_WRONLY | posix.O_TMPFILE | posix.O_CLOEXEC, mode, dir_fd=dir_fd
        )
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return _create_by_name(name, data, mode, dir_fd, sync)
    try:
        _write_all(descriptor, data, sync)
        # Only linkat follows the link in /proc, and only a directory makes posix.link use it.
        posix.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=dir_fd, follow_symlinks=True)
        return None
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    finally:
        posix.close(descriptor)
    return _create_by_name(name, data, mode, dir_fd, sync)  # /proc is not mounted


def _create_by_name(name: str, data: bytes, mode: int, dir_fd: int, sync: bool) -> None:
    temporary = _temporary(name)
    _write_new(temporary, data, mode, dir_fd, sync)
    try:
        posix.link(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    finally:
        posix.unlink(temporary, dir_fd=dir_fd)


def _temporary(name: str) -> str:
    """A name beside a file's, however long that is; `writer_of` knows it by its end."""
    folder, slash, own = name.rpartition("/")
    end = f".{posix.getpid()}-{posix.urandom(4).hex()}{_NEW}"
    room = MAX_NAME - len(end)
    if len(own) * 4 > room:  # bytes of a character at most
        own = own.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore")
    return f"{folder}{slash}{own}{end}"


def writer_of(name: str) -> int | None:
    """The process that was writing a file of this name, None if it is not a temporary one."""
    if not name.endswith(_NEW):
        return None
    pid, dash, random = name.removesuffix(_NEW).rpartition(".")[2].partition("-")
    return int(pid) if pid.isdecimal() and dash and len(random) == 8 else None


def is_remnant(name: str) -> bool:
    """Whether a file of this name is what a crash left of one that was being written."""
    writer = writer_of(name)
    return writer is not None and not posix.access(f"/proc/{writer}", posix.F_OK)


def remove_file(name: str, dir_fd: int | None = None) -> bool:
    """Remove a file; False if there was none. Raises OSError."""
    try:
        posix.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        # Of a file system that is read-only the kernel says so before it looks for the file.
        if error.errno == errno.EROFS and not _exists(name, dir_fd):
            return False
        raise
    return True


def _exists(name: str, dir_fd: int | None) -> bool:
    try:
        posix.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


class Lock:
    """An exclusive flock on a file, held inside a `with` block and released however that ends.

    name, dir_fd: the file, made with `mode` when missing; timeout: seconds to wait, None for as
    long as it takes; cancel: a descriptor that is readable once the lock is not wanted any more.
    Raises CNIError: code 11 when the time is over or it was cancelled, code 5 when the file cannot
    be opened.
    """

    def __init__(
        self,
        name: str,
        *,
        dir_fd: int | None = None,
        mode: int = 0o750,
        timeout: float | None = None,
        cancel: int | None = None,
        shown_as: str = "",
    ) -> None:
        self._name = name
        self._dir_fd = dir_fd
        self._mode = mode
        self._timeout = timeout
        self._cancel = cancel
        self._path = shown_as or name
        self._descriptor = -1
        self._key = (0, 0)

    def __enter__(self) -> Self:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            self._open()
            try:
                self._acquire(deadline)
                if self._still_names():
                    return self
            except OSError as error:
                posix.close(self._descriptor)
                raise CNIError(IO_FAILURE, f"cannot lock {self._path}: {error.strerror}") from None
            except BaseException:
                posix.close(self._descriptor)
                raise
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        release(self._descriptor, self._key)

    def _open(self) -> None:
        flags = posix.O_RDONLY | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
        try:
            self._descriptor = posix.open(
                self._name, flags | posix.O_NONBLOCK, self._mode, dir_fd=self._dir_fd
            )
        except OSError as error:
            raise CNIError(
                IO_FAILURE,
                f"cannot open the lock {self._path}: {error.strerror}",
                "it must be a plain file that this user may open, or its directory writable",
            ) from None

    def _acquire(self, deadline: float | None) -> None:
        status = posix.fstat(self._descriptor)
        self._key = (status.st_dev, status.st_ino)
        if try_lock(self._descriptor, self._key):
            return
        if not acquire(self._descriptor, f"the lock {self._path}", deadline, self._cancel):
            raise self._busy()

    def _still_names(self) -> bool:
        """Whether the name still leads to the locked file: it may have been removed meanwhile."""
        try:
            named = posix.stat(self._name, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == self._key

    def _busy(self) -> CNIError:
        holder = holder_of_lock(posix.fstat(self._descriptor))
        return CNIError(
            TRY_AGAIN_LATER,
            f"the lock {self._path} is held by {holder}",
            f"waited {self._timeout:g} s; if that process hangs, end it, and try again",
        )


def try_lock(descriptor: int, key: tuple[int, int]) -> bool:
    """Take the flock on an open file, by device and inode, if it is free and not waited for here.

    Raises OSError.
    """
    if key in _queues:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def acquire(descriptor: int, what: str, deadline: float | None, cancel: int | None) -> bool:
    """Wait for an flock that another process or thread holds: see `pycni.state.waiting`."""
    from pycni.state import waiting

    return waiting.acquire(_queues, descriptor, what, deadline, cancel)


def release(descriptor: int, key: tuple[int, int]) -> None:
    """Close a locked file, and let the next in that waits for its lock."""
    posix.close(descriptor)
    if key in _queues:
        from pycni.state.waiting import wake

        wake(_queues, key)


def holder_of_lock(locked: posix.stat_result) -> str:
    """Who holds the flock on a file, in words."""
    device = f"{posix.major(locked.st_dev):02x}:{posix.minor(locked.st_dev):02x}:{locked.st_ino}"
    try:
        lines = read_file("/proc/locks").decode().splitlines()
        # 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
        pid = next(line.split()[4] for line in lines if device in line and "->" not in line)
        name = read_file(f"/proc/{pid}/comm").decode("utf-8", "replace").strip()
    except (OSError, StopIteration, ValueError):
        return "another process"
    return f"process {pid} ({name})"


def _write_new(name: str, data: bytes, mode: int, dir_fd: int | None, sync: bool) -> None:
    descriptor = posix.open(name, _WRITE_NEW, mode, dir_fd=dir_fd)
    try:
        _write_all(descriptor, data, sync)
    except OSError:
        posix.unlink(name, dir_fd=dir_fd)
        raise
    finally:
        posix.close(descriptor)


def _write_all(descriptor: int, data: bytes, sync: bool) -> None:
    while data:
        data = data[posix.write(descriptor, data) :]
    if sync:
        posix.fsync(descriptor)
