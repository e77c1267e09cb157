"""Every rule against transformers' own class, alone and all in their order, on scores with ties and barred tokens."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.utils import GenerationMixin

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.plan import Plan, Settings, compile_config
from blenderbot_jax.generation.processors import process
from blenderbot_jax.generation.step import Step

B, K, V, S = 3, 2, 140, 9
MAX_LENGTH = 12
MODEL = BlenderbotConfig(vocab_size=V, d_model=8, encoder_attention_heads=2, decoder_attention_heads=2)

SAMPLE, BEAMS = {"do_sample": True, "num_return_sequences": K}, {"num_beams": K}
BEAM_SAMPLE = {"do_sample": True, "num_beams": K}
BIASES = [[[7], 2.5], [[3, 9], -1.5], [[4, 3, 9], 0.75], [[5, 9], 0.1], [[9], -0.3], [[1, 4], -float("inf")]]

# transformers' class, and a configuration that runs it and nothing else.
RULES: list[tuple[str, dict[str, Any]]] = [
    ("SequenceBiasLogitsProcessor", {"sequence_bias": BIASES}),
    ("EncoderRepetitionPenaltyLogitsProcessor", {"encoder_repetition_penalty": 1.7}),
    ("RepetitionPenaltyLogitsProcessor", {"repetition_penalty": 1.3}),
    ("NoRepeatNGramLogitsProcessor", {"no_repeat_ngram_size": 2}),
    ("EncoderNoRepeatNGramLogitsProcessor", {"encoder_no_repeat_ngram_size": 2}),
    ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[7], [3, 9], [4, 3, 9], [2]]}),
    ("MinLengthLogitsProcessor", {"min_length": 5}),
    ("MinNewTokensLengthLogitsProcessor", {"min_new_tokens": 4}),
    ("ForcedBOSTokenLogitsProcessor", {"forced_bos_token_id": 6}),
    ("ForcedEOSTokenLogitsProcessor", {"forced_eos_token_id": [2, 5]}),
    ("InfNanRemoveLogitsProcessor", {"remove_invalid_values": True}),
    ("ExponentialDecayLengthPenalty", {"exponential_decay_length_penalty": (2, 1.3)}),
    ("ExponentialDecayLengthPenalty", {"exponential_decay_length_penalty": (0, 0.6)}),
    ("SuppressTokensLogitsProcessor", {"suppress_tokens": [3, 4, 5, 60, 139]}),
    ("SuppressTokensAtBeginLogitsProcessor", {"begin_suppress_tokens": [3, 4, 5]}),
    ("TemperatureLogitsWarper", {"temperature": 0.7}),
    *(("TopHLogitsWarper", {"top_h": h}) for h in (0.1, 0.4, 0.9)),
    *(("TopKLogitsWarper", {"top_k": k}) for k in (1, 7, 500)),
    *(("TopPLogitsWarper", {"top_p": p}) for p in (0.0, 0.3, 0.9)),
    *(("MinPLogitsWarper", {"min_p": p}) for p in (0.05, 0.4, 1.0)),
    *(("TypicalLogitsWarper", {"typical_p": p}) for p in (0.05, 0.5, 0.95)),
    *(("EpsilonLogitsWarper", {"epsilon_cutoff": e}) for e in (0.003, 0.02, 0.9)),
    *(("EtaLogitsWarper", {"eta_cutoff": e}) for e in (0.003, 0.02, 0.9)),
    ("LogitNormalization", {"renormalize_logits": True}),
]
# Several at once: the numbers are such that each changes something the next one sees.
MIXTURES: list[dict[str, Any]] = [
    {
        "sequence_bias": BIASES, "encoder_repetition_penalty": 1.2, "repetition_penalty": 0.8,
        "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[7], [3, 9]], "min_length": 5,
        "forced_bos_token_id": 6, "forced_eos_token_id": 2, "remove_invalid_values": True,
        "exponential_decay_length_penalty": (1, 1.2), "suppress_tokens": [3, 4], "begin_suppress_tokens": [5, 8],
        "temperature": 1.4, "top_h": 0.95, "top_k": 60, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9,
        "epsilon_cutoff": 0.001, "eta_cutoff": 0.002, "renormalize_logits": True,
    },
    {
        "encoder_repetition_penalty": 0.7, "repetition_penalty": 1.5, "min_new_tokens": 3, "eos_token_id": [2, 5],
        "exponential_decay_length_penalty": (0, 1.1), "begin_suppress_tokens": [9, 10], "temperature": 0.6,
        "top_k": 40, "typical_p": 0.8, "eta_cutoff": 0.01,
    },
]  # fmt: skip
_JOINTLY = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_p", "top_k", "top_h", "temperature")


def _allowed(sent: Any) -> list[int]:
    """The tokens a prefix allows: a third of them, by the last token."""
    return [token for token in range(V) if (token + int(sent[-1])) % 3 == 0]


def _constraint(step: Step) -> jax.Array:
    last = step.tokens[:, :, step.length - 1]
    return (jnp.arange(V) + last[..., None]) % 3 == 0


def _own_rule(scores: jax.Array, step: Step) -> jax.Array:
    return scores - 0.25 * (jnp.arange(V) < step.length).astype(scores.dtype)


class _OwnRule(transformers.LogitsProcessor):
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores - 0.25 * (torch.arange(V) < input_ids.shape[-1]).float()


@partial(jax.jit, static_argnums=(3, 4, 5))
def _ours(scores: Any, step: Step, settings: Settings, plan: Plan, constrained: bool, custom: bool) -> jax.Array:
    return process(scores, step, settings, plan, _constraint if constrained else None, (_own_rule,) if custom else ())


def _theirs(config: GenerationConfig, source: np.ndarray, prompt_length: int, **passed: Any) -> LogitsProcessorList:
    """The list that transformers' generate would build."""

    class Host(GenerationMixin):
        config = transformers.BlenderbotConfig()

    own = {"eos_token_id": 2, "max_length": MAX_LENGTH, "num_beams": 1}
    given = {name: _as_list(value) for name, value in config.to_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = transformers.GenerationConfig(**{**own, **given})
    reference._eos_token_tensor = torch.tensor(reference.eos_token_id).reshape(-1)
    return Host()._get_logits_processor(
        generation_config=reference,
        input_ids_seq_length=prompt_length,
        encoder_input_ids=torch.from_numpy(source.astype(np.int64)),
        device="cpu",
        model_kwargs={},
        prefix_allowed_tokens_fn=passed.get("prefix"),
        logits_processor=passed.get("custom", []),
    )


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, tuple) else value


@pytest.fixture(autouse=True)
def _equal_scores_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch leaves open which of two equal scores comes first; here the earlier token does, so that ties compare."""
    sort = torch.sort

    def topk(scores: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        del sorted
        values, indices = sort(scores, dim=dim, descending=largest, stable=True)
        return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))

    monkeypatch.setattr(torch, "sort", partial(sort, stable=True))
    monkeypatch.setattr(torch, "topk", topk)


def _scores(rng: np.random.Generator, case: int, invalid: bool = False) -> np.ndarray:
    scores = rng.normal(scale=(1.0, 3.0, 1.0, 2.0)[case % 4], size=(B, K, V))
    if case % 4 >= 2:
        scores = np.round(scores * 4) / 4 + 0.0  # ties; lax.top_k would put a -0.0 after 0.0
    if case % 2:
        scores[rng.random(scores.shape) < 0.3] = -np.inf
    if invalid:
        for value in (np.nan, np.inf):
            scores[rng.random(scores.shape) < 0.05] = value
    return scores.astype(np.float32)


def _agree(fields: dict[str, Any], *, invalid: bool = False, constrained: bool = False, custom: bool = False) -> None:
    """Compare scores after the rules, over several steps, scores and decoder prompts."""
    config = GenerationConfig(max_length=MAX_LENGTH, **fields)
    rng = np.random.default_rng(0)
    for case, (prompt_length, length) in enumerate([(1, 1), (1, 2), (1, 5), (1, 11), (3, 3), (3, 4), (3, 7), (2, 11)]):
        scores = _scores(rng, case, invalid)
        tokens = rng.integers(0, 11, (B, K, 16), dtype=np.int32)
        source = rng.integers(0, 11, (B, S), dtype=np.int32)
        if case == 3 and constrained:
            # Nothing is left that the prefixes of one prompt allow, nor of another's first row; sampling's rules would
            # make a NaN of that row, under beams.
            for b, k in [(1, 0), (1, 1)] if custom else [(1, 0), (1, 1), (2, 0)]:
                scores[b, k, _allowed(tokens[b, k, :length])] = -np.inf
        plan, settings = compile_config(config, MODEL, S, prompt_length)
        step = Step(tokens, jnp.int32(length), np.pad(source, ((0, 0), (0, 7))), settings.prompt_length)
        ours = _ours(scores, step, settings, plan, constrained, custom)
        reference = _theirs(
            config,
            source,
            prompt_length,
            prefix=(lambda _, sent: _allowed(sent)) if constrained else None,
            custom=[_OwnRule()] if custom else [],
        )
        ids = torch.from_numpy(tokens[:, :, :length].reshape(B * K, -1).astype(np.int64))
        expected = reference(ids, torch.from_numpy(scores.reshape(B * K, V))).numpy().reshape(B, K, V)
        np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected), err_msg=f"barred: {fields}, {case}")
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6, err_msg=f"scores: {fields}, {case}")


@pytest.mark.parametrize(("name", "fields"), RULES, ids=lambda value: str(value)[:60])
def test_a_rule_is_the_one_of_transformers(name: str, fields: dict[str, Any]):
    draws = bool({*fields} & {*_JOINTLY})
    fields = fields | (SAMPLE if draws else BEAMS)
    assert [type(rule).__name__ for rule in _theirs(GenerationConfig(**fields), np.ones((B, S)), 1)] == [name]
    _agree(fields, invalid=name.startswith("InfNan"))


def test_beam_sampling_keeps_more_tokens_than_there_are_ends():
    for name, value in {
        "top_k": 1,
        "top_p": 0.0,
        "min_p": 1.0,
        "typical_p": 0.05,
        "epsilon_cutoff": 0.9,
        "eta_cutoff": 0.9,
    }.items():
        _agree({**BEAM_SAMPLE, "eos_token_id": [2, 5, 8], name: value})


@pytest.mark.parametrize(
    ("fields", "mode"),
    [(MIXTURES[0], SAMPLE), (MIXTURES[0], BEAMS), (MIXTURES[1], BEAM_SAMPLE)],
    ids=["everything under sampling", "everything under beams", "some under beam sampling"],
)
def test_the_whole_list_is_that_of_transformers(fields: dict[str, Any], mode: dict[str, Any]):
    _agree({**fields, **mode}, constrained=True, custom=True)


@pytest.mark.parametrize("mode", [SAMPLE, BEAMS], ids=["sample", "beams"])
def test_a_constraint_is_prefix_allowed_tokens(mode: dict[str, Any]):
    _agree(mode, constrained=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"suppress_tokens": [2, 3], "forced_eos_token_id": 2},
        {"suppress_tokens": [4], "forced_bos_token_id": 4},
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"early_stopping": "sometimes"},
        {"max_new_tokens": 0},
    ],
)
def test_what_transformers_refuses_is_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=max(fields, key=len)):
        transformers.GenerationConfig(**fields)
    with pytest.raises(ValueError, match=max(fields, key=len)):
        GenerationConfig(**fields)


def test_files_are_read_on_both_sides(tmp_path):
    ours = GenerationConfig(
        num_beams=3, sequence_bias={(4, 5): -2.0, (7,): 1}, suppress_tokens=[3], bad_words_ids=[[9, 8]],
        exponential_decay_length_penalty=(3, 1.5), eos_token_id=[2, 5], output_scores=True,
    )  # fmt: skip
    ours.save_json(tmp_path / "generation_config.json")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert theirs.sequence_bias == [[[4, 5], -2.0], [[7], 1.0]]
    transformers.SequenceBiasLogitsProcessor(theirs.sequence_bias)
    theirs.return_dict_in_generate = True
    theirs.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == ours.replace(return_dict_in_generate=True)
