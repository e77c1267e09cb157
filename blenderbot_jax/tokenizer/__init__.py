"""Text to ids and back."""

from blenderbot_jax.tokenizer.byte_level import BlenderbotTokenizer as BlenderbotTokenizer
from blenderbot_jax.tokenizer.byte_level import BlenderbotTokenizerFast as BlenderbotTokenizerFast
from blenderbot_jax.tokenizer.encoding import BatchEncoding as BatchEncoding
from blenderbot_jax.tokenizer.load import load_tokenizer as load_tokenizer
from blenderbot_jax.tokenizer.load import tokenizer_class as tokenizer_class
from blenderbot_jax.tokenizer.small import BlenderbotSmallTokenizer as BlenderbotSmallTokenizer
from blenderbot_jax.tokenizer.small import BlenderbotSmallTokenizerFast as BlenderbotSmallTokenizerFast
