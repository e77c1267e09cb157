"""Evaluation: likelihood of replies that are given, metrics of generated ones, self-chat, reranking."""

from blenderbot_jax.evaluation.bleu import CitableScores as CitableScores
from blenderbot_jax.evaluation.bleu import citable_scores as citable_scores
from blenderbot_jax.evaluation.bleu import corpus_bleu as corpus_bleu
from blenderbot_jax.evaluation.bleu import sentence_bleu as sentence_bleu
from blenderbot_jax.evaluation.dialogues import dialogue_metrics as dialogue_metrics
from blenderbot_jax.evaluation.diversity import inter_distinct as inter_distinct
from blenderbot_jax.evaluation.diversity import intra_distinct as intra_distinct
from blenderbot_jax.evaluation.likelihood import Likelihood as Likelihood
from blenderbot_jax.evaluation.likelihood import likelihood as likelihood
from blenderbot_jax.evaluation.metrics import DEFAULT_METRICS as DEFAULT_METRICS
from blenderbot_jax.evaluation.metrics import METRICS as METRICS
from blenderbot_jax.evaluation.metrics import text_metrics as text_metrics
from blenderbot_jax.evaluation.report import Report as Report
from blenderbot_jax.evaluation.report import evaluate as evaluate
from blenderbot_jax.evaluation.rerank import rerank as rerank
from blenderbot_jax.evaluation.self_chat import self_chat as self_chat
from blenderbot_jax.evaluation.text import exact_match as exact_match
from blenderbot_jax.evaluation.text import f1 as f1
from blenderbot_jax.evaluation.text import normalized as normalized
from blenderbot_jax.evaluation.text import rouge_l as rouge_l
from blenderbot_jax.evaluation.text import rouge_n as rouge_n
