"""An address plugin of someone else's that fails (SPEC 1.1.0, section 4, "execution procedure")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, Sandbox, call_plugin, ip_json, run_plugin, snapshot

# Notes each command; does what the files beside it say.
SCRIPT = """\
#!/bin/sh
here={folder}
cat > /dev/null
echo $CNI_COMMAND >> $here/calls
if [ -f $here/fail.$CNI_COMMAND ]; then cat $here/fail.$CNI_COMMAND; exit 1; fi
[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.9.0.2/24"}}]}}'
exit 0
"""


class Lab:
    """An attachment whose addresses come from a script in `folder`."""

    def __init__(self, plugin_dir: Path, folder: Path, netns: Namespace, **keys: Any) -> None:
        self.folder = folder
        script = folder / "script-ipam"
        script.write_text(SCRIPT.format(folder=folder))
        script.chmod(0o755)
        config = {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "script-ipam"}, **keys}
        plugin = plugin_dir / config["type"]
        self.one = Attachment(plugin, config, netns, "one", path=f"{plugin_dir}:{folder}")

    def fail(self, command: str, code: int, message: str) -> None:
        text = f'{{"cniVersion": "1.1.0", "code": {code}, "msg": "{message}", "details": "as is"}}'
        (self.folder / f"fail.{command}").write_text(text)

    def calls(self) -> list[str]:
        """The commands since the last time."""
        path = self.folder / "calls"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found


@pytest.fixture(params=["bridge", "ptp", "tap"])
def lab(
    request: pytest.FixtureRequest, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> Lab:
    return Lab(plugin_dir, tmp_path, sandbox(), type=request.param)


def test_it_is_called_with_del_and_its_own_error_is_reported(lab: Lab) -> None:
    lab.fail("ADD", 123, "no address today")
    before = snapshot()
    error = lab.one.refused()
    assert lab.calls() == ["ADD", "DEL"]
    assert (error["code"], error["msg"], error["details"]) == (
        123,
        "no address today",
        "as is",
    )
    links = [item for item in snapshot()["links"] if item["ifname"] != "cni0"]
    assert links == before["links"]


def test_a_del_that_fails_too_is_reported_beside(lab: Lab) -> None:
    lab.fail("ADD", 123, "no address today")
    lab.fail("DEL", 5, "disk full")
    error = lab.one.refused()
    assert (error["code"], error["msg"]) == (123, "no address today")
    assert error["details"].startswith("as is; ")
    assert "disk full" in error["details"]


def test_the_addresses_of_an_attachment_that_is_there_are_not_released(lab: Lab) -> None:
    lab.one.add()
    assert lab.calls() == ["ADD"]
    lab.fail("ADD", 123, "duplicate")
    lab.one.refused()
    assert "DEL" not in lab.calls()
    assert "eth0" in {item["ifname"] for item in ip_json("link", netns=lab.one.sandbox)}
    lab.one.check()


def test_a_device_without_an_interface_keeps_its_addresses(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Whether an attachment of it is there cannot be seen, so its addresses are left alone."""
    lab = Lab(plugin_dir, tmp_path, sandbox(), type="host-device", DPDKMode=True, device="dpdk0")
    lab.one.add()
    assert lab.calls() == ["ADD"]
    lab.fail("ADD", 123, "duplicate")
    assert lab.one.refused()["code"] == 123
    assert lab.calls() == ["ADD"]


# --- what is none --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [call_plugin, run_plugin])
@pytest.mark.parametrize(
    ("kind", "ipam"),
    [("bridge", "bridge"), ("ptp", "portmap"), ("bridge", "flannel"), ("ptp", "loopback")],
)
def test_a_plugin_of_ours_that_is_none(
    host: Host, sandbox: Sandbox, plugin_dir: Path, call: Any, kind: str, ipam: str
) -> None:
    """It would ask an address plugin, which is itself, in its turn."""
    config = {"cniVersion": "1.1.0", "name": "net", "type": kind, "ipam": {"type": ipam}}
    one = Attachment(plugin_dir / kind, config, sandbox(), "one", call=call)
    previous = {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}
    for command, keys in (("ADD", {}), ("CHECK", {"prevResult": previous}), ("STATUS", {})):
        run = one.run(command, **keys)
        assert (run.code, run.result["code"]) == (1, 7), command
        assert run.result["msg"] == f'"{ipam}" is no address plugin', command
    assert one.run("DEL").code == 0
    assert one.run("GC", **{"cni.dev/valid-attachments": []}).code == 0
    assert [link["ifname"] for link in ip_json("link", netns=one.sandbox)] == ["lo"]


def test_plugins_that_call_each_other(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """By a process of others between them, which hands on what it was asked."""
    script = tmp_path / "around"
    script.write_text(f'#!/bin/sh\necho >> {tmp_path}/calls\nexec "{plugin_dir}/bridge"\n')
    script.chmod(0o755)
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "around"}}
    path = f"{plugin_dir}:{tmp_path}"
    one = Attachment(plugin_dir / "bridge", config, sandbox(), "one", path=path, call=run_plugin)
    assert '"around" would be called by 8 plugins' in one.refused("STATUS")["msg"]
    assert len((tmp_path / "calls").read_text()) == 8
