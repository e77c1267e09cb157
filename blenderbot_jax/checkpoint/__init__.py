"""Checkpoints: reading weights without executing anything, naming, loading and saving them."""

from blenderbot_jax.checkpoint.folder import fetch as fetch
from blenderbot_jax.checkpoint.load import load_params as load_params
from blenderbot_jax.checkpoint.save import save_pretrained as save_pretrained
from blenderbot_jax.checkpoint.tensor_file import CheckpointError as CheckpointError
