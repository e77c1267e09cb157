"""The command `blenderbot-jax`, one file per sub-command."""

from blenderbot_jax.cli.main import main as main
