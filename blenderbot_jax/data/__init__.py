"""Dialogues from files, examples from dialogues, batches of fixed shapes from examples."""

from blenderbot_jax.data.batches import Batch as Batch
from blenderbot_jax.data.batches import Batches as Batches
from blenderbot_jax.data.batches import Rows as Rows
from blenderbot_jax.data.examples import MAX_TARGET as MAX_TARGET
from blenderbot_jax.data.examples import Example as Example
from blenderbot_jax.data.examples import ExampleStats as ExampleStats
from blenderbot_jax.data.examples import corpus_examples as corpus_examples
from blenderbot_jax.data.examples import dialogue_examples as dialogue_examples
from blenderbot_jax.data.lines import BadLineError as BadLineError
from blenderbot_jax.data.packed import PackedExamples as PackedExamples
from blenderbot_jax.data.readers import read_dialogues as read_dialogues
from blenderbot_jax.data.records import FORMATS as FORMATS
from blenderbot_jax.data.records import Dialogue as Dialogue
