"""Network namespaces with names, as `ip netns` makes them.

    with temporary() as netns:
        network.add("web-1", netns)

For programs that run containers.
"""

from __future__ import annotations

import os

from pycni.kernel import namespace
from pycni.runtime import operation
from pycni.spec.errors import ALREADY_EXISTS, INVALID_ENVIRONMENT, INVALID_NETNS, CNIError

DIRECTORY = namespace.NAMED


def create(name: str) -> str:
    """Make a namespace, whose interfaces are a loopback that is down; returns its path.

    Raises CNIError: code 101 if the name is taken.
    """
    try:
        operation.run(
            lambda _: namespace.create_named(name).close(),
            {},
            undo=lambda _: namespace.delete_named(name),
        )
    except FileExistsError:
        raise CNIError(
            ALREADY_EXISTS,
            f"the network namespace {name} exists already",
            f"see {DIRECTORY}; take another name, or delete that one first",
        ) from None
    except (OSError, ValueError) as error:
        raise _failure("make", name, error) from error
    return path(name)


def delete(name: str) -> None:
    """Remove a namespace; the kernel frees it when no process is in it any more.

    Raises CNIError: code 8 if there is none of this name.
    """
    try:
        operation.run(lambda _: namespace.delete_named(name), {})
    except namespace.NamespaceNotFound:
        raise CNIError(
            INVALID_NETNS, f"there is no network namespace {name}", f"see {DIRECTORY}"
        ) from None
    except (OSError, ValueError) as error:
        raise _failure("delete", name, error) from error


def path(name: str) -> str:
    """The path of a namespace, which runtimes and plugins know it by."""
    return f"{DIRECTORY}/{name}"


def resolve(netns: str) -> str:
    """The absolute path of a namespace that a user named; a mere name is one of `ip netns`."""
    if "/" not in netns and not os.path.exists(netns):
        return path(netns)
    return os.path.abspath(netns)


class Temporary:
    """A namespace during a `with` block, which gets its path."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> str:
        return create(self._name)

    def __exit__(self, *_: object) -> None:
        delete(self._name)


def temporary(name: str = "") -> Temporary:
    """A context manager: a new namespace during the block; without a name it gets a new one."""
    return Temporary(name or f"pycni-{os.urandom(6).hex()}")


def _failure(verb: str, name: str, error: Exception) -> CNIError:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):
        details = "it needs the rights of root"
    else:
        details = "a name is that of a file: any characters but '/'"
    return CNIError(
        INVALID_ENVIRONMENT, f"cannot {verb} the network namespace {name}: {reason}", details
    )
