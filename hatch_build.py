"""Build hook: compiles the launcher, where there is a C compiler (else a script stands in)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "launcher/launcher.c"
TARGET = "src/pycni/agent/launcher"


class LauncherBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled launcher into the package, which is then one for this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        target = Path(self.root, TARGET)
        if compile_launcher(Path(self.root, SOURCE), target):
            build_data["artifacts"].append(TARGET)
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def compile_launcher(source: Path, target: Path) -> bool:
    """Compile it, statically if the machine can: that starts quickest. False without a compiler.

    Quickest of all with musl: before main, glibc asks the processor 67 times what it can do, each
    time by an instruction that leaves a virtual machine.
    """
    compiler = os.environ.get("CC")
    if compiler is not None:
        ways = [[compiler, "-static"], [compiler]]
    else:
        ways = [["musl-gcc", "-static"], ["cc", "-static"], ["cc"]]
    for program, *linking in ways:
        path = shutil.which(program)
        if path is None:
            continue
        command = [path, "-O2", "-Wall", "-s", *linking, "-o", str(target), str(source)]
        if subprocess.run(command, check=False).returncode == 0:
            return True
    return False
