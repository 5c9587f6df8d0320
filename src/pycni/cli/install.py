"""`pycni install DIR`: one executable per plugin, as runtimes expect them in a plugin directory.

An executable is a few lines of shell that start the interpreter bare (`-IS`: no site packages, no
environment), on the package where it is now. When either has moved, it says so as an error object
of the protocol instead of leaving the runtime with a shell's message.
"""

from __future__ import annotations

import compileall
import os
import sys
import sysconfig
from pathlib import Path

from pycni.plugins import MARK, NAMES
from pycni.spec.errors import INTERNAL

_EXECUTABLE = """\
#!/bin/sh
{mark}{name}
python='{python}'
package='{package}'
if [ -x "$python" ] && [ -f "$package/pycni/__init__.py" ]; then
  exec "$python" -IS -c 'import sys
sys.path += sys.argv[1:]
from pycni.plugins import run
run("{name}")' "$package" '{libraries}'
fi
cat <<EOF
{{
    "code": {code},
    "msg": "the plugin {name} cannot start: $python or $package/pycni is not there any more",
    "details": "pycni was moved or removed; run 'pycni install' again for the directory of $0"
}}
EOF
exit 1
"""


def install(directory: Path) -> list[Path]:
    """Write the plugins' executables into a directory, replacing what has their names.

    Each file is written whole and then renamed, so that a runtime that starts a plugin meanwhile
    finds the old one or the new one. Returns their paths. Raises OSError.
    """
    package = Path(__file__).resolve().parents[2]
    compileall.compile_dir(package / "pycni", quiet=2)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in NAMES:
        text = _EXECUTABLE.format(
            mark=MARK.decode(),
            name=name,
            python=os.path.realpath(sys.executable),
            package=package,
            libraries=sysconfig.get_path("purelib"),
            code=INTERNAL,
        )
        path = directory / name
        partial = directory / f".{name}.{os.getpid()}"
        partial.write_text(text)
        partial.chmod(0o755)
        partial.rename(path)
        written.append(path)
    return written
