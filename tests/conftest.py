"""Fixtures and rules of the whole test suite; tests/harness holds what they are made of.

- Each test gets the marker of its folder, and those of some folders are slow: `make test-quick`
  leaves out what is. Tests in tests/lab run only in the kernel that
  tools/kernel-lab boots (PYCNI_LAB=1) and are deselected elsewhere.
- As root, the process gets mounts of its own, so that /run and /var/lib/cni are private.
- With CI=true a skip that tests/known-skips.txt does not name is a failure: a machine that lacks
  something must not pass as one that tested it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from harness import Host, Namespace, Sandbox, enter_new_netns, private_mounts
from harness.agent import AgentProcess
from harness.allowed import allow_paths
from harness.host import forget_attachments
from harness.machines import Machines, set_up
from harness.ways import WAYS, Way, way_of
from pycni.agent.executables import LAUNCHER
from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
from pycni.kernel.netlink import NetlinkSocket

TESTS = Path(__file__).parent
FOLDERS = ("unit", "kernel", "interop", "clients", "sequences", "adversary", "lab")
SLOW_FOLDERS = ("clients", "sequences", "adversary", "lab")
IN_LAB = os.environ.get("PYCNI_LAB") == "1"
REFERENCE_DIR = Path("/usr/lib/cni")


def pytest_configure() -> None:
    as_root = os.geteuid() == 0
    if as_root:
        private_mounts()
    allow_paths(private=as_root)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    deselected: list[pytest.Item] = []
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)
        if folder in SLOW_FOLDERS:
            item.add_marker("slow")
        if folder == "lab":
            # An emulator, in which Python is slow; the more on a busy machine.
            item.add_marker(pytest.mark.timeout(600))
        (deselected if folder == "lab" and not IN_LAB else kept).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = kept


# --- skips -------------------------------------------------------------------------------------


def _is_known(nodeid: str, reason: str) -> bool:
    """Whether a line of tests/known-skips.txt, NODE-ID | REASON as shell patterns, names it."""
    for line in (TESTS / "known-skips.txt").read_text().splitlines():
        node_pattern, bar, reason_pattern = (part.strip() for part in line.partition("|"))
        if line.startswith("#") or not bar:
            continue
        if fnmatchcase(nodeid, node_pattern) and fnmatchcase(reason, reason_pattern):
            return True
    return False


def _refuse_unknown_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not _is_known(report.nodeid, reason):
        report.outcome = "failed"
        report.longrepr = f"skipped ({reason}), and tests/known-skips.txt does not name it"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_unknown_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_unknown_skip(report)
    return report


# --- fixtures ----------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Host]:
    """A fresh network namespace that stands for the host; the test's thread is in it.

    Afterwards the machine's own namespace must hold the links it held before, and /run/netns the
    namespaces it held before.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = _machine_links(), set(os.listdir("/run/netns"))
    forget_attachments()
    with enter_new_netns() as fd:
        yield Host(fd)
    assert _machine_links() == before[0], "the test changed links of the machine's own namespace"
    assert set(os.listdir("/run/netns")) == before[1], "the test left a network namespace behind"


@pytest.fixture
def sandbox(host: Host) -> Iterator[Sandbox]:
    """A function that makes a named network namespace, as a runtime does for a container.

    What it made is removed after the test, unless the test did so itself.
    """
    # A parameter of that name would take the fixture's place, and leave the test on the machine.
    assert isinstance(host, Host), "a test's parameter may not be called host"
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace.create(f"sandbox-{os.getpid()}-{len(made)}"))
        return made[-1]

    yield make
    for namespace in made:
        namespace.delete()


@pytest.fixture
def machines(sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> Iterator[Machines]:
    """Machines around the host: see tests/harness/machines.py."""
    with set_up(sandbox, plugin_dir, tmp_path) as machines:
        yield machines


@pytest.fixture(params=[1, 0], ids=["bridge calls iptables", "bridge alone"])
def bridge_calls(host: Host, request: pytest.FixtureRequest) -> None:
    """Whether what a bridge forwards goes through the host's rules, as br_netfilter has it."""
    for name in ("iptables", "ip6tables"):
        path = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
        if not path.exists():
            pytest.skip("no br_netfilter")
        path.write_text(str(request.param))


@pytest.fixture
def netlink(host: Host) -> Iterator[NetlinkSocket]:
    """A socket for links, addresses and routes of the host."""
    with NetlinkSocket() as netlink:
        yield netlink


@pytest.fixture
def netfilter(host: Host) -> Iterator[NetfilterSocket]:
    """A socket for nftables and conntrack of the host."""
    with NetfilterSocket() as netfilter:
        yield netfilter


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugin_dir: Path
) -> Iterator[Way]:
    """Each way of calling plugins, with a folder of the test's own.

    A file that prepares the host in addition has a fixture of the same name which takes this one.
    """
    folder = tmp_path / "way"
    folder.mkdir()
    with way_of(request.param, folder, plugin_dir) as found:
        yield found


@pytest.fixture
def agent(host: Host, tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent's launchers; the agent itself is for the test to start."""
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    process = AgentProcess(tmp_path)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.process.send_signal(signal.SIGCONT)  # a test may have stopped it
        process.kill()


@pytest.fixture(scope="session")
def plugin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our plugins' executables, made by `pycni install`."""
    folder = tmp_path_factory.mktemp("plugins")
    program = Path(sys.executable).parent / "pycni"
    subprocess.run([program, "install", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of Debian's reference plugins."""
    if not (REFERENCE_DIR / "bridge").exists():
        pytest.skip(f"no reference plugins in {REFERENCE_DIR}")
    return REFERENCE_DIR


def _machine_links() -> set[str]:
    # /sys shows the links of the namespace it was mounted in, whichever the thread is in.
    return set(os.listdir("/sys/class/net"))
