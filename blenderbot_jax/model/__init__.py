"""The models: encoder and decoder, the two heads over them, their loss, and the sizes of their tables."""

from blenderbot_jax.model.base import Params as Params
from blenderbot_jax.model.base import Pretrained as Pretrained
from blenderbot_jax.model.causal import BlenderbotForCausalLM as BlenderbotForCausalLM
from blenderbot_jax.model.causal import BlenderbotSmallForCausalLM as BlenderbotSmallForCausalLM
from blenderbot_jax.model.conditional import BlenderbotForConditionalGeneration as BlenderbotForConditionalGeneration
from blenderbot_jax.model.conditional import (
    BlenderbotSmallForConditionalGeneration as BlenderbotSmallForConditionalGeneration,
)
from blenderbot_jax.model.encoder_decoder import BlenderbotModel as BlenderbotModel
from blenderbot_jax.model.encoder_decoder import BlenderbotSmallModel as BlenderbotSmallModel
from blenderbot_jax.model.objective import IGNORED_LABEL as IGNORED_LABEL
from blenderbot_jax.model.objective import cross_entropy as cross_entropy
from blenderbot_jax.model.objective import shift_tokens_right as shift_tokens_right
from blenderbot_jax.model.positions import extend_positions as extend_positions
from blenderbot_jax.model.resize import resize_token_embeddings as resize_token_embeddings
