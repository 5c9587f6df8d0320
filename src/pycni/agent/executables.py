"""One executable per plugin, as runtimes expect them in a plugin directory: for `pycni install`.

An executable is the native launcher (launcher/launcher.c) with a few lines at its end that say
what to run; where the package was built without a compiler, a shell script does the launcher's part
without the agent. Both start the interpreter bare (`-IS`: no site packages, no environment), on the
package where it is now, and when either has moved, they say so as an error object of the protocol.
"""

from __future__ import annotations

import compileall
import importlib
import os
import shlex
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pycni import __version__
from pycni.agent import bundling
from pycni.agent.protocol import BEGIN_MS, SOCKET
from pycni.plugins import MARK, NAMES
from pycni.sdk.plugin import Plugin
from pycni.spec.errors import INTERNAL
from pycni.spec.names import check_plugin_type
from pycni.state.files import make_directories, write_file

PACKAGE = Path(__file__).resolve().parents[2]
LAUNCHER = Path(__file__).with_name("launcher")

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
          "repair it and run pycni install again\\"\\n}}", end="")
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
begin_ms={begin_ms}
version={version}
"""


def install(
    directory: Path,
    *,
    socket: Path | None = SOCKET,
    native: bool | None = None,
    begin_ms: int = BEGIN_MS,
) -> list[Path]:
    """Write the plugins' executables into a directory, replacing what has their names.

    socket: where the agent listens, None for never asking one; native: whether to use the compiled
    launcher, None for where there is one; begin_ms: how long that waits for the agent to begin.
    Each file is written whole and then renamed, so that a runtime that starts a plugin meanwhile
    finds the old one or the new one. Returns their paths. Raises OSError.
    """
    compileall.compile_dir(PACKAGE / "pycni", quiet=2)
    with suppress(OSError):  # it only saves time
        bundling.write()
    make_directories(str(directory))
    if native is None:
        native = LAUNCHER.is_file()
    facts = {
        "python": os.path.realpath(sys.executable),
        "package": PACKAGE,
        "libraries": sysconfig.get_path("purelib"),
        "socket": socket or "",
        "begin_ms": begin_ms,
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
    make_directories(str(directory))
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


def changeable(paths: Iterable[Path]) -> list[str]:
    """Who else than root and this user may change some files and folders, or those above them.

    One text for each such file or folder, that above first.
    """
    trusted = {0, os.geteuid()}
    found = {}
    for path in paths:
        for each in (*reversed(path.resolve().parents), path.resolve()):
            try:
                status = each.stat()
            except OSError:
                continue
            mode = status.st_mode
            sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX  # only owners rename and remove
            if status.st_uid not in trusted:
                found[each] = f"{each} belongs to user {status.st_uid}"
            elif mode & stat.S_IWOTH and not sticky:
                found[each] = f"anybody may write to {each}"
            elif mode & stat.S_IWGRP and status.st_gid and not sticky:
                found[each] = f"group {status.st_gid} may write to {each}"
    return [found[path] for path in sorted(found)]


def changeable_by_others(references: Iterable[str] = ()) -> list[str]:
    """Who else than root and this user may change what executables run, as `changeable` says it.

    references: plugins of others that have been installed, as for `install_plugin`.
    """
    modules = [sys.modules[one.partition(":")[0]] for one in references]
    return changeable(_executed([module.__file__ for module in modules if module.__file__]))


def _executed(files: Iterable[str] = ()) -> Iterator[Path]:
    """What an executable runs: the interpreter, the package, libraries, and others' files."""
    yield Path(sys.executable)
    yield Path(sysconfig.get_path("purelib"))
    yield from (PACKAGE / "pycni").rglob("*")
    yield from map(Path, files)


def _write(path: Path, body: bytes) -> Path:
    write_file(str(path), body, 0o755, sync=False)
    path.chmod(0o755)  # whatever the umask: runtimes of any user look for it
    return path
