"""Text to ids and back."""

from blenderbot_jax.tokenizer.byte_level import BlenderbotTokenizer as BlenderbotTokenizer
from blenderbot_jax.tokenizer.byte_level import BlenderbotTokenizerFast as BlenderbotTokenizerFast
from blenderbot_jax.tokenizer.encoding import BatchEncoding as BatchEncoding
