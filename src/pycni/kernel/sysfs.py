"""What identifies a link for life: its directory in sysfs.

Its inode is never reused, and stays the same whatever name, index and MAC address the link gets,
and whatever namespace it is moved to. No container can choose it.
"""

from __future__ import annotations

import posix

from pycni.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.kernel.namespace import Namespace

_MOST_DIGITS = 16


def link_inode(found: Link, space: Namespace, home: Namespace) -> int:
    """The inode in sysfs of a link of a namespace; 0 if it cannot be had.

    home: the calling thread's namespace. A link of that name with another index is another one, to
    which a container has given the name.
    """
    try:
        with space.enter(home):
            root = libc.detached_mount("sysfs", libc.MOUNT_ATTR_RDONLY)
    except OSError:  # not root of the machine, or a kernel before 5.2
        return 0
    try:
        return _inode(root, found.name, found.index)
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
