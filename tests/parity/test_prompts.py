"""What replies begin with, what stands in for the prompt's ids, and what each step of decoding saw."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
transformers = pytest.importorskip("transformers", reason="parity is measured against transformers")
from transformers.modeling_outputs import BaseModelOutput

from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from tests.parity.generation import Decoded, decode_in_transformers, mismatches, reference_config, shared_noise
from tests.parity.reference import TOLERANCE, as_torch, largest_difference, pair, right_padded

FLAGS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
START = 1
IDS, MASK = right_padded(np.random.default_rng(0), [5, 9, 3], 96)
BEGUN = np.random.default_rng(1).integers(3, 96, (3, 4)).astype(np.int32)
WITH_START = np.concatenate([np.full((3, 1), START, np.int32), BEGUN], axis=1)


# Compiling dominates, so each test is quick in one architecture and slow in the other.
PRE_NORM, POST_NORM = "tiny_config", "tiny_small_config"


def families(quick: str | None, *others: Any) -> Any:
    """Both architectures with the other parameters of a test, all but one of them slow."""
    return [
        pytest.param(name, *others, marks=() if name == quick else pytest.mark.slow) for name in (PRE_NORM, POST_NORM)
    ]


@pytest.fixture(scope="module")
def models(request):
    """By architecture: a transformers model, ours, and parameters."""
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    configs = {name: request.getfixturevalue(name) for name in (PRE_NORM, POST_NORM)}
    return {name: pair(config.replace(scale_decoder_embedding=False), seed=1) for name, config in configs.items()}


GREEDY = GenerationConfig(max_length=16, min_length=9)
BEAMS = GenerationConfig(num_beams=3, max_new_tokens=8, min_new_tokens=4, no_repeat_ngram_size=2)
N_BEST = GenerationConfig(num_beams=4, num_return_sequences=4, max_length=16, length_penalty=0.65, early_stopping=True)


def generated(reference: Any, config: GenerationConfig, **inputs: Any) -> Any:
    """transformers' generate on tensors as they are."""
    reference.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return reference.generate(**inputs, generation_config=reference_config(config))


def decoded(out: Any, R: int) -> Decoded:
    """Its result by prompt."""
    scores = getattr(out, "sequences_scores", None)
    return Decoded(out.sequences.numpy().reshape(3, R, -1), None if scores is None else scores.numpy().reshape(3, R))


@pytest.mark.parametrize(
    ("family", "config"),
    [*families(POST_NORM, GREEDY), *families(None, BEAMS), *families(PRE_NORM, N_BEST)],
    ids=lambda value: value if isinstance(value, str) else f"{value.num_beams}",
)
def test_replies_begin_with_decoder_input_ids_as_in_transformers(models, family, config):
    reference, model, params = models[family]
    ours = generate(model, params, IDS, MASK, config=config, decoder_input_ids=BEGUN)
    again = generate(model, params, IDS, MASK, config=config, decoder_input_ids=WITH_START)
    # The start token is put in front where it is missing, and not a second time where it is there.
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.asarray(ours.sequences)[:, :, :5] == WITH_START[:, None]).all()
    assert not ours.token_log_probs[:, :, :5].any()
    for begun in (BEGUN, WITH_START):
        theirs = decode_in_transformers(reference, IDS, MASK, config, decoder_input_ids=begun)
        assert mismatches(reference, IDS, MASK, config, ours, theirs, prompt_length=5) == []
    if theirs.scores is not None:
        np.testing.assert_allclose(np.asarray(ours.scores), theirs.scores, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", families(None))
def test_a_reply_whose_beginning_is_given_goes_on_as_it_did(models, family):
    _, model, params = models[family]
    whole = np.asarray(generate(model, params, IDS, MASK, config=GREEDY).sequences)[:, 0]
    rest = generate(model, params, IDS, MASK, config=GREEDY, decoder_input_ids=whole[:, :5])
    np.testing.assert_array_equal(rest.sequences[:, 0], whole)


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (np.array([[1, 5], [6, 7], [1, 8]]), "begin with the start token 1 or none of them does; here row 0 .* row 1"),
        (BEGUN[:2], "decoder_input_ids are for a batch of 2, the prompts for one of 3"),
        (np.full((3, 2), 96), r"decoder_input_ids\[0, 0\] is 96"),
        (np.full((3, 25), 5), "decoder_input_ids has 25 tokens.*24"),
        (np.full((3, 12), 5), "prompt of 13 tokens leaves no room.*max_length=12"),
    ],
)
def test_beginnings_that_cannot_be_are_refused(tiny_config, begun, words):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    with pytest.raises(ValueError, match=words):
        generate(model, params, IDS, MASK, config=GenerationConfig(max_length=12), decoder_input_ids=begun)


@pytest.mark.parametrize("family", families(PRE_NORM))
def test_embeddings_stand_in_for_the_prompts_ids_as_in_transformers(models, family):
    reference, model, params = models[family]
    embeds = np.random.default_rng(2).normal(size=(3, 9, model.config.d_model)).astype(np.float32)
    ours = generate(model, params, None, MASK, config=GREEDY, inputs_embeds=embeds)
    out = generated(reference, GREEDY, inputs_embeds=torch.from_numpy(embeds), **as_torch(attention_mask=MASK))
    theirs = decoded(out, 1).sequences
    for b in range(3):
        reply = ours.sequences[b, 0, : int(ours.lengths[b, 0])].tolist()
        assert theirs[b, 0, : len(reply)].tolist() == reply
        assert not theirs[b, 0, len(reply) :].any()


@pytest.fixture(scope="module")
def encoded(models):
    """By architecture: what transformers' encoder gives for the prompts."""
    with torch.no_grad():
        return {
            family: reference.get_encoder()(**as_torch(input_ids=IDS, attention_mask=MASK)).last_hidden_state
            for family, (reference, *_) in models.items()
        }


@pytest.mark.parametrize("family", families(POST_NORM))
def test_the_encoders_output_stands_in_for_the_encoder_as_in_transformers(models, encoded, family):
    (reference, model, params), states = models[family], encoded[family]
    ours = generate(model, params, None, MASK, config=N_BEST, encoder_outputs=(states.numpy(),))
    out = generated(reference, N_BEST, encoder_outputs=BaseModelOutput(states), **as_torch(attention_mask=MASK))
    assert mismatches(reference, IDS, MASK, N_BEST, ours, decoded(out, 4)) == []


@pytest.mark.parametrize("family", families(PRE_NORM))
def test_rules_that_look_at_the_prompts_ids_find_them_beside_its_encoding(models, encoded, family):
    (reference, model, params), states = models[family], encoded[family].numpy()
    config = GREEDY.replace(encoder_no_repeat_ngram_size=1)
    expected = decode_in_transformers(reference, IDS, MASK, config)
    ours = generate(model, params, IDS, MASK, config=config, encoder_outputs=states)
    assert mismatches(reference, IDS, MASK, config, ours, expected) == []
    with pytest.raises(ValueError, match="encoder_no_repeat_ngram_size"):
        generate(model, params, None, MASK, config=config, encoder_outputs=states)


RECORDED = {
    "greedy": GenerationConfig(max_length=15, repetition_penalty=1.2, min_length=8),
    "samples": GenerationConfig(do_sample=True, top_k=9, max_length=13, num_return_sequences=2),
    "beams": GenerationConfig(num_beams=3, num_return_sequences=2, max_length=13, no_repeat_ngram_size=2, min_length=6),
}
QUICK = {("greedy", POST_NORM, True), ("beams", PRE_NORM, False)}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(RECORDED, (PRE_NORM, POST_NORM), (False, True))
]


@pytest.mark.parametrize(("name", "family", "begun"), CASES)
def test_what_each_step_saw_is_what_transformers_records(models, name, family, begun):
    reference, model, params = models[family]
    config = RECORDED[name].replace(**dict.fromkeys(FLAGS, True))
    prompt = {"decoder_input_ids": BEGUN} if begun else {}
    P, R, K = 5 if begun else 1, config.num_return_sequences or 1, config.num_beams or 1
    key = jax.random.key(3) if config.do_sample else None
    ours = generate(model, params, IDS, MASK, config=config, key=key, **prompt)
    with shared_noise(jax.random.key(3), 3, config, P):
        theirs = generated(reference, config, **as_torch(input_ids=IDS, attention_mask=MASK, **prompt))
    assert [name for name, value in vars(ours).items() if value is None] == ["rounds"]  # there is no draft
    sequences = decoded(theirs, R).sequences
    for b, r in np.ndindex(3, R):
        L = int(ours.lengths[b, r])
        assert ours.sequences[b, r, :L].tolist() == sequences[b, r, :L].tolist()
        for i in range(L - P):
            row = int(theirs.beam_indices[b * R + r, i]) if K > 1 else b * R + r
            assert_one_step(ours, theirs, (b, r), i, P, row)
    # The encoder runs once for each prompt.
    for mine, other in zip(ours.encoder_attentions, theirs.encoder_attentions, strict=True):
        assert largest_difference(np.moveaxis(mine, 2, 1), np.moveaxis(other.numpy(), 2, 1), MASK) < TOLERANCE
    for mine, other in zip(ours.encoder_hidden_states, theirs.encoder_hidden_states, strict=True):
        assert largest_difference(mine, other, MASK) < TOLERANCE
    assert_scores_are_those_of_the_choice(ours, P, log_probs=K > 1)


def assert_scores_are_those_of_the_choice(out: Any, P: int, *, log_probs: bool) -> None:
    """Under beams log-probabilities, otherwise logits, both after the rules; zeros where nothing was chosen."""
    scores = np.asarray(out.step_scores if log_probs else jax.nn.log_softmax(out.step_scores))
    chosen = np.take_along_axis(scores, np.asarray(out.sequences)[..., None], axis=-1)[..., 0]
    places = np.arange(scores.shape[2])
    own = (places >= P) & (places < np.asarray(out.lengths)[..., None])
    assert largest_difference(chosen[own], np.asarray(out.token_log_probs)[own]) < TOLERANCE
    assert not np.asarray(out.step_logits)[~own].any()
    assert not np.asarray(out.step_scores)[~own].any()


def assert_one_step(ours: Any, theirs: Any, reply: tuple[int, int], i: int, P: int, row: int) -> None:
    """Step i of a reply, which is place P + i of ours and `row` of transformers' batch."""
    b, r = reply
    place = P + i
    scores, logits = np.asarray(ours.step_scores[b, r, place]), np.asarray(ours.step_logits[b, r, place])
    assert largest_difference(logits, theirs.logits[i][row]) < TOLERANCE
    expected = theirs.scores[i][row].numpy()
    barred = np.isneginf(expected)
    np.testing.assert_array_equal(np.isneginf(scores), barred)
    assert largest_difference(scores[~barred], expected[~barred]) < TOLERANCE
    # The query of step i stands at the place before. The first step of transformers holds all places of the prompt.
    query, S = place - 1, int(MASK[b].sum())
    for mine, other in zip(ours.decoder_attentions, theirs.decoder_attentions[i], strict=True):
        assert largest_difference(mine[b, r, :, query, :place], other[row, :, -1, :place]) < TOLERANCE
        assert not mine[b, r, :, query, place:].any()
    for mine, other in zip(ours.cross_attentions, theirs.cross_attentions[i], strict=True):
        assert largest_difference(mine[b, r, :, query], other[row, :, -1]) < TOLERANCE
        assert not mine[b, r, :, query, S:].any()
    for mine, other in zip(ours.decoder_hidden_states, theirs.decoder_hidden_states[i], strict=True):
        assert largest_difference(mine[b, r, query], other[row, -1]) < TOLERANCE


def test_nothing_is_recorded_that_was_not_asked_for(models):
    _, model, params = models[PRE_NORM]
    config = GenerationConfig(max_length=15, output_logits=True)
    out = jax.eval_shape(lambda params: generate(model, params, IDS, MASK, config=config), params)
    recorded = {name for name, value in vars(out).items() if value is not None}
    assert recorded == {"sequences", "lengths", "scores", "token_log_probs", "step_logits"}
