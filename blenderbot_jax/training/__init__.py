"""Training: examples in, better weights out."""

from blenderbot_jax.training.checkpoints import TrainingCheckpoints as TrainingCheckpoints
from blenderbot_jax.training.checkpoints import TrainingFolderError as TrainingFolderError
from blenderbot_jax.training.config import PRESETS as PRESETS
from blenderbot_jax.training.config import TrainingConfig as TrainingConfig
from blenderbot_jax.training.logs import draw_curves as draw_curves
from blenderbot_jax.training.logs import jsonl_log as jsonl_log
from blenderbot_jax.training.logs import read_log as read_log
from blenderbot_jax.training.logs import tensorboard_log as tensorboard_log
from blenderbot_jax.training.loop import DivergedError as DivergedError
from blenderbot_jax.training.loop import Trained as Trained
from blenderbot_jax.training.loop import fit as fit
from blenderbot_jax.training.step import TrainState as TrainState
from blenderbot_jax.training.step import compile_step as compile_step
from blenderbot_jax.training.step import init_state as init_state
from blenderbot_jax.training.step import train_step as train_step
