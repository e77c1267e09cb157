"""The commands' rule for errors: one line on standard error, exit code 2, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import jax

from blenderbot_jax.processes import ProcessLostError

# What a shell reports of a program that Ctrl-C ended.
_INTERRUPTED = 130


class _RefusedError(click.ClickException):
    """Shown as `Error: ...`; 2 is also what click exits with on a usage error."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class _OneLineErrors(click.Command):
    """Turns what click and the library refuse into a line for a person."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)


class OneLineGroup(_OneLineErrors, click.Group):
    """A group of commands whose errors are one line."""


def as_script(command: click.Command, help_text: str | None) -> click.Command:
    """A sub-command as a program of its own, under the same rule.

    Args:
        command: one of the sub-commands.
        help_text: what the program says of itself, in place of the sub-command's text.
    """
    settings = {"help_option_names": ["-h", "--help"]}
    text = help_text or command.help
    return _OneLineErrors(None, settings, command.callback, params=command.params, help=text)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "blenderbot-jax"
        raise _RefusedError(f"{error.format_message()} (see {command} --help)") from None
    except BrokenPipeError:
        raise  # click ends quietly when the reader of a pipe has gone
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, ProcessLostError) as error:
        raise _RefusedError(str(error)) from None
    except jax.errors.JaxRuntimeError as error:
        advice = "--dtype bfloat16 takes less memory, and so do a smaller --batch-size or --beams where there are such"
        raise _RefusedError(f"the device gave up: {str(error).splitlines()[0]}; {advice}") from None
    except KeyboardInterrupt:
        click.echo(err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
