"""`pycni` as cnitool, and beyond: arguments, variables, output, exit codes.

Facts are those recorded of the reference's cnitool; where pycni differs, the test says so. The
plugin is noop, which writes down what it was asked.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.agent import PYCNI
from pycni.cli.main import COMMANDS, main

NETNS = "/var/run/netns/testing"
CONTAINER = "cnitool-77383ca0a0715733ca6f"  # what the reference makes of NETNS
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}]}
PRINTED = """{
    "cniVersion": "1.1.0",
    "ips": [
        {
            "address": "10.1.2.3/24",
            "gateway": "10.1.2.1"
        }
    ]
}"""


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.debug = folder / "debug"
        self.conf_dir = folder / "net.d"
        self.conf_dir.mkdir()
        self.say(ReportResult=json.dumps(RESULT))
        self.write(
            "10-lab.conflist",
            cniVersion="1.1.0",
            name="lab",
            plugins=[
                {
                    "type": "noop",
                    "debugFile": str(self.debug),
                    "capabilities": {"mac": True, "ips": True},
                }
            ],
        )

    def say(self, **keys: Any) -> None:
        self.debug.write_text(json.dumps(keys))

    def write(self, file: str, **document: Any) -> None:
        (self.conf_dir / file).write_text(json.dumps(document))

    def asked(self) -> dict[str, Any]:
        """The last call, with its stdin decoded."""
        debug = json.loads(self.debug.read_text())
        asked: dict[str, Any] = debug["CmdArgs"]
        asked["Command"] = debug["Command"]
        asked["stdin"] = json.loads(base64.b64decode(asked.pop("StdinData")))
        return asked

    def run(self, *words: str, **environ: str) -> Result:
        options = ["--conf-dir", str(self.conf_dir), "--cache-dir", str(self.folder / "cache")]
        command, *rest = words
        return CliRunner().invoke(main, [command, *options, *rest], env=environ)

    def cached(self) -> list[str]:
        folder = self.folder / "cache/results"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


# --- as cnitool --------------------------------------------------------------------------------


def test_add_prints_the_result_indented_and_without_a_newline(lab: Lab) -> None:
    done = lab.run("add", "lab", NETNS)
    assert (done.exit_code, done.stdout, done.stderr) == (0, PRINTED, "")
    asked = lab.asked()
    assert asked["Command"] == "ADD"
    assert (asked["ContainerID"], asked["Netns"], asked["IfName"]) == (CONTAINER, NETNS, "eth0")
    assert lab.cached() == [f"lab-{CONTAINER}-eth0"]


def test_container_id_of_another_namespace(lab: Lab) -> None:
    lab.run("add", "lab", "/var/run/netns/cnitest")
    assert lab.asked()["ContainerID"] == "cnitool-20c433bb2b1d6ede56d6"


def test_the_path_is_cleaned_but_not_followed(lab: Lab) -> None:
    lab.run("add", "lab", "/var/run/./netns/x/../testing")
    assert (lab.asked()["Netns"], lab.asked()["ContainerID"]) == (NETNS, CONTAINER)
    lab.run("add", "lab", "./here")
    assert lab.asked()["Netns"] == os.path.abspath("here")


def test_a_mere_name_is_one_of_ip_netns(lab: Lab) -> None:
    """Unlike cnitool, for which it is a file of the current directory; such a file goes first."""
    lab.run("add", "lab", "no-such-file")
    assert lab.asked()["Netns"] == "/run/netns/no-such-file"


@pytest.mark.parametrize("command", ["check", "del"])
def test_silent_on_success(lab: Lab, command: str) -> None:
    lab.run("add", "lab", NETNS)
    done = lab.run(command, "lab", NETNS)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert lab.asked()["Command"] == command.upper()
    assert lab.asked()["stdin"]["prevResult"] == RESULT


@pytest.mark.parametrize("words", [("lab",), ("lab", NETNS)])
def test_status_is_silent_and_needs_no_namespace(lab: Lab, words: tuple[str, ...]) -> None:
    done = lab.run("status", *words)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    lab.say(ReportError="not now", ReportErrorCode=50)
    done = lab.run("status", *words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: not now (code 50: not available)\n"


def test_variables(lab: Lab) -> None:
    done = lab.run(
        "add",
        "lab",
        NETNS,
        CNI_IFNAME="net7",
        CNI_ARGS="A=1;B=2",
        CAP_ARGS='{"mac": "02:00:00:00:00:01", "unknown": 1}',
    )
    assert done.exit_code == 0
    asked = lab.asked()
    assert (asked["IfName"], asked["Args"]) == ("net7", "A=1;B=2")
    assert asked["stdin"]["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}
    assert "no plugin of lab declares the capability unknown" in done.stderr


@pytest.mark.parametrize("name", ["CNI_IFNAME", "CNI_ARGS", "CAP_ARGS"])
def test_empty_variables_are_none(lab: Lab, name: str) -> None:
    assert lab.run("add", "lab", NETNS, **{name: ""}).exit_code == 0
    assert (lab.asked()["IfName"], lab.asked()["Args"]) == ("eth0", "")


def test_the_option_goes_before_the_variable(lab: Lab) -> None:
    lab.run("add", "-i", "net1", "lab", NETNS, CNI_IFNAME="net7")
    assert lab.asked()["IfName"] == "net1"
    lab.run("add", "lab", NETNS, "--ifname", "net2")
    assert lab.asked()["IfName"] == "net2"


@pytest.mark.parametrize("args", ["A", "A=", "=1", "A=1;", "A=1=2", ";"])
def test_bad_cni_args(lab: Lab, args: str) -> None:
    done = lab.run("add", "lab", NETNS, CNI_ARGS=args)
    assert done.exit_code == 1
    assert done.stderr.startswith('Error: invalid CNI_ARGS pair "')


@pytest.mark.parametrize("given", ["7", "[]", "{", '"mac"'])
def test_bad_cap_args(lab: Lab, given: str) -> None:
    done = lab.run("add", "lab", NETNS, CAP_ARGS=given)
    assert done.exit_code == 1
    assert "CAP_ARGS is not" in done.stderr


def test_null_for_cap_args(lab: Lab) -> None:
    assert lab.run("add", "lab", NETNS, CAP_ARGS="null").exit_code == 0


def test_directories_of_the_variables(lab: Lab, plugin_dir: Path, tmp_path: Path) -> None:
    environ = {"NETCONFPATH": str(lab.conf_dir), "CNI_PATH": f"/nowhere:{plugin_dir}"}
    command = ["add", "--cache-dir", str(tmp_path / "c"), "lab", NETNS]
    done = CliRunner().invoke(main, command, env=environ)
    assert done.exit_code == 0, done.stderr
    assert lab.asked()["Path"] == f"/nowhere:{plugin_dir}"
    done = CliRunner().invoke(main, command, env={**environ, "CNI_PATH": "/nowhere"})
    assert done.exit_code == 1
    assert 'failed to find plugin "noop" in path [/nowhere]' in done.stderr


def test_every_error_exits_with_1(lab: Lab) -> None:
    lab.say(ReportError="no more", ReportErrorCode=11)
    for words, message in (
        (("add", "lab", NETNS), "no more (code 11: try again later)"),
        (("add", "other", NETNS), 'no net configuration with name "other" in '),
        (("add", "lab"), "Missing argument 'NETNS'."),
        (("add", "-i", "a/b", "lab", NETNS), "interface name contains / or :"),
        (("check", "lab", NETNS), "is not attached to the network lab"),
    ):
        done = lab.run(*words)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert done.stderr.startswith("Error: ")
        assert message in done.stderr
        # Unlike cnitool, which says it twice.
        assert done.stderr.count(message) == 1


def test_unknown_command() -> None:
    done = CliRunner().invoke(main, ["ad", "lab", NETNS])
    assert done.exit_code == 1
    assert "No such command 'ad'. Did you mean 'add'?" in done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help(words: list[str]) -> None:
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.stderr) == (0, "")
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert line in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert f" {name} " in done.stdout.splitlines()[0]


def test_as_a_process(lab: Lab, tmp_path: Path) -> None:
    environ = {**os.environ, "NETCONFPATH": str(lab.conf_dir)}
    command = [str(PYCNI), "add", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "lab", NETNS], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, PRINTED, "")
    done = subprocess.run(
        [*command, "none", NETNS], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "\x1b" not in done.stderr  # no colours where there is no terminal
    assert done.stderr.splitlines()[1].startswith("hint: the files there have lab")


# --- more than cnitool -------------------------------------------------------------------------


def test_friendlier_options(lab: Lab) -> None:
    done = lab.run(
        "add", "lab", NETNS, "--container-id", "box", "--arg", "A=1", "--arg", "B=x y",
        "--cap", 'mac="02:00:00:00:00:01"', "--cap", 'ips=["10.1.2.3/24"]',
    )  # fmt: skip
    assert done.exit_code == 0
    asked = lab.asked()
    assert (asked["ContainerID"], asked["Args"]) == ("box", "A=1;B=x y")
    assert asked["stdin"]["runtimeConfig"] == {
        "mac": "02:00:00:00:00:01",
        "ips": ["10.1.2.3/24"],
    }
    # What add was given holds for what comes later, unlike with cnitool.
    assert lab.run("del", "lab", NETNS, "--container-id", "box").exit_code == 0
    asked = lab.asked()
    assert (asked["Args"], "runtimeConfig" in asked["stdin"]) == ("A=1;B=x y", True)


def test_options_go_before_variables(lab: Lab) -> None:
    lab.run("add", "lab", NETNS, "--arg", "A=2", CNI_ARGS="A=1;B=1")
    assert lab.asked()["Args"] == "A=2;B=1"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--cap", "mac"], "expected NAME=JSON"),
        (["--cap", "mac=02:00"], "--cap mac is not JSON"),
        (["--arg", "A"], "expected NAME=VALUE"),
        (["--timeout", "0"], "--timeout"),
        (["--engine", "docker"], "--engine"),
        (["--iface", "eth1"], "Did you mean"),
    ],
)
def test_bad_options(lab: Lab, option: list[str], message: str) -> None:
    done = lab.run("add", "lab", NETNS, *option)
    assert done.exit_code == 1
    assert message in done.stderr


def test_table(lab: Lab) -> None:
    result = {
        **RESULT,
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": NETNS}],
        "ips": [{**RESULT["ips"][0], "interface": 0}],  # type: ignore[dict-item]
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    lab.say(ReportResult=json.dumps(result))
    done = lab.run("add", "-o", "table", "lab", NETNS)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["eth0", "02:00:00:00:00:01", NETNS] in lines
    assert ["10.1.2.3/24", "10.1.2.1", "eth0"] in lines
    assert ["0.0.0.0/0"] in lines


def test_cells_of_a_table_are_not_markup(lab: Lab) -> None:
    """Addresses in brackets, and what others call things, are shown as they are."""
    sandbox = "/run/netns/a[/red]:b\x1b[2J\n"
    result = {
        **RESULT,
        "interfaces": [{"name": "[bold]", "mac": ":smile:", "sandbox": sandbox}],
        "routes": [{"dst": "fd00::/8", "gw": "fd00::1"}],
    }
    lab.say(ReportResult=json.dumps(result))
    done = lab.run("add", "-o", "table", "lab", NETNS)
    assert done.exit_code == 0, done.stderr
    row = done.stdout.splitlines()[1].split()
    assert row == ["[bold]", ":smile:", r"/run/netns/a[/red]:b\x1b[2J\n"]


def test_messages_of_others_do_not_reach_the_terminal(lab: Lab) -> None:
    lab.say(ReportError="not \x1b]0;now\x07 \u202e", ReportErrorDetails="a\x9b2J")
    done = lab.run("status", "lab")
    assert done.stderr.splitlines()[0].startswith(r"Error: not \x1b]0;now\x07 \u202e (code ")
    assert not any(char < " " for char in done.stderr if char != "\n")


def test_version(lab: Lab) -> None:
    done = lab.run("version", "lab")
    assert json.loads(done.stdout)["noop"][-1] == "1.1.0"
    done = lab.run("version", "-o", "table", "lab")
    assert done.stdout.splitlines()[1].startswith("noop    0.-42.0 0.1.0")


def test_delete_where_the_network_is_not_configured_any_more(lab: Lab) -> None:
    lab.run("add", "lab", NETNS)
    (lab.conf_dir / "10-lab.conflist").unlink()
    done = lab.run("del", "lab", NETNS)
    assert done.exit_code == 0
    assert "lab is not configured any more" in done.stderr
    assert lab.cached() == []
    assert lab.run("del", "lab", NETNS).exit_code == 1  # no one knows what it was


def test_delete_of_what_is_nowhere_says_so(lab: Lab) -> None:
    done = lab.run("del", "lab", "boxx")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("nothing is known of eth0 of cnitool-")
    assert "in the network lab, and /run/netns/boxx is not there" in done.stderr
    assert lab.asked()["Command"] == "DEL"


def test_files_in_the_way_are_reported(lab: Lab) -> None:
    (lab.conf_dir / "05-broken.conflist").write_text('{\n"name": }')
    done = lab.run("add", "lab", NETNS)
    assert (done.exit_code, done.stdout) == (0, PRINTED)
    assert done.stderr.startswith(f"warning: skipped {lab.conf_dir}/05-broken.conflist:2: ")


def test_faults_of_the_network_itself(lab: Lab) -> None:
    (lab.conf_dir / "10-lab.conflist").write_text('{"name": "lab",\n"plugins": [\n{"typ": 1}]}')
    done = lab.run("add", "lab", NETNS)
    assert done.exit_code == 1
    assert f"Error: {lab.conf_dir}/10-lab.conflist:3: plugins[0].type: missing" in done.stderr


def test_what_a_failed_plugin_said_is_shown(lab: Lab, tmp_path: Path) -> None:
    plugin = tmp_path / "loud"
    plugin.write_text('#!/bin/sh\necho why >&2; echo \'{"code": 5, "msg": "m"}\'; exit 1\n')
    plugin.chmod(0o755)
    lab.write("20.conf", cniVersion="1.1.0", name="loud", type="loud")
    done = lab.run("status", "--plugin-dir", str(tmp_path), "loud")
    assert done.exit_code == 1
    assert done.stderr == "Error: m (code 5: input or output failed)\n  loud: why\n"


def test_time_out_and_progress(lab: Lab, tmp_path: Path) -> None:
    plugin = tmp_path / "slow"
    plugin.write_text("#!/bin/sh\nexec sleep 60\n")
    plugin.chmod(0o755)
    lab.write("20.conf", cniVersion="1.1.0", name="slow", type="slow")
    begin = time.monotonic()
    done = lab.run("status", "--plugin-dir", str(tmp_path), "--timeout", "1.3", "slow")
    assert time.monotonic() - begin < 60
    assert done.exit_code == 1
    # Longer than a second: what it waits for is reported.
    assert done.stderr.startswith("waiting for slow: STATUS ...\n")
    assert "timed out after 1.3 s" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_add_that_is_ended_takes_back_what_it_did(
    lab: Lab, tmp_path: Path, number: signal.Signals
) -> None:
    plugin, log = tmp_path / "slow", tmp_path / "log"
    plugin.write_text(
        f"#!/bin/sh\necho $CNI_COMMAND >> {log}\n[ $CNI_COMMAND = DEL ] || exec sleep 60\n"
    )
    plugin.chmod(0o755)
    log.touch()
    lab.write("20.conf", cniVersion="1.1.0", name="slow", type="slow")
    command = [str(PYCNI), "add", "--conf-dir", str(lab.conf_dir), "--plugin-dir", str(tmp_path)]

    def heed() -> None:
        """What runs in the background ignores an interrupt, and so would what it starts."""
        signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(
        [*command, "slow", NETNS],
        stderr=subprocess.PIPE,
        preexec_fn=heed,  # noqa: PLW1509 - there are no threads
    ) as process:
        while not log.read_text():
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr is not None
        word = "Interrupted" if number == signal.SIGINT else "Terminated"
        left = "nothing of the attachment is left"
        assert process.stderr.read().decode() == f"{word}: {left}\n"
    assert log.read_text().split() == ["ADD", "DEL"]


# --- gc ----------------------------------------------------------------------------------------


@pytest.fixture
def attached(lab: Lab) -> Lab:
    for name in ("one", "two", "three"):
        assert lab.run("add", "lab", NETNS, "--container-id", name).exit_code == 0
    return lab


def test_gc_wants_to_know_what_is_alive(attached: Lab) -> None:
    """Unlike cnitool's, which removes everything."""
    done = attached.run("gc", "lab")
    assert done.exit_code == 1
    assert "--keep ID/IFNAME, --keep-file FILE, or --none" in done.stderr
    assert len(attached.cached()) == 3


def test_gc_keep(attached: Lab) -> None:
    done = attached.run("gc", "lab", "--keep", "one/eth0", "--keep", "two/eth0")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == [{"containerID": "three", "ifname": "eth0"}]
    assert done.stderr == "1 deleted, 2 to keep, in the network lab\n"
    assert attached.cached() == ["lab-one-eth0", "lab-two-eth0"]
    assert attached.asked()["Command"] == "GC"
    assert attached.asked()["stdin"]["cni.dev/valid-attachments"] == [
        {"containerID": "one", "ifname": "eth0"},
        {"containerID": "two", "ifname": "eth0"},
    ]


def test_gc_keep_file(attached: Lab, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    alive.write_text("# what runs\none/eth0\n\n")
    done = attached.run("gc", "lab", "--keep-file", str(alive), "-o", "table")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["container", "three", "two"]
    assert attached.cached() == ["lab-one-eth0"]


def test_gc_keep_file_that_is_empty(attached: Lab, tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    assert attached.run("gc", "lab", "--keep-file", str(tmp_path / "alive")).exit_code == 0
    assert attached.cached() == []


def test_gc_none_and_dry_run(attached: Lab) -> None:
    done = attached.run("gc", "lab", "--none", "--dry-run")
    assert len(json.loads(done.stdout)) == 3
    assert done.stderr == "3 would be deleted, 0 to keep, in the network lab\n"
    assert len(attached.cached()) == 3
    assert attached.run("gc", "lab", NETNS, "--none").exit_code == 0
    assert attached.cached() == []


@pytest.mark.parametrize(
    "options",
    [["--none", "--keep", "one/eth0"], ["--keep", "one"], ["--keep", "/eth0"], ["--keep", "one/"]],
)
def test_gc_options_that_say_nothing_clear(attached: Lab, options: list[str]) -> None:
    assert attached.run("gc", "lab", *options).exit_code == 1
    assert len(attached.cached()) == 3
