"""What the reference prints, read and printed again by us: the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.plugin import run_plugin
from pycni.spec import jsontext
from pycni.spec.errors import CNIError
from pycni.spec.result import decode_result, print_result
from pycni.spec.versions import require

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
FULL = {
    "type": "static",
    "addresses": [
        {"address": "10.1.0.5/16", "gateway": "10.1.0.1"},
        {"address": "fd00::A/64", "gateway": "FD00::1"},
    ],
    "routes": [
        {"dst": "0.0.0.0/0"},
        {"dst": "::/0", "gw": "fd00::9"},
        {"dst": "10.9.0.7/8", "gw": ""},
    ],
    "dns": {"nameservers": ["1.1.1.1"], "domain": "a<b>&\u2028\N{GRINNING FACE}", "search": ["x"]},
}
PLAIN = {"type": "static", "addresses": [{"address": "::10.1.0.5/120"}]}
MAPPED = {"type": "static", "addresses": [{"address": "::ffff:10.2.0.5/120"}]}


def static(folder: Path, version: str, ipam: dict[str, Any]) -> str:
    config = {"cniVersion": version, "name": "n", "type": "static", "ipam": ipam}
    # The address plugin opens no namespace, and one that is not there it does not miss.
    run = run_plugin(folder / "static", "ADD", config, CNI_NETNS="/nonexistent")
    return run.stdout


@pytest.mark.parametrize("ipam", [FULL, PLAIN, MAPPED], ids=["full", "plain", "mapped"])
@pytest.mark.parametrize("version", VERSIONS)
def test_result_comes_back_to_the_byte(
    reference_dir: Path, version: str, ipam: dict[str, Any]
) -> None:
    printed = static(reference_dir, version, ipam)
    ours = print_result(decode_result(jsontext.loads(printed), version), version)
    if version == "1.0.0":
        # Since release 1.2.0 of its library the reference sorts these and leaves an empty dns out.
        document = jsontext.loads(printed)
        if not document["dns"]:
            del document["dns"]
        printed = jsontext.dumps(document, indent=4, sort_keys=True)
    assert ours == printed


def test_error_comes_out_to_the_byte(reference_dir: Path) -> None:
    printed = static(reference_dir, "9.9.9", PLAIN)
    with pytest.raises(CNIError) as caught:
        require("9.9.9", VERSIONS)
    assert jsontext.dumps(caught.value.to_json(), indent=4) == printed
