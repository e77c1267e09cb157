"""Decoding: configuration, rules, sampling, beam search, and `generate`; it knows no model but by three methods."""

from blenderbot_jax.generation.config import GenerationConfig as GenerationConfig
from blenderbot_jax.generation.config import ParlaiConfig as ParlaiConfig
from blenderbot_jax.generation.generate import GenerateOutput as GenerateOutput
from blenderbot_jax.generation.generate import generate as generate
from blenderbot_jax.generation.many import Packing as Packing
from blenderbot_jax.generation.many import generate_many as generate_many
from blenderbot_jax.generation.packing import choose_buckets as choose_buckets
from blenderbot_jax.generation.speculation import Draft as Draft
