"""The command group, and its rule for errors: one line on standard error, exit code 2, no traceback."""

from typing import Any

import click

from blenderbot_jax.cli.chat import chat
from blenderbot_jax.cli.reply import reply


class _RefusedError(click.ClickException):
    """Shown as `Error: ...`; 2 is also what click exits with on a usage error."""

    exit_code = 2


class _OneLineErrors(click.Group):
    """Turns what the library refuses into a message for a person."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise _RefusedError(" ".join(str(error).split())) from None


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="blenderbot-jax")
def main() -> None:
    """BlenderBot, the open-domain chat models, in JAX.

    \b
    Examples:
      blenderbot-jax reply "Hello, how are you?"
      blenderbot-jax chat --model facebook/blenderbot-400M-distill
    """


main.add_command(reply)
main.add_command(chat)
