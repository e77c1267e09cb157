"""Filters of what is said: lists of phrases, and classifiers. `Chatbot.guarded` puts them on both sides of a bot."""

from blenderbot_jax.safety.classifier import SafetyClassifier as SafetyClassifier
from blenderbot_jax.safety.filters import Filter as Filter
from blenderbot_jax.safety.filters import Finding as Finding
from blenderbot_jax.safety.filters import description as description
from blenderbot_jax.safety.filters import first_findings as first_findings
from blenderbot_jax.safety.phrases import PhraseFilter as PhraseFilter
