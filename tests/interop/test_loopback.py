"""loopback beside the reference's: each follows the other, with equal results in 1.0.0.

Before, release 1.1.1 prints a result of 1.0.0 under another version's name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Attachment, Host, Sandbox, ip_json, run_plugin
from harness.reference import VERSIONS, WITH_CHECK, comparable


@pytest.mark.parametrize("version", VERSIONS)
def test_each_follows_the_other(
    version: str,
    host: Host,
    sandbox: Sandbox,
    plugin_dir: Path,
    reference_dir: Path,
) -> None:
    config = {"cniVersion": version, "name": "lo", "type": "loopback"}
    space = sandbox()
    ours = Attachment(plugin_dir / "loopback", config, space, ifname="lo", call=run_plugin)
    theirs = Attachment(reference_dir / "loopback", config, space, ifname="lo", call=run_plugin)
    results = []
    for adder, deleter in ((ours, theirs), (theirs, ours)):
        results.append(comparable(adder.add()))
        assert "UP" in ip_json("link", "show", "lo", netns=space)[0]["flags"]
        if version in WITH_CHECK:
            deleter.result = adder.result
            deleter.check()
        deleter.delete()
        assert "UP" not in ip_json("link", "show", "lo", netns=space)[0]["flags"]
        ours.result = theirs.result = None
    if version == "1.0.0":
        assert results[0] == results[1]
