"""How commands talk: data on stdout, words on stderr, errors with a hint.

Understandable without colour; nothing here is needed on the plugin path. Text may hold what others
chose (a container's id, a path, a plugin's message): it is shown, never obeyed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import click

from pycni.runtime.errors import ConfigError, PluginError, SeveralErrors
from pycni.spec.errors import MEANINGS, CNIError

QUIET_SECONDS = 1.0  # seconds before a command says what it is waiting for


def printable(text: str) -> str:
    """A text with what a terminal would act on as escapes: control characters, but for the end of a
    line and tabs, and those that change the order in which a line is shown."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def report(error: Exception) -> None:
    """Show an error on stderr. What is not foreseen gets its place, and no traceback."""
    if isinstance(error, SeveralErrors):
        for one in error.errors:
            report(one)
    elif isinstance(error, CNIError):
        _report(error)
    elif isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)  # a group alone: its commands
    elif isinstance(error, click.UsageError):
        message = error.format_message()
        _error(message)
        if error.ctx is not None:
            _hint(f"{error.ctx.get_usage().removeprefix('Usage: ')}; see --help")
    elif isinstance(error, click.ClickException):
        _error(error.format_message())
    elif isinstance(error, BrokenPipeError):
        pass  # the reader of our output has had enough
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _error(f"{where}{error.strerror or error}")
    else:
        from pycni.sdk.dispatch import internal_error

        _report(internal_error(error))


def _report(error: CNIError) -> None:
    if isinstance(error, ConfigError):
        for fault in error.faults:
            _error(str(fault))
            if fault.expected:
                _hint(fault.expected)
        return
    meaning = MEANINGS.get(error.code)
    code = f" (code {error.code}: {meaning})" if meaning else f" (code {error.code})"
    _error(error.message + (code if error.code else ""))
    if isinstance(error, PluginError) and error.stderr:
        for line in error.stderr.splitlines():
            info(f"  {error.plugin_type}: {line}")
    if error.details:
        _hint(error.details)


def _error(message: str) -> None:
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {printable(message)}", err=True)


def _hint(text: str) -> None:
    click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {printable(text)}", err=True)


def warn(message: str) -> None:
    """Say on stderr what is wrong but no obstacle."""
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {printable(message)}", err=True)


def info(message: str) -> None:
    """Say on stderr what was done."""
    click.echo(printable(message), err=True)


def count(number: int, one: str, more: str = "") -> str:
    """A number with its noun. more: the plural, by default with an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def show(text: str) -> None:
    """Print on stdout what is for people to read."""
    click.echo(printable(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on stdout: as wide as the terminal, or as its content where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # As a text, not a string: rich would take `[...]` in that for markup.
        grid.add_row(*(Text(printable(str(cell)).replace("\n", "\\n"), end="") for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    # Cells are padded to the column; at the end of a line that is noise.
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def table_with_pods(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """`table`, without its column "pod" where no row has one."""
    pod = columns.index("pod")
    if not any(row[pod] for row in rows):
        columns, *rows = ((*row[:pod], *row[pod + 1 :]) for row in (columns, *rows))
    table(columns, rows)


class Progress:
    """Says on stderr what a command is waiting for, once it takes longer than a second.

    `with Progress() as progress:`, and give `progress.call` to what reports its steps.
    """

    def __init__(self) -> None:
        self._step = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def call(self, command: str, plugin_type: str) -> None:
        """A step begins: an operation of a plugin."""
        self._step = f"{plugin_type}: {command}"

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._done.wait(QUIET_SECONDS):
            return
        if not sys.stderr.isatty():
            shown = ""
            while not self._done.is_set():
                if self._step != shown:
                    shown = self._step
                    info(f"waiting for {shown or 'the others'} ...")
                self._done.wait(QUIET_SECONDS)
            return
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("waiting") as status:
            while not self._done.wait(0.1):
                status.update(Text(f"waiting for {printable(self._step)}"))
