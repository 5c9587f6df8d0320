"""Plugins as processes: what they get, what their end means, time-outs and cancelling.

The plugins are shell scripts. Texts are those that runtimes know from the reference's library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycni.runtime import Canceled, Cancellation, Network, PluginError
from pycni.spec.errors import CNIError
from pycni.spec.result import Result

Make = Callable[..., Network]

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A network whose plugins are these scripts, named a, b, ..."""

    def network(*scripts: str, version: str = "1.1.0", **keys: Any) -> Network:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        plugins = []
        for name, script in zip("abc", scripts, strict=False):
            (directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (directory / name).chmod(0o755)
            plugins.append({"type": name})
        return Network.from_dict(
            {"cniVersion": version, "name": "lab", "plugins": plugins, **keys},
            plugin_dirs=directory,
            cache_dir=tmp_path / "cache",
        )

    return network


def add(network: Network, **options: Any) -> Result:
    return network.add("box", "/nowhere", **options)


def test_stdin_and_environment(make: Make, tmp_path: Path) -> None:
    network = make(f"cat > {tmp_path}/stdin; env > {tmp_path}/env; echo '{{}}'", z=1)
    network.add("box", "/nowhere", "eth1", args={"K": "V"})
    # Compact and sorted, without a newline, as the reference's library writes it.
    assert (tmp_path / "stdin").read_text() == '{"cniVersion":"1.1.0","name":"lab","type":"a"}'
    environ = dict(
        line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line
    )
    assert environ["CNI_COMMAND"] == "ADD"
    assert environ["CNI_CONTAINERID"] == "box"
    assert environ["CNI_NETNS"] == "/nowhere"
    assert environ["CNI_IFNAME"] == "eth1"
    assert environ["CNI_ARGS"] == "K=V"
    assert environ["CNI_PATH"] == str(tmp_path / "bin")
    assert environ["PATH"] == os.environ["PATH"]


def test_status_has_all_variables_and_empty(make: Make, tmp_path: Path) -> None:
    make(f"env > {tmp_path}/env").status()
    lines = (tmp_path / "env").read_text().splitlines()
    for name in ("CONTAINERID", "NETNS", "IFNAME", "ARGS"):
        assert f"CNI_{name}=" in lines


def test_trace_context(make: Make, tmp_path: Path) -> None:
    network = make(f"env > {tmp_path}/env")
    network.status(trace={"traceparent": TRACEPARENT, "tracestate": "a=b", "baggage": ""})
    lines = (tmp_path / "env").read_text().splitlines()
    assert f"TRACEPARENT={TRACEPARENT}" in lines
    assert "TRACESTATE=a=b" in lines
    assert not any(line.startswith("BAGGAGE") for line in lines)


def test_trace_context_of_the_caller_is_handed_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
    make(f"env > {tmp_path}/env").status()
    assert f"TRACEPARENT={TRACEPARENT}" in (tmp_path / "env").read_text().splitlines()


@pytest.mark.parametrize(
    ("script", "code", "message", "stderr"),
    [
        ("exit 7", 0, "netplugin failed with no error message: exit status 7", ""),
        ("echo why >&2; exit 1", 0, 'netplugin failed: "why": exit status 1', ""),
        ('echo \'{"code": 11, "msg": "m", "details": "d"}\'; exit 1', 11, "m", ""),
        ('echo why >&2; echo \'{"code": 5, "msg": "m"}\'; exit 1', 5, "m", "why"),
        (
            "printf 'a b'; exit 1",
            0,
            'netplugin failed but error parsing its diagnostic message "a b": ',
            "",
        ),
        ("kill -9 $$", 0, "netplugin failed with no error message: signal: killed", ""),
    ],
)
def test_how_a_plugin_fails(make: Make, script: str, code: int, message: str, stderr: str) -> None:
    with pytest.raises(PluginError) as caught:
        make(script).status()
    assert caught.value.code == code
    assert caught.value.message.startswith(message)
    assert caught.value.stderr == stderr


def test_what_a_plugin_says_is_passed_on_if_it_succeeds(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    make("echo all is well >&2").status()
    assert capfd.readouterr().err == "all is well\n"


def test_a_file_that_is_no_program(make: Make, tmp_path: Path) -> None:
    network = make("true")
    (tmp_path / "bin/a").chmod(0o644)
    with pytest.raises(PluginError, match=r"fork/exec .*/bin/a: [Pp]ermission denied"):
        network.status()


def test_a_file_that_is_still_being_written(make: Make, tmp_path: Path) -> None:
    network = make("true")
    program = tmp_path / "bin/a"
    program.write_bytes(Path("/bin/true").read_bytes())
    with program.open("ab") as file:  # open for writing: ETXTBSY
        threading.Timer(0.3, file.close).start()
        network.status()


@pytest.mark.parametrize("output", ["", "[]", "{} {}", "no", '{"cniVersion": "7.0.0"}'])
def test_an_add_without_a_result(make: Make, output: str) -> None:
    with pytest.raises(PluginError) as caught:
        add(make(f"[ $CNI_COMMAND = ADD ] && printf '%s' '{output}' || true"))
    assert caught.value.message.startswith('plugin type="a" failed (add): ')


def test_a_result_without_a_version_is_of_the_configurations(make: Make) -> None:
    result = add(make('echo \'{"ips": [{"address": "10.0.0.2/8"}]}\'', version="1.0.0"))
    assert result.cni_version == "1.0.0"


def test_time_out(make: Make) -> None:
    network = make("[ $CNI_COMMAND = DEL ] || exec sleep 60")
    begin = time.monotonic()
    for call in (add, Network.status, Network.versions, Network.validate):
        with pytest.raises(CNIError) as caught:
            call(network, timeout=0.2)
        assert "netplugin failed with no error message: signal: killed" in caught.value.message
        assert "timed out after 0.2 s" in caught.value.details
    assert time.monotonic() - begin < 60
    assert network.attachments() == []


def test_a_plugin_that_leaves_a_process_behind(make: Make) -> None:
    """The child holds the pipes open; the plugin has ended, and that is what counts."""
    network = make("sleep 60 & echo $! >&2; exit 0")
    begin = time.monotonic()
    network.status()
    assert time.monotonic() - begin < 60


def test_cancel_from_another_thread_kills_the_plugin_and_undoes(make: Make, tmp_path: Path) -> None:
    log = f"echo $CNI_COMMAND $0 >> {tmp_path}/log"
    network = make(f"{log}; echo '{{}}'", f"{log}; [ $CNI_COMMAND = DEL ] || exec sleep 60")
    cancel = Cancellation()

    def soon() -> None:
        while "bin/b" not in (tmp_path / "log").read_text():
            time.sleep(0.01)
        cancel.cancel()

    (tmp_path / "log").touch()
    thread = threading.Thread(target=soon)
    thread.start()
    with pytest.raises(Canceled):
        add(network, cancel=cancel)
    thread.join()
    calls = [
        (command, Path(program).name)
        for command, program in map(str.split, (tmp_path / "log").read_text().splitlines())
    ]
    assert calls == [("ADD", "a"), ("ADD", "b"), ("DEL", "b"), ("DEL", "a")]
    assert network.attachments() == []


@pytest.mark.parametrize(
    ("answer", "versions"),
    [
        ('{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}', ("0.4.0", "1.0.0")),
        ('{"cniVersion": "0.2.0"}', ("0.1.0", "0.2.0")),
    ],
)
def test_versions(make: Make, tmp_path: Path, answer: str, versions: tuple[str, ...]) -> None:
    network = make(f"cat > {tmp_path}/stdin; env > {tmp_path}/env; echo '{answer}'")
    assert network.versions() == {"a": versions}
    assert json.loads((tmp_path / "stdin").read_text()) == {"cniVersion": "1.1.0"}
    lines = (tmp_path / "env").read_text().splitlines()
    assert {"CNI_COMMAND=VERSION", "CNI_NETNS=dummy", "CNI_IFNAME=dummy", "CNI_PATH=dummy"} <= set(
        lines
    )


def test_a_plugin_older_than_the_version_operation(make: Make) -> None:
    network = make(
        """echo '{"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}'; exit 1""", version="0.1.0"
    )
    assert network.versions() == {"a": ("0.1.0",)}
    assert network.validate() == frozenset()


@pytest.mark.parametrize("answer", ["", "{}", '{"cniVersion": "1.0.0"}'])
def test_no_answer_to_version(make: Make, answer: str) -> None:
    with pytest.raises(PluginError, match="decoding version info"):
        make(f"echo '{answer}'").versions()


def test_one_container_at_a_time_and_gc_alone(make: Make, tmp_path: Path) -> None:
    """SPEC: no parallel operations on one container, and none at all during GC."""
    script = f"""
    key=$CNI_CONTAINERID
    [ $CNI_COMMAND = GC ] && key=gc
    mkdir {tmp_path}/busy-$key || exit 1
    [ $CNI_COMMAND = GC ] && [ $(ls -d {tmp_path}/busy-* | wc -l) != 1 ] && exit 3
    [ $CNI_COMMAND != GC ] && [ -d {tmp_path}/busy-gc ] && exit 4
    sleep 0.02
    rmdir {tmp_path}/busy-$key
    echo '{{}}'"""
    network = make(script)
    errors: list[CNIError] = []

    def work(number: int) -> None:
        try:
            if number % 4 == 0:
                network.gc(network.attachments())
            else:
                network.add(f"box-{number % 2}", "/nowhere", f"eth{number}")
        except CNIError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


HOLDER = """
import sys
from pycni.runtime.locks import ProcessLock
from pycni.spec.owner import Owner
with ProcessLock(sys.argv[1], Owner(*sys.argv[2:5])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("held", "waits"),
    [
        (("lab", "box", "eth0"), True),
        (("lab", "", ""), True),
        (("lab", "other", "eth0"), False),
        (("another", "box", "eth0"), False),
    ],
    ids=["the attachment", "its network", "another container", "another network"],
)
def test_two_processes_wait_for_each_other(
    make: Make, tmp_path: Path, held: tuple[str, str, str], waits: bool
) -> None:
    network = make(f"touch {tmp_path}/called; echo '{{}}'")
    cache = network._cache.root
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, cache, *held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        thread = threading.Thread(target=network.add, args=("box", "/nowhere"))
        thread.start()
        thread.join(0.3 if waits else None)
        assert (tmp_path / "called").exists() != waits
        holder.stdin.write("\n")
        holder.stdin.flush()
        thread.join()
    assert (tmp_path / "called").exists()
