"""What is none of a tenant's business: a folder of root's that must be as it was, and unread.

The kernel reports (inotify) all that is opened, read, written, made or renamed in it, by anyone
it: a plugin, a library in it, or a program that it runs. What is only looked at (stat) shows to the
`witness`.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

FOLDER = Path("/run/elsewhere")
# What its files hold, and nothing else says.
TOKEN = f"canary{secrets.token_hex(6)}"
_FILES = {
    "secret": f"root:{TOKEN}:19000:0:99999:7:::\n",
    "resolv.conf": f"nameserver 203.0.113.53\nsearch {TOKEN}\n",
    "subnet.env": f"FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.1.1/24\nFLANNEL_MTU={TOKEN}\n",
    "debug.json": f'{{"ReportError": "{TOKEN}"}}',
    "leases/net/10.8.0.2": f"{TOKEN}\r\neth0",
    "leases/net/one_eth0.json": f'{{"sysctl": {{"{TOKEN}": "1"}}}}',
    "program": f"#!/bin/sh\necho {TOKEN} | tee {FOLDER}/ran\n",
    "rules.nft": f"add table inet {TOKEN}\n",
}
_EVENTS = 0xFFF  # IN_ALL_EVENTS
_EVENT = struct.Struct("iIII")
_NAMES = {
    0x001: "read", 0x002: "written", 0x004: "changed", 0x008: "closed after writing",
    0x010: "closed", 0x020: "opened", 0x040: "moved away", 0x080: "moved here", 0x100: "made",
    0x200: "removed", 0x400: "removed", 0x800: "moved",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class Canary:
    """The folder, from the beginning of the `with` block to its end; `touched` says by what."""

    def __enter__(self) -> Self:
        shutil.rmtree(FOLDER, ignore_errors=True)
        for name, text in _FILES.items():
            file = FOLDER / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (FOLDER / "program").chmod(0o755)
        (FOLDER / "work").mkdir()
        (FOLDER / "link").symlink_to("secret")
        os.mkfifo(FOLDER / "fifo")
        # Both ends are held, so that anyone who opens it does not wait.
        self._fifo = os.open(FOLDER / "fifo", os.O_RDWR | os.O_NONBLOCK)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(FOLDER / "socket"))
        self._socket.listen()
        self._socket.setblocking(False)
        folders = [FOLDER, *(path for path in FOLDER.rglob("*") if path.is_dir())]
        self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched = {
            _libc.inotify_add_watch(self._watch, os.fsencode(path), _EVENTS): path
            for path in folders
        }
        assert self._watch >= 0
        assert -1 not in self._watched
        self._paths = sorted([*folders, *FOLDER.rglob("*")])
        self._events()
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._watch)
        os.close(self._fifo)
        self._socket.close()
        shutil.rmtree(FOLDER, ignore_errors=True)

    def touched(self) -> Iterator[str]:
        """What was done to it since it was asked before, a sentence each."""
        yield from dict.fromkeys(self._events())
        try:
            self._socket.accept()[0].close()
            yield f"{FOLDER}/socket was connected to"
        except BlockingIOError:
            pass
        try:
            yield f"{FOLDER}/fifo was written to: {os.read(self._fifo, 4096)!r}"
        except BlockingIOError:
            pass
        now = self._look()
        for path in self._paths:
            if now[path] != self._before[path]:
                yield f"{path} is not as before: {self._before[path]}, {now[path]}"
        self._before = now

    def listed(self) -> Iterator[str]:
        """What is there now and was not, or the other way round."""
        for path in {*self._paths} ^ {FOLDER, *FOLDER.rglob("*")}:
            yield f"{path} is new, or gone"
        self._events()

    def _look(self) -> dict[Path, tuple[int, ...]]:
        """Everything that stat says of each path, but for times of last access: see `_events`."""
        found: dict[Path, tuple[int, ...]] = {}
        for path in self._paths:
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                found[path] = ()
                continue
            found[path] = (status.st_ino, status.st_mode, status.st_uid, status.st_nlink,
                           status.st_size, status.st_mtime_ns, status.st_ctime_ns)  # fmt: skip
        return found

    def _events(self) -> list[str]:
        try:
            data = os.read(self._watch, 1 << 16)
        except BlockingIOError:
            return []
        found = []
        while data:
            number, mask, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            data = data[_EVENT.size + length :]
            what = [word for bit, word in _NAMES.items() if mask & bit]
            found.append(f"{self._watched.get(number, '?')}/{name} was {', '.join(what)}")
        return found
