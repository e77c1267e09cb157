"""ParlAI's `transformer/classifier` for the tests: its checkpoints, and what it computes, written out in numpy.

A text is taken as ParlAI takes one alone: ids between start and end, no padding.
"""

import math

import numpy as np

from tests.parlai_files import (
    OPTIONS_90M,
    TINY,
    dictionary,
    write_small_files,
    write_weights,
)

CLASSES = ["__ok__", "__notok__"]


def tiny_options(variant, **changes):
    """The options of a tiny classifier: those of the tests' models, and a classifier's."""
    own = {
        "model": "transformer/classifier",
        "classes": CLASSES,
        "reduction_type": "first",
        "threshold": 0.5,
        "fp16": False,
    }
    encoder = {"n_layers": 2, "n_encoder_layers": -1, "n_decoder_layers": -1}
    return {**(OPTIONS_90M if variant == "xlm" else {}), **TINY[variant], **own, **encoder, **changes}


def state_of(variant, options, seed=0):
    """A random state dict in float32, its numbers large enough to tell."""
    rng, V = np.random.default_rng(seed), len(_tokens(variant, options))
    D, F, P = options["embedding_size"], options["ffn_size"], options["n_positions"]
    shapes = {"embeddings.weight": (V, D), "position_embeddings.weight": (P, D)}
    if options.get("n_segments"):
        shapes["segment_embeddings.weight"] = (options["n_segments"], D)
    norms = ["norm_embeddings"]
    for i in range(options["n_layers"]):
        shapes |= {f"layers.{i}.attention.{x}_lin.weight": (D, D) for x in ("q", "k", "v", "out")}
        shapes |= {f"layers.{i}.ffn.lin1.weight": (F, D), f"layers.{i}.ffn.lin2.weight": (D, F)}
        norms += [f"layers.{i}.norm1", f"layers.{i}.norm2"]
    shapes |= {
        key.replace(".weight", ".bias"): shape[:1] for key, shape in shapes.items() if "_lin" in key or "ffn" in key
    }
    state = {f"transformer.{key}": rng.standard_normal(shape) * 0.3 for key, shape in shapes.items()}
    state |= {f"transformer.{name}.weight": 1 + 0.2 * rng.standard_normal(D) for name in norms}
    state |= {f"transformer.{name}.bias": 0.2 * rng.standard_normal(D) for name in norms}
    C = len(options["classes"])
    state |= {
        "additional_linear_layer.weight": rng.standard_normal((C, D)),
        "additional_linear_layer.bias": rng.standard_normal(C),
    }
    return {key: array.astype(np.float32) for key, array in state.items()}


def write_classifier(folder, variant, **changes):
    """A checkpoint.

    Returns:
        Its options and its state dict.
    """
    options = tiny_options(variant, **changes)
    write_small_files(folder, variant, options)
    state = state_of(variant, options)
    write_weights(folder / "model", state)
    return options, state


def probabilities(state, options, ids):
    """What ParlAI's classifier makes of one text of ids, start and end included."""
    part = {key.removeprefix("transformer."): array.astype(np.float64) for key, array in state.items()}
    D, N, post = options["embedding_size"], options["n_heads"], options["variant"] == "xlm"
    h = part["embeddings.weight"][ids] * (math.sqrt(D) if options["embeddings_scale"] else 1)
    h = h + part["position_embeddings.weight"][: len(ids)]
    if options.get("n_segments"):
        h = h + part["segment_embeddings.weight"][0]
    if post:
        h = _norm(part, "norm_embeddings", h)
    for i in range(options["n_layers"]):
        at = f"layers.{i}."
        h = _around(part, at + "norm1", h, lambda x, at=at: _attention(part, at, x, N), post)
        h = _around(part, at + "norm2", h, lambda x, at=at: _feed_forward(part, at, x), post)
    if not post:
        h = _norm(part, "norm_embeddings", h)
    h = h * options.get("output_scaling", 1.0)
    pooled = {"first": h[0], "mean": h.mean(axis=0), "max": h.max(axis=0)}[options["reduction_type"]]
    logits = part["additional_linear_layer.weight"] @ pooled + part["additional_linear_layer.bias"]
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def _around(part, name, h, inner, post):
    return _norm(part, name, h + inner(h)) if post else h + inner(_norm(part, name, h))


def _linear(part, name, x):
    return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def _norm(part, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * part[f"{name}.weight"]
        + part[f"{name}.bias"]
    )


def _attention(part, at, x, heads):
    q, k, v = (np.split(_linear(part, f"{at}attention.{name}_lin", x), heads, axis=-1) for name in "qkv")
    mixed = []
    for n in range(heads):
        scores = q[n] @ k[n].T / math.sqrt(q[n].shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed.append(weights / weights.sum(axis=-1, keepdims=True) @ v[n])
    return _linear(part, f"{at}attention.out_lin", np.concatenate(mixed, axis=-1))


def _feed_forward(part, at, x):
    inner = _linear(part, f"{at}ffn.lin1", x)
    erf = np.vectorize(math.erf)
    return _linear(part, f"{at}ffn.lin2", inner * (1 + erf(inner / math.sqrt(2))) / 2)


def _tokens(variant, options):
    """The dictionary's tokens, with those that half precision adds where it is on."""
    every = dictionary(variant)
    return every if options["fp16"] else [token for token in every if "fp16_pad" not in token.lower()]
