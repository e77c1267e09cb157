"""ParlAI's checkpoints, in which BlenderBot was trained, told in the terms of published folders.

`model.opt` becomes config.json and generation_config.json, `model.dict` and its companions become vocab.json,
merges.txt and tokenizer_config.json, and each of them can be written back. The weights stay where they are:
`checkpoint` reads them in place. Nothing here knows a model or a tensor.
"""

from blenderbot_jax.parlai.dictionary import Vocabulary as Vocabulary
from blenderbot_jax.parlai.dictionary import dictionary_files as dictionary_files
from blenderbot_jax.parlai.dictionary import read_vocabulary as read_vocabulary
from blenderbot_jax.parlai.options import BYTE_LEVEL as BYTE_LEVEL
from blenderbot_jax.parlai.options import SUBWORDS as SUBWORDS
from blenderbot_jax.parlai.options import architecture as architecture
from blenderbot_jax.parlai.options import decoding as decoding
from blenderbot_jax.parlai.options import options_of as options_of
from blenderbot_jax.parlai.options import read_options as read_options
from blenderbot_jax.parlai.published import published as published
from blenderbot_jax.parlai.source import MODEL as MODEL
from blenderbot_jax.parlai.source import SUFFIXES as SUFFIXES
from blenderbot_jax.parlai.source import beside as beside
from blenderbot_jax.parlai.source import find as find
