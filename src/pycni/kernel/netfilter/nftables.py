"""nftables through libnftables, the library behind `nft`: rules as text, in one transaction.

Only what takes a compiler goes this way: tables, sets, chains and their rules, the first time
they are needed on a host. It costs the loading of the library, and each call reads all chains and
sets of the host first. Elements, and whatever is read or deleted, go through
`pycni.kernel.netfilter.nfnetlink`.
"""

from __future__ import annotations

import _ctypes
import _thread
import errno
import posix

from pycni.kernel.netfilter.nfnetlink import NetfilterSocket, supported

LIBRARY = "libnftables.so.1"

_KNOWN = (errno.ENOENT, errno.EEXIST, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP)

# select(2) takes descriptors below 1,024, and other threads open some meanwhile.
_CROWDED = 512

# The library keeps names and tables in variables of its own, so one thread at a time is inside.
_lock = _thread.allocate_lock()
_library: int | None = None
_usable: dict[tuple[int, int], bool] = {}


class NftError(OSError):
    """nftables refused commands, or is not there.

    errno: ENOENT (something named is missing), EEXIST, EPERM, EBUSY, EOPNOTSUPP, ENOSYS (no
    library), else EIO; text: the library's own words; commands: what it was given.
    """

    def __init__(self, number: int, text: str, commands: str = "") -> None:
        super().__init__(number, posix.strerror(number))
        self.text = text
        self.commands = commands

    def __str__(self) -> str:
        return f"nftables: {self.text}"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Text(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Int


class _PointerFunction(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Pointer


class _TextFunction(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Text


def run(commands: str) -> None:
    """Carry out commands of nft's language in the calling thread's network namespace.

    They are one transaction: all take effect, or none. Raises NftError.
    """
    library = _load()
    # The library ends the process if it cannot open its socket, or waits for one whose number is
    # too high for select(2), so this finds out before it does.
    try:
        with NetfilterSocket() as netfilter:
            crowded = netfilter.fileno() >= _CROWDED
    except OSError as error:
        raise NftError(error.errno or errno.EIO, f"no netfilter socket: {error}") from None
    with _lock:
        if crowded:
            _run_with_few_descriptors(library, commands)
        else:
            _run(library, commands)


def _run(library: int, commands: str) -> None:
    new = _PointerFunction(_ctypes.dlsym(library, "nft_ctx_new"))
    address = new(_Int(0))
    if not address:
        raise NftError(errno.ENOMEM, "libnftables gave no context")
    context = _Pointer(address)
    try:
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            _Function(_ctypes.dlsym(library, name))(context)
        execute = _Function(_ctypes.dlsym(library, "nft_run_cmd_from_buffer"))
        if execute(context, commands.encode()) != 0:
            said = _TextFunction(_ctypes.dlsym(library, "nft_ctx_get_error_buffer"))(context)
            raise _error((said or b"").decode("utf-8", "replace"), commands)
    finally:
        _Function(_ctypes.dlsym(library, "nft_ctx_free"))(context)


def _run_with_few_descriptors(library: int, commands: str) -> None:
    """Run commands in a thread that has a descriptor table of its own, nearly empty."""
    from pycni.kernel.libc import CLONE_FILES, unshare
    from pycni.kernel.thread import run_apart

    def work() -> None:
        unshare(CLONE_FILES)
        posix.closerange(3, _CROWDED)
        _run(library, commands)

    run_apart(work)


def available() -> bool:
    """Whether the library is there and the kernel has nf_tables in this network namespace."""
    status = posix.stat("/proc/thread-self/ns/net")
    identity = status.st_dev, status.st_ino
    if identity not in _usable:
        _usable[identity] = _probe()
    return _usable[identity]


def _probe() -> bool:
    try:
        _load()
        with NetfilterSocket() as netfilter:
            return supported(netfilter)
    except OSError:
        return False


def _load() -> int:
    global _library  # noqa: PLW0603 - loaded once, when first needed
    if _library is None:
        try:
            _library = _ctypes.dlopen(LIBRARY, 0)
        except OSError as error:
            raise NftError(errno.ENOSYS, f"{LIBRARY} cannot be loaded: {error}") from None
    return _library


def _error(said: str, commands: str) -> NftError:
    """The library's report, without the excerpts of the input below each of its lines."""
    reasons: list[str] = []
    for line in said.splitlines():
        if "Error: " in line:
            reason = line.partition("Error: ")[2].removeprefix("Could not process rule: ")
            if reason not in reasons:
                reasons.append(reason)
    text = "; ".join(reasons) or said.strip() or "refused without a reason"
    number = next((known for known in _KNOWN if posix.strerror(known) in text), errno.EIO)
    return NftError(number, text, commands)
