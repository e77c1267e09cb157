"""The command group."""

from importlib import import_module

import click

from blenderbot_jax import __version__
from blenderbot_jax.cli.errors import OneLineGroup

# Sub-command -> the module it is in, and its name there.
COMMANDS = {
    "reply": ("reply", "reply"),
    "chat": ("chat", "chat"),
    "generate": ("generate", "generate"),
    "self-chat": ("self_chat", "self_chat_command"),
    "explain": ("explain", "explain"),
    "data": ("data", "data"),
    "finetune": ("finetune", "finetune"),
    "eval": ("evaluate", "evaluate_files"),
    "plan": ("plan", "plan"),
    "convert": ("convert", "convert"),
    "export": ("export", "export"),
    "warm-up": ("warm_up", "warm_up"),
    "verify": ("verify", "verify"),
    "info": ("info", "info"),
}


class LazyGroup(OneLineGroup):
    """A group that imports a sub-command when it is called: who chats waits for no trainer."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, as the help lists them."""
        del ctx
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command of a name; None if there is none."""
        del ctx
        module, name = COMMANDS.get(cmd_name, (None, ""))
        return None if module is None else getattr(import_module(f"blenderbot_jax.cli.{module}"), name)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="blenderbot-jax")
@click.pass_context
def main(ctx: click.Context) -> None:
    """BlenderBot, the open-domain chat models, in JAX.

    \b
    Examples:
      blenderbot-jax reply "Hello, how are you?"
      blenderbot-jax chat --model facebook/blenderbot-400M-distill
      blenderbot-jax finetune talk.jsonl --output my-bot
      blenderbot-jax convert facebook/blenderbot-3B blenderbot-3b --dtype bfloat16
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
