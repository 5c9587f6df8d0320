"""The tour of README.md, run as a reader would type it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import Host, ip_json

ROOT = Path(__file__).parents[2]


def test_tour(host: Host, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    script = ["set -e"]
    for language, code in re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL):
        script.append(code if language == "sh" else f"python <<'END'\n{code}END\n")
    assert len(script) > 5
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "delete", "box"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"address": "10.30.0.2/24"' in done.stdout
    assert "interface eth0 is down" in done.stderr
    assert "10.30.0.3/24" in done.stdout
    assert "installed" in done.stdout
    assert [link["ifname"] for link in ip_json("link")] == ["lo", "cni0"]
