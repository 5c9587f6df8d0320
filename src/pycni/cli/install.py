"""`pycni install DIR`: one executable per plugin, as runtimes expect them in a plugin directory.

An executable is the native launcher (launcher/launcher.c) with a few lines at its end that tell it
what to run; where the package was built without a compiler, a shell script does the launcher's part
without the agent. Both start the interpreter bare (`-IS`: no site packages, no environment), on the
package where it is now, and when either has moved, they say so as an error object of the protocol.
"""

from __future__ import annotations

import compileall
import importlib
import os
import shlex
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import click

from pycni import __version__, agent
from pycni.agent.protocol import SOCKET
from pycni.cli import bundling
from pycni.plugins import MARK, NAMES
from pycni.sdk.plugin import Plugin
from pycni.spec.errors import INTERNAL
from pycni.spec.names import check_plugin_type

PACKAGE = Path(__file__).resolve().parents[2]
LAUNCHER = Path(agent.__file__).with_name("launcher")

_SCRIPT = """\
#!/bin/sh
python='{python}'
package='{package}'
if [ -x "$python" ] && [ -f "$package/pycni/__init__.py" ]; then
  [ "$#" = 0 ] || [ {name} != dhcp ] || exec "$python" -IS -c 'import sys
sys.path += sys.argv[1:3]
from pycni.cli.main import main
main(["dhcp", *sys.argv[3:]], prog_name="pycni")' "$package" '{libraries}' "$@"
  exec "$python" -IS -X utf8 -c 'import sys
sys.path += sys.argv[1:]
try:
    from pycni import bundle
    bundle.use()
    from pycni.plugins import run
    run("{name}")
except Exception as error:
    why = f"{{type(error).__name__}}: {{error}}"
    why = why.replace(chr(92), "/").replace(chr(34), chr(39)).replace(chr(10), " ")
    print("{{\\n    \\"cniVersion\\": \\"1.1.0\\",\\n    \\"code\\": {code},")
    print(f"    \\"msg\\": \\"the plugin {name} cannot start: {{why}}\\",")
    print("    \\"details\\": \\"pycni is damaged, or not for this Python; "
          "mend it and run pycni install again\\"\\n}}", end="")
    sys.exit(1)' "$package" '{libraries}'
fi
cat <<EOF
{{
    "cniVersion": "1.1.0",
    "code": {code},
    "msg": "the plugin {name} cannot start: its Python or its package is not there any more",
    "details": "pycni was moved or removed; run 'pycni install' again for this directory"
}}
EOF
exit 1
"""

# For a plugin of someone else's: no agent, and its own folder to import from.
_OTHER_SCRIPT = """\
#!/bin/sh
python={python}
if [ -x "$python" ] && [ -f {package}/pycni/__init__.py ] && [ -e {file} ]; then
  exec "$python" -IS -X utf8 -c 'import sys
sys.path += sys.argv[1:]
from pycni import bundle
bundle.use()
from pycni.plugins import resolve
from pycni.sdk.entry import run
run("{module}", "{attribute}", resolve)' {package} {folder} {libraries}
fi
cat <<EOF
{{
    "cniVersion": "1.1.0",
    "code": {code},
    "msg": "the plugin {name} cannot start: its Python or its package is not there any more",
    "details": "it or pycni was moved or removed; install it again into this directory"
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
    compileall.compile_dir(PACKAGE / "pycni", quiet=2)
    with suppress(OSError):  # it only saves time
        bundling.write()
    directory.mkdir(parents=True, exist_ok=True)
    if native is None:
        native = LAUNCHER.is_file()
    facts = {
        "python": os.path.realpath(sys.executable),
        "package": PACKAGE,
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
        written.append(_write(directory / name, body + MARK + name.encode() + b"\n"))
    return written


def install_plugin(directory: Path, reference: str) -> Path:
    """Write the executable of a plugin made with `pycni.sdk`, and return its path.

    reference: MODULE or MODULE:ATTRIBUTE, by default `plugin`: the plugin object, whose `type` is
    the executable's name. The module is imported from where it is now, as is what it needs of the
    installed packages. Raises PluginNotFound, OSError.
    """
    module, _, attribute = reference.partition(":")
    attribute = attribute or "plugin"
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise PluginNotFound(f"cannot import {module}: {error}") from error
    plugin = getattr(loaded, attribute, None)
    if not isinstance(plugin, Plugin):
        raise PluginNotFound(
            f"{module} has no plugin object called {attribute}; expected an instance of a class "
            "from pycni.sdk"
        )
    check_plugin_type(plugin.type)
    file = Path(loaded.__file__ or "").resolve()
    # How deep in the tree that Python imports from.
    depth = module.count(".") + (file.name == "__init__.py")
    directory.mkdir(parents=True, exist_ok=True)
    script = _OTHER_SCRIPT.format(
        python=shlex.quote(os.path.realpath(sys.executable)),
        package=shlex.quote(str(PACKAGE)),
        folder=shlex.quote(str(file.parents[depth])),
        libraries=shlex.quote(sysconfig.get_path("purelib")),
        file=shlex.quote(str(file)),
        module=module,
        attribute=attribute,
        name=plugin.type,
        code=INTERNAL,
    )
    return _write(directory / plugin.type, script.encode())


class PluginNotFound(Exception):
    """There is no plugin where it was said to be."""


def _write(path: Path, body: bytes) -> Path:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(body)
    partial.chmod(0o755)
    partial.rename(path)
    return path


@click.command("install")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--plugin",
    "references",
    multiple=True,
    metavar="MODULE[:NAME]",
    help="Only this plugin, one of your own made with pycni.sdk; may be repeated.  "
    "[default name: plugin]",
)
def command(directory: Path, references: tuple[str, ...]) -> None:
    """Write one executable per plugin into DIRECTORY."""
    try:
        if references:
            written = [install_plugin(directory, reference) for reference in references]
        else:
            written = install(directory)
    except PluginNotFound as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot install into {directory}: {error.strerror}") from error
    click.echo(f"installed {', '.join(path.name for path in written)} in {directory}")
