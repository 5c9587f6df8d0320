"""What tells a link from all others for life: its directory in sysfs.

Its inode is never given twice, and stays whatever the link is called, has as index and MAC address,
and whatever namespace it is moved to. No container can choose it.
"""

from __future__ import annotations

import posix

from pycni.kernel import libc

_MOST_DIGITS = 16


def link_inode(name: str, index: int) -> int:
    """The inode of a link of the calling thread's namespace, in sysfs; 0 if that cannot be told.

    index: what it has to have, since a container can have given its name to another.
    """
    try:
        root = libc.detached_mount("sysfs", libc.MOUNT_ATTR_RDONLY)
    except OSError:  # not root of the machine, or a kernel before 5.2
        return 0
    try:
        return _inode(root, name, index)
    except (OSError, ValueError):
        return 0
    finally:
        posix.close(root)


def _inode(root: int, name: str, index: int) -> int:
    directory = posix.open(f"class/net/{name}", posix.O_PATH | posix.O_CLOEXEC, dir_fd=root)
    try:
        file = posix.open("ifindex", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=directory)
        try:
            found = int(posix.read(file, _MOST_DIGITS))
        finally:
            posix.close(file)
        return posix.fstat(directory).st_ino if found == index else 0
    finally:
        posix.close(directory)
