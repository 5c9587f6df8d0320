"""Network namespaces on the real kernel."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness import Host, Sandbox, run_in
from pycni.kernel import namespace
from pycni.kernel.namespace import NamespaceNotFound, NotANamespace


def inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_open_named(host: Host, sandbox: Sandbox) -> None:
    made = sandbox()
    with namespace.open_path(made.path) as space:
        assert space.inode == os.stat(made.path).st_ino
        assert space.device == os.stat(made.path).st_dev
        assert space.path == made.path
    assert space.fd == -1
    space.close()


def test_open_by_process(host: Host) -> None:
    with namespace.open_path(
        f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
    ) as space:
        assert space.inode == inode()


def test_missing(host: Host) -> None:
    with pytest.raises(NamespaceNotFound) as caught:
        namespace.open_path("/run/netns/nowhere")
    assert caught.value.filename == "/run/netns/nowhere"
    with pytest.raises(NamespaceNotFound):
        namespace.open_path("/proc/4194304999/ns/net")


def test_process_that_is_a_zombie(host: Host) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(NamespaceNotFound):
            namespace.open_path(f"/proc/{child.pid}/ns/net")
    finally:
        child.wait()


@pytest.mark.parametrize("what", ["file", "folder", "fifo", "socket", "uts", "status"])
def test_something_else_at_the_path(host: Host, what: str) -> None:
    path = Path(f"/run/{what}")  # the test process's own, and able to hold all of these
    if what == "file":
        path.touch()
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.close()
    elif what == "uts":
        path = Path("/proc/self/ns/uts")
    else:
        path = Path("/proc/self/status")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotANamespace, match="not a network namespace") as caught:
        namespace.open_path(str(path))
    assert caught.value.filename == str(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_permission(host: Host) -> None:
    program = f"""
import os
from pycni.kernel import namespace
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    namespace.open_path("/proc/{os.getpid()}/ns/net")
except PermissionError as error:
    print("denied", error.filename)
"""
    done = run_in(None, [sys.executable, "-c", program])
    assert done.stdout == f"denied /proc/{os.getpid()}/ns/net\n"


def test_from_descriptor(host: Host, sandbox: Sandbox) -> None:
    fd = os.open(sandbox().path, os.O_RDONLY)
    with namespace.from_fd(fd) as space:
        assert space.inode == os.fstat(fd).st_ino
        assert not os.get_inheritable(space.fd)
    os.fstat(fd)
    os.close(fd)
    with open(os.devnull, "rb") as file, pytest.raises(NotANamespace):
        namespace.from_fd(file.fileno())


def test_same_namespace(host: Host, sandbox: Sandbox) -> None:
    made = sandbox()
    with (
        namespace.open_path(made.path) as one,
        namespace.open_path(made.path) as two,
        namespace.current() as here,
    ):
        assert one.same_as(two)
        assert not one.same_as(here)


def test_enter_and_return(host: Host) -> None:
    home = inode()
    before = len(os.listdir("/proc/self/fd"))
    with namespace.create() as outer, namespace.create() as inner:
        with outer.enter():
            assert inode() == outer.inode
            with inner.enter():
                assert inode() == inner.inode
            assert inode() == outer.inode
            with pytest.raises(KeyError), inner.enter():
                raise KeyError
            assert inode() == outer.inode
        assert inode() == home
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_the_calling_thread_enters(host: Host) -> None:
    home = inode()
    entered, leave = threading.Event(), threading.Event()
    with namespace.create() as space:

        def stay() -> None:
            with space.enter():
                entered.set()
                leave.wait()

        thread = threading.Thread(target=stay)
        thread.start()
        entered.wait()
        assert inode() == home
        leave.set()
        thread.join()


def test_entering_a_closed_namespace(host: Host) -> None:
    home = inode()
    before = len(os.listdir("/proc/self/fd"))
    space = namespace.create()
    space.close()
    with pytest.raises(OSError) as caught, space.enter():  # noqa: PT011 - errno follows
        pytest.fail("entered")
    assert caught.value.errno == errno.EBADF
    assert inode() == home
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_thread_that_cannot_return_ends_the_process(host: Host) -> None:
    program = """
import os
from pycni.kernel import namespace
with namespace.create() as space:
    try:
        with space.enter():
            os.setresuid(65534, 65534, 65534)  # and the right to return is gone
    finally:
        print("still there", flush=True)
"""
    done = run_in(None, [sys.executable, "-c", program], check=False)
    assert done.returncode == 71
    assert done.stdout == ""
    assert "cannot return to the thread's network namespace" in done.stderr


def test_anonymous_namespace_is_new_and_leaves_the_thread_alone(host: Host) -> None:
    home = inode()
    with namespace.create() as one, namespace.create() as two:
        assert len({home, one.inode, two.inode}) == 3
        assert inode() == home
        assert one.path == ""


def test_named_namespace_is_one_of_ip_netns(host: Host) -> None:
    home = inode()
    with namespace.create_named("box") as space:
        try:
            assert inode() == home
            assert space.path == "/run/netns/box"
            assert os.stat("/run/netns/box").st_ino == space.inode
            assert "box" in run_in(None, ["ip", "netns", "list"]).stdout.split()
            seen = run_in("box", ["stat", "-Lc", "%i", "/proc/self/ns/net"]).stdout
            assert int(seen) == space.inode
            with pytest.raises(FileExistsError):
                namespace.create_named("box")
            assert os.stat("/run/netns/box").st_ino == space.inode
        finally:
            namespace.delete_named("box")
    assert not os.path.exists("/run/netns/box")
    with pytest.raises(NamespaceNotFound):
        namespace.delete_named("box")


def test_ip_netns_deletes_what_we_named_and_we_what_it_named(host: Host) -> None:
    namespace.create_named("ours").close()
    run_in(None, ["ip", "netns", "delete", "ours"])
    assert not os.path.exists("/run/netns/ours")
    run_in(None, ["ip", "netns", "add", "theirs"])
    namespace.delete_named("theirs")
    assert not os.path.exists("/run/netns/theirs")


def test_leftover_file_of_a_namespace_is_deleted(host: Host) -> None:
    Path("/run/netns/leftover").touch()
    namespace.delete_named("leftover")
    assert not os.path.exists("/run/netns/leftover")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../escape", "a\0b"])
def test_a_name_is_a_name(name: str) -> None:
    for act in (namespace.create_named, namespace.delete_named):
        with pytest.raises(ValueError, match="not a name"):
            act(name)


def test_way_back_is_refused_for_a_moment(
    host: Host, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was short comes back; the thread is home in the end."""
    home = inode()
    real, refusals = namespace.setns, [errno.ENOMEM, errno.ENOMEM]

    def setns(fd: int, kind: int) -> None:
        if os.fstat(fd).st_ino == home and refusals:
            raise OSError(refusals.pop(), "refused by the test")
        real(fd, kind)

    monkeypatch.setattr(namespace, "setns", setns)
    with namespace.open_path(sandbox().path) as space, space.enter():
        assert inode() != home
    assert inode() == home
    assert not refusals
