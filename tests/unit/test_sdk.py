"""The SDK's names, and the log that a configuration can switch on."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest

import pycni.sdk
from pycni.sdk.allowed_paths import VARIABLE
from pycni.sdk.dispatch import serve
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_network
from pycni.spec.result import IPConfig, Result

CONFIG = {"cniVersion": "1.1.0", "name": "web", "type": "quiet"}


def test_each_name_is_there_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(pycni.sdk.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.asname for node in block.body for alias in getattr(node, "names", ())}
    assert typed == set(pycni.sdk._NAMES)
    assert typed <= set(dir(pycni.sdk))
    for name in typed:
        assert getattr(pycni.sdk, name or "") is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="NoSuch"):
        _ = pycni.sdk.NoSuch  # type: ignore[attr-defined]


class Quiet(Plugin):
    type = "quiet"

    def add(self, request: Request) -> Result:
        request.log.debug("asked", given='a "b"', nothing="")
        return Result(ips=(IPConfig(address=parse_network("10.0.0.2/24")),))

    def check(self, request: Request) -> None:
        raise CNIError(102, "it is\nbroken")


@pytest.fixture(autouse=True)
def log_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The administrator has set it to the test's folder."""
    (tmp_path / "allowed").write_text(f"logFile {tmp_path}\n")
    monkeypatch.setitem(ENVIRON, VARIABLE, str(tmp_path / "allowed"))


ENVIRON = {
    "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/not/there", "CNI_PATH": "/none",
    "TRACEPARENT": "00-ab-cd-01",
}  # fmt: skip


def call(command: str, stderr: int = 2, **keys: Any) -> int:
    from json import dumps

    environ = {"CNI_COMMAND": command, **ENVIRON}
    document = dumps({**CONFIG, **keys}).encode()
    return serve(Quiet(), environ, lambda: document, stderr=stderr).code


def lines(file: Path) -> list[str]:
    """The lines with what differs from run to run made equal."""
    moment = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z "
    text = re.sub(moment, "", file.read_text(), flags=re.MULTILINE)
    return re.sub(r"ms=[0-9.]+", "ms=1", text).splitlines()


SUBJECT = "net=web id=c1 if=eth0 trace=00-ab-cd-01"


def test_calls_are_logged_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert call("ADD", logFile=str(file)) == 0
    assert call("CHECK", logFile=str(file)) == 1
    assert lines(file) == [
        f"info quiet ADD {SUBJECT} done ms=1 ips=10.0.0.2/24",
        f'error quiet CHECK {SUBJECT} failed ms=1 code=102 error="it is\\nbroken"',
    ]
    assert file.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("debug", ["begins", "asked", "done", "begins", "failed"]),
        ("info", ["done", "failed"]),
        ("warning", ["failed"]),
        ("error", ["failed"]),
        ("verbose", ["done", "failed"]),
    ],
)
def test_levels(tmp_path: Path, level: str, words: list[str]) -> None:
    file = tmp_path / "log"
    for command in ("ADD", "CHECK"):
        call(command, logFile=str(file), logLevel=level)
    assert [line.split(SUBJECT + " ")[1].split()[0] for line in lines(file)] == words
    if level == "debug":
        assert lines(file)[1].endswith('asked given="a \\"b\\"" nothing=""')


def test_without_a_file_lines_go_to_stderr(tmp_path: Path) -> None:
    file = tmp_path / "stderr"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    assert call("ADD", descriptor, logLevel="info") == 0
    assert call("ADD", descriptor) == 0
    os.close(descriptor)
    assert lines(file) == [f"info quiet ADD {SUBJECT} done ms=1 ips=10.0.0.2/24"]


def test_a_log_that_cannot_be_written_fails_no_call(tmp_path: Path) -> None:
    file = tmp_path / "stderr"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    (tmp_path / "folder").mkdir()
    assert call("ADD", descriptor, logFile="folder") == 0
    os.close(descriptor)
    first, second = lines(file)
    assert first == f"pycni: cannot log to {tmp_path}/folder: not a plain file with one name"
    assert second.endswith("done ms=1 ips=10.0.0.2/24")


def test_a_call_that_breaks_the_rules_is_logged_too(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert call("ADD", logFile=str(file), cniVersion="9.9.9") == 1
    (line,) = lines(file)
    assert "failed" in line
    assert "code=1" in line
