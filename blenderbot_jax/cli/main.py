"""The command group, and its rule for errors: one line on standard error, exit code 2, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import jax

from blenderbot_jax import __version__
from blenderbot_jax.cli.chat import chat
from blenderbot_jax.cli.reply import reply

# What a shell reports of a program that Ctrl-C ended.
_INTERRUPTED = 130


class _RefusedError(click.ClickException):
    """Shown as `Error: ...`; 2 is also what click exits with on a usage error."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class _OneLineErrors(click.Group):
    """Turns what click and the library refuse into a line for a person."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "blenderbot-jax"
        raise _RefusedError(f"{error.format_message()} (see {command} --help)") from None
    except BrokenPipeError:
        raise  # click ends quietly when the reader of a pipe has gone
    except (ValueError, TypeError, OSError) as error:
        raise _RefusedError(str(error)) from None
    except jax.errors.JaxRuntimeError as error:
        advice = "smaller --batch-size or --beams, or --dtype bfloat16, take less memory"
        raise _RefusedError(f"the device gave up: {str(error).splitlines()[0]}; {advice}") from None
    except KeyboardInterrupt:
        click.echo(err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None


@click.group(cls=_OneLineErrors, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="blenderbot-jax")
@click.pass_context
def main(ctx: click.Context) -> None:
    """BlenderBot, the open-domain chat models, in JAX.

    \b
    Examples:
      blenderbot-jax reply "Hello, how are you?"
      blenderbot-jax chat --model facebook/blenderbot-400M-distill
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


main.add_command(reply)
main.add_command(chat)
