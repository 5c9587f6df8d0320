"""The agent and its launcher: the same answers as without, and nothing lost when it goes."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import Host, PluginRun, Sandbox, ip_json, nft_list, run_in, run_plugin
from harness.agent import PYCNI, AgentProcess
from harness.configs import host_local
from harness.topics.callers import in_the_agents_place
from pycni.agent import protocol
from pycni.agent.executables import LAUNCHER, install
from pycni.agent.listener import listen
from pycni.spec.errors import TRY_AGAIN_LATER, CNIError


def config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": host_local(tmp_path / "leases", subnet="10.9.0.0/16"),
        **keys,
    }


def call(agent: AgentProcess, command: str, conf: dict[str, Any], **env: str) -> PluginRun:
    return run_plugin(agent.plugins / conf["type"], command, conf, **env)


def leases(tmp_path: Path) -> list[str]:
    folder = tmp_path / "leases" / "net"
    return [name for name in os.listdir(folder) if name[0].isdigit()] if folder.exists() else []


def test_serves_add_check_del(agent: AgentProcess, sandbox: Sandbox, tmp_path: Path) -> None:
    agent.start()
    space = sandbox()
    conf = config(tmp_path)
    added = call(agent, "ADD", conf, CNI_NETNS=space.path)
    assert added.code == 0, added.stdout
    address = added.result["ips"][0]["address"].partition("/")[0]
    assert run_in(None, ["ping", "-c1", "-W2", address]).returncode == 0
    conf["prevResult"] = added.result
    assert call(agent, "CHECK", conf, CNI_NETNS=space.path).code == 0
    assert call(agent, "DEL", conf, CNI_NETNS=space.path).code == 0
    assert leases(tmp_path) == []
    # host-local is called inside bridge, and counts as part of it.
    assert agent.calls() == {("bridge", "ADD"): 1, ("bridge", "CHECK"): 1, ("bridge", "DEL"): 1}


def test_what_it_says_of_its_calls(agent: AgentProcess, sandbox: Sandbox, tmp_path: Path) -> None:
    """Counts, latencies and errors: for people, and as Prometheus reads them."""

    def reported(command: str) -> str:
        argv = [PYCNI, "agent", command, "--socket", agent.socket]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    agent.start()
    conf, space = config(tmp_path), sandbox()
    for number in range(2):
        call(agent, "ADD", conf, CNI_NETNS=space.path, CNI_IFNAME=f"eth{number}")
    refused = call(agent, "CHECK", conf, CNI_NETNS=space.path)
    assert refused.code != 0
    lines = reported("status").splitlines()
    rows = {tuple(words[:4]): words[4:] for words in map(str.split, lines) if words[0] == "bridge"}
    assert set(rows) == {("bridge", "ADD", "2", "0"), ("bridge", "CHECK", "1", "1")}
    for mean, longest in rows.values():
        assert 0 < float(mean) <= float(longest)
    assert refused.result["msg"] in "\n".join(lines)

    metrics = dict(
        line.rsplit(" ", 1) for line in reported("metrics").splitlines() if line[0] != "#"
    )
    for command, count, failed in (("ADD", 2, 0), ("CHECK", 1, 1)):
        labels = f'plugin="bridge",command="{command}"'
        assert int(metrics[f"pycni_agent_failed_total{{{labels}}}"]) == failed
        assert int(metrics[f"pycni_agent_call_seconds_count{{{labels}}}"]) == count
        assert float(metrics[f"pycni_agent_call_seconds_sum{{{labels}}}"]) > 0
        bucket = f"pycni_agent_call_seconds_bucket{{{labels}"
        counts = [int(value) for name, value in metrics.items() if name.startswith(bucket)]
        assert counts == sorted(counts)
        assert counts[-1] == count
        assert f'{bucket},le="+Inf"}}' in metrics


def test_calls_in_turn_share_a_thread(agent: AgentProcess) -> None:
    agent.start()
    assert agent.process is not None
    threads = Path(f"/proc/{agent.process.pid}/task")
    call(agent, "VERSION", {"cniVersion": "1.0.0", "type": "loopback"})
    before = len(list(threads.iterdir()))
    for _ in range(10):
        call(agent, "VERSION", {"cniVersion": "1.0.0", "type": "loopback"})
        time.sleep(0.02)  # its thread has then seen that it is done
    assert len(list(threads.iterdir())) <= before + 1


def test_same_answers_with_and_without(
    agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Each call once without and once with the agent: stdout, stderr and exit code are equal."""
    space = sandbox()
    loopback = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
    broken = {**config(tmp_path), "vlan": 5000}
    calls = [
        ("VERSION", loopback, {}),
        ("ADD", loopback, {"CNI_NETNS": space.path}),
        ("ADD", loopback, {"CNI_NETNS": "/nowhere"}),
        ("ADD", loopback, {"CNI_NETNS": "/etc/passwd"}),
        ("ADD", broken, {"CNI_NETNS": space.path}),
        ("DEL", config(tmp_path), {"CNI_NETNS": ""}),
        ("", loopback, {}),
        ("NONSENSE", loopback, {}),
        ("ADD", loopback, {}),
    ]
    outcomes = []
    for running in (False, True):
        if running:
            agent.start()
        outcomes.append([call(agent, *args[:2], **args[2]) for args in calls])
    assert outcomes[0] == outcomes[1]
    assert sum(agent.calls().values()) == len(calls)


def test_runs_the_plugin_itself_after_the_agent_was_killed(
    agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    agent.start()
    space = sandbox()
    added = call(agent, "ADD", config(tmp_path), CNI_NETNS=space.path)
    agent.kill()
    assert agent.socket.exists()
    deleted = call(agent, "DEL", {**config(tmp_path), "prevResult": added.result})
    assert (deleted.code, leases(tmp_path)) == (0, [])


def test_another_version_is_refused(agent: AgentProcess, sandbox: Sandbox) -> None:
    agent.start()
    launcher = agent.plugins / "loopback"
    program, trailer = launcher.read_bytes().rsplit(b"\nversion=", 1)
    launcher.write_bytes(program + b"\nversion=9" + trailer)
    conf = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
    assert call(agent, "ADD", conf, CNI_NETNS=sandbox().path).code == 0
    assert (agent.calls(), agent.refused()) == ({}, {"another version": 1})


def test_another_network_namespace_is_refused(agent: AgentProcess, sandbox: Sandbox) -> None:
    """To a caller elsewhere, "the host" is another one."""
    agent.start()
    elsewhere, space = sandbox(), sandbox()
    environ = "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_PATH=/x"
    script = f"env {environ} CNI_NETNS={space.path} {agent.plugins}/loopback"
    conf = '{"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}'
    done = run_in(elsewhere, ["sh", "-c", f"echo '{conf}' | {script}"])
    assert json.loads(done.stdout)["interfaces"][0]["name"] == "lo"
    assert (agent.calls(), agent.refused()) == ({}, {"another namespace": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\xff" * 8,
        b"\1\0\0\0\xff\xff\0\0",
        b"\1\0\0\0\5\0\0\0abcde",
        b"\1\0\0\0\3\0\0\0a\0b",
        os.urandom(70000),
    ],
)
def test_garbage_is_refused(agent: AgentProcess, data: bytes) -> None:
    agent.start()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket))
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert agent.answers()
    assert agent.calls() == {}


def test_lost_agent_is_an_error_after_it_began(tmp_path: Path, host: Host) -> None:
    """An agent that dies at work leaves the launcher with one error object, code 11."""
    with in_the_agents_place(tmp_path) as listener:

        def begin_and_die() -> None:
            connection, _ = listener.accept()
            with connection:
                protocol.receive_call(connection, 5).close()
                connection.sendall(protocol.BEGUN)

        thread = threading.Thread(target=begin_and_die)
        thread.start()
        done = run_plugin(tmp_path / "bin" / "loopback", "ADD", {"name": "x"}, CNI_NETNS="/x")
        thread.join()
    assert (done.code, done.result["code"]) == (1, TRY_AGAIN_LATER)


def test_idle_agent_leaves(agent: AgentProcess) -> None:
    agent.start("--idle", "0.5")
    assert agent.process is not None
    assert agent.process.wait(timeout=20) == 0
    assert not agent.socket.exists()


def test_term_lets_calls_finish(agent: AgentProcess, sandbox: Sandbox, tmp_path: Path) -> None:
    agent.start()
    spaces = [sandbox() for _ in range(12)]
    conf = config(tmp_path)
    with ThreadPoolExecutor(12) as pool:
        runs = [
            pool.submit(call, agent, "ADD", conf, CNI_NETNS=space.path, CNI_CONTAINERID=f"c{n}")
            for n, space in enumerate(spaces)
        ]
        time.sleep(0.05)
        agent.stop()
        results = [run.result() for run in runs]
    assert [run.code for run in results] == [0] * 12, results
    assert len({run.result["ips"][0]["address"] for run in results}) == 12


def test_term_that_interrupts_no_wait(agent: AgentProcess) -> None:
    """Such as one that comes just before the main thread waits; here another thread gets it."""
    agent.start()
    assert agent.process is not None
    pid = agent.process.pid
    worker = next(int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid)
    assert ctypes.CDLL(None).tgkill(pid, worker, signal.SIGTERM) == 0
    assert agent.process.wait(timeout=20) == 0
    assert not agent.socket.exists()


# --- who may talk to it --------------------------------------------------------------------------


def test_socket_is_for_its_user_only(agent: AgentProcess) -> None:
    agent.start()
    assert stat.S_IMODE(agent.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o600


def test_unprivileged_user_cannot_connect_or_replace(agent: AgentProcess) -> None:
    agent.start()
    script = f"""
import os, socket
for action in (
    lambda: socket.socket(socket.AF_UNIX).connect({str(agent.socket)!r}),
    lambda: os.unlink({str(agent.socket)!r}),
    lambda: os.rename({str(agent.socket.parent)!r}, {str(agent.socket.parent)!r} + "x"),
    lambda: socket.socket(socket.AF_UNIX).bind({str(agent.socket.parent / "b")!r}),
):
    try:
        action()
    except PermissionError:
        print("refused")
"""
    done = run_in(
        None,
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
         "/usr/bin/python3", "-c", script],
    )  # fmt: skip
    assert done.stdout.split() == ["refused"] * 4
    assert agent.answers()


def test_launcher_does_not_believe_another_users_agent(
    tmp_path: Path, host: Host, sandbox: Sandbox
) -> None:
    """A socket that another user listens on is passed over; the plugin runs in its own process."""
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    folder = Path("/run/pycni-test-foreign")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    path = folder / "agent.sock"
    install(tmp_path / "bin", socket=path)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); "
        f"s.bind({str(path)!r}); s.listen(); print('up', flush=True); sys.stdin.read()"
    )
    fake = subprocess.Popen(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
         "/usr/bin/python3", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert fake.stdout is not None
    assert fake.stdout.readline() == "up\n"
    conf = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
    done = run_plugin(tmp_path / "bin" / "loopback", "ADD", conf, CNI_NETNS=sandbox().path)
    fake.communicate("")
    assert done.code == 0


def test_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(CNIError, match="only this user can enter"):
        listen(folder / "agent.sock")


def test_second_agent_is_refused(agent: AgentProcess) -> None:
    agent.start()
    second = subprocess.run(
        [PYCNI, "agent", "--socket", agent.socket], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert "an agent listens" in second.stderr
    assert agent.answers()


# --- systemd -------------------------------------------------------------------------------------


def test_socket_activation_and_notices(
    agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    """It serves on the descriptor it is given, says READY=1, and shows signs of life."""
    agent.socket.parent.mkdir(mode=0o700)
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    notices.settimeout(20)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(agent.socket))
        listener.listen()

        environ = {
            **os.environ,
            "LISTEN_FDS": "1",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "400000",
        }
        # LISTEN_PID names the process that is started, so it is set by a shell that becomes it.
        command = f'LISTEN_PID=$$ exec "{PYCNI}" agent --socket /nonexistent/agent.sock 3<&0'
        process = subprocess.Popen(["sh", "-c", command], env=environ, stdin=listener)
    try:
        received = {notices.recv(100) for _ in range(2)}
        assert received == {b"READY=1", b"WATCHDOG=1"}
        conf = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
        assert call(agent, "ADD", conf, CNI_NETNS=sandbox().path).code == 0
        assert agent.calls() == {("loopback", "ADD"): 1}
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert agent.socket.exists()  # it is systemd's
    finally:
        process.kill()
        notices.close()


# --- killed under load ---------------------------------------------------------------------------


@pytest.mark.slow
def test_agent_killed_under_load(agent: AgentProcess, sandbox: Sandbox, tmp_path: Path) -> None:
    """Callers see correct results or clear errors; after every DEL nothing is left."""
    kills = int(os.environ.get("PYCNI_AGENT_KILLS", "12"))
    spaces = [sandbox() for _ in range(8)]
    conf = config(tmp_path)
    stop = threading.Event()
    failures: list[str] = []
    agent.start()

    def attach_and_detach(number: int) -> None:
        attempt = 0
        while not stop.is_set():
            attempt += 1
            env = {
                "CNI_NETNS": spaces[number].path,
                "CNI_CONTAINERID": f"load-{number}-{attempt}",
            }
            added = call(agent, "ADD", conf, **env)
            with_result = dict(conf)
            if added.code == 0:
                with_result["prevResult"] = added.result
                address = added.result["ips"][0]["address"].partition("/")[0]
                run_in(None, ["ping", "-c1", "-W2", address])
            elif added.result["code"] != TRY_AGAIN_LATER:
                failures.append(added.stdout)
            while (deleted := call(agent, "DEL", with_result, **env)).code != 0:
                if deleted.result["code"] != TRY_AGAIN_LATER:
                    failures.append(deleted.stdout)
                    break

    threads = [threading.Thread(target=attach_and_detach, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    chance = random.Random(7)
    for _ in range(kills):
        time.sleep(chance.uniform(0.02, 0.3))
        assert agent.process is not None
        agent.process.send_signal(signal.SIGKILL)
        agent.process.communicate()
        agent.start()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert leases(tmp_path) == []
    assert sorted(link["ifname"] for link in ip_json("link")) == ["br0", "lo"]
    assert not [
        entry
        for entry in nft_list()
        if "set" in entry
        and entry["set"]["name"].startswith("masquerade-")
        and "elem" in entry["set"]
    ]
