"""The command group."""

import click

from blenderbot_jax import __version__
from blenderbot_jax.cli.chat import chat
from blenderbot_jax.cli.convert import convert
from blenderbot_jax.cli.errors import OneLineGroup
from blenderbot_jax.cli.explain import explain
from blenderbot_jax.cli.export import export
from blenderbot_jax.cli.info import info
from blenderbot_jax.cli.reply import reply
from blenderbot_jax.cli.verify import verify
from blenderbot_jax.cli.warm_up import warm_up


@click.group(cls=OneLineGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="blenderbot-jax")
@click.pass_context
def main(ctx: click.Context) -> None:
    """BlenderBot, the open-domain chat models, in JAX.

    \b
    Examples:
      blenderbot-jax reply "Hello, how are you?"
      blenderbot-jax chat --model facebook/blenderbot-400M-distill
      blenderbot-jax convert facebook/blenderbot-3B blenderbot-3b --dtype bfloat16
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (reply, chat, explain, convert, export, warm_up, verify, info):
    main.add_command(command)
