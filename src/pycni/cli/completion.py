"""`pycni completion SHELL`: the script that makes a shell complete pycni's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(pycni completion bash)"    in ~/.bashrc
    zsh:   eval "$(pycni completion zsh)"     in ~/.zshrc
    fish:  pycni completion fish > ~/.config/fish/completions/pycni.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    group = context.find_root().command
    click.echo(kind(group, {}, "pycni", "_PYCNI_COMPLETE").source())
