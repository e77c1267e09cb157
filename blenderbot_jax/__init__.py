"""BlenderBot, the open-domain chat models, as pure functions in JAX and Flax."""

from blenderbot_jax.attribution import attribution as attribution
from blenderbot_jax.chatbot import Chatbot as Chatbot
from blenderbot_jax.checkpoint import CheckpointError as CheckpointError
from blenderbot_jax.checkpoint import save_pretrained as save_pretrained
from blenderbot_jax.config import BlenderbotConfig as BlenderbotConfig
from blenderbot_jax.config import BlenderbotSmallConfig as BlenderbotSmallConfig
from blenderbot_jax.dialogue import Conversation as Conversation
from blenderbot_jax.ensemble import Ensemble as Ensemble
from blenderbot_jax.generation import Draft as Draft
from blenderbot_jax.generation import GenerateOutput as GenerateOutput
from blenderbot_jax.generation import GenerationConfig as GenerationConfig
from blenderbot_jax.generation import Packing as Packing
from blenderbot_jax.generation import ParlaiConfig as ParlaiConfig
from blenderbot_jax.generation import choose_buckets as choose_buckets
from blenderbot_jax.generation import generate as generate
from blenderbot_jax.generation import generate_many as generate_many
from blenderbot_jax.hub import CheckpointNotFoundError as CheckpointNotFoundError
from blenderbot_jax.model import BlenderbotForCausalLM as BlenderbotForCausalLM
from blenderbot_jax.model import BlenderbotForConditionalGeneration as BlenderbotForConditionalGeneration
from blenderbot_jax.model import BlenderbotModel as BlenderbotModel
from blenderbot_jax.model import BlenderbotSmallForCausalLM as BlenderbotSmallForCausalLM
from blenderbot_jax.model import BlenderbotSmallForConditionalGeneration as BlenderbotSmallForConditionalGeneration
from blenderbot_jax.model import BlenderbotSmallModel as BlenderbotSmallModel
from blenderbot_jax.model import extend_positions as extend_positions
from blenderbot_jax.model import resize_token_embeddings as resize_token_embeddings
from blenderbot_jax.model import shift_tokens_right as shift_tokens_right
from blenderbot_jax.preparation import prepare as prepare
from blenderbot_jax.pretrained import Checkpoint as Checkpoint
from blenderbot_jax.quantize import quantize as quantize
from blenderbot_jax.responses import Response as Response
from blenderbot_jax.safety import Finding as Finding
from blenderbot_jax.safety import PhraseFilter as PhraseFilter
from blenderbot_jax.safety import SafetyClassifier as SafetyClassifier
from blenderbot_jax.scoring import token_log_probs as token_log_probs
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer as BlenderbotSmallTokenizer
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizerFast as BlenderbotSmallTokenizerFast
from blenderbot_jax.tokenizer import BlenderbotTokenizer as BlenderbotTokenizer
from blenderbot_jax.tokenizer import BlenderbotTokenizerFast as BlenderbotTokenizerFast
from blenderbot_jax.tokenizer import load_tokenizer as load_tokenizer

__version__ = "0.2.0"
