"""`pycni install DIR`: one executable per plugin, as runtimes expect them in a plugin directory.

An executable is the native launcher (launcher/launcher.c) with a few lines at its end that tell it
what to run; where the package was built without a compiler, a shell script does the launcher's part
without the agent. Both start the interpreter bare (`-IS`: no site packages, no environment), on the
package where it is now, and when either has moved, they say so as an error object of the protocol.
"""

from __future__ import annotations

import compileall
import os
import sys
import sysconfig
from pathlib import Path

import click

from pycni import __version__, agent
from pycni.agent.protocol import SOCKET
from pycni.plugins import MARK, NAMES
from pycni.spec.errors import INTERNAL

LAUNCHER = Path(agent.__file__).with_name("launcher")

_SCRIPT = """\
#!/bin/sh
python='{python}'
package='{package}'
if [ -x "$python" ] && [ -f "$package/pycni/__init__.py" ]; then
  exec "$python" -IS -c 'import sys
sys.path += sys.argv[1:]
try:
    from pycni.plugins import run
    run("{name}")
except Exception as error:
    why = f"{{type(error).__name__}}: {{error}}"
    why = why.replace(chr(92), "/").replace(chr(34), chr(39)).replace(chr(10), " ")
    print("{{\\n    \\"code\\": {code},")
    print(f"    \\"msg\\": \\"the plugin {name} cannot start: {{why}}\\",")
    print("    \\"details\\": \\"pycni is damaged, or not for this Python; "
          "mend it and run pycni install again\\"\\n}}", end="")
    sys.exit(1)' "$package" '{libraries}'
fi
cat <<EOF
{{
    "code": {code},
    "msg": "the plugin {name} cannot start: its Python or its package is not there any more",
    "details": "pycni was moved or removed; run 'pycni install' again for this directory"
}}
EOF
exit 1
"""

_TRAILER = """
python={python}
package={package}
libraries={libraries}
socket={socket}
version={version}
"""


def install(
    directory: Path, *, socket: Path | None = SOCKET, native: bool | None = None
) -> list[Path]:
    """Write the plugins' executables into a directory, replacing what has their names.

    socket: where the agent listens, None for never asking one; native: whether to use the compiled
    launcher, None for where there is one. Each file is written whole and then renamed, so that a
    runtime that starts a plugin meanwhile finds the old one or the new one. Returns their paths.
    Raises OSError.
    """
    package = Path(__file__).resolve().parents[2]
    compileall.compile_dir(package / "pycni", quiet=2)
    directory.mkdir(parents=True, exist_ok=True)
    if native is None:
        native = LAUNCHER.is_file()
    facts = {
        "python": os.path.realpath(sys.executable),
        "package": package,
        "libraries": sysconfig.get_path("purelib"),
        "socket": socket or "",
        "version": __version__,
        "code": INTERNAL,
    }
    written = []
    for name in NAMES:
        if native:
            body = LAUNCHER.read_bytes() + _TRAILER.format(**facts).encode()
        else:
            body = _SCRIPT.format(name=name, **facts).encode()
        path = directory / name
        partial = directory / f".{name}.{os.getpid()}"
        partial.write_bytes(body + MARK + name.encode() + b"\n")
        partial.chmod(0o755)
        partial.rename(path)
        written.append(path)
    return written


@click.command("install")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def command(directory: Path) -> None:
    """Write one executable per plugin into DIRECTORY."""
    try:
        written = install(directory)
    except OSError as error:
        raise click.ClickException(f"cannot install into {directory}: {error.strerror}") from error
    click.echo(f"installed {', '.join(path.name for path in written)} in {directory}")
