"""The decoder alone as a language model: its forward pass and its replies are those of transformers.

transformers sizes a decoder's cache by the encoder's depth, and drops the encoder's states beside one; it is told
`use_cache=False`.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
transformers = pytest.importorskip("transformers", reason="parity is measured against transformers")

from blenderbot_jax import save_pretrained
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import (
    BlenderbotForCausalLM,
    BlenderbotForConditionalGeneration,
    BlenderbotSmallForCausalLM,
    cross_entropy,
)
from tests.golden.fill import golden_params
from tests.parity.generation import decode_in_transformers, shared_noise
from tests.parity.reference import TOLERANCE, as_torch, largest_difference, right_padded
from tests.parity.test_outputs import ALL, differences, params_of, run

CLASSES = {True: BlenderbotForCausalLM, False: BlenderbotSmallForCausalLM}
PROMPTS = np.random.default_rng(0).integers(3, 96, (3, 5)).astype(np.int32)
STATES = np.random.default_rng(1).normal(size=(3, 4, 24)).astype(np.float32)
STATES_MASK = np.arange(4) < np.array([[4], [2], [3]])
BEAMS = GenerationConfig(num_beams=3, max_new_tokens=8)


def causal_pair(config: Any, seed: int = 0) -> tuple[Any, Any, Any]:
    """A transformers model with random weights, ours, and our parameters with the same weights."""
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    # transformers changes the configuration it is given, so this one is its own.
    theirs = getattr(transformers, f"{family}Config").from_dict({**config.to_dict(), "attn_implementation": "eager"})
    reference = getattr(transformers, f"{family}ForCausalLM")(theirs).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in reference.named_parameters():
            tensor.normal_(0.0, 0.3, generator=generator)
            if name.endswith(("norm.weight", "layernorm_embedding.weight")):
                tensor.add_(1.0)
    params = params_of(reference, tied=config.tie_word_embeddings)
    return reference, CLASSES[config.normalize_before](config), params


def with_states(**others: Any) -> dict[str, Any]:
    """The encoder's side of an input for transformers."""
    return {
        "encoder_hidden_states": torch.from_numpy(STATES),
        "encoder_attention_mask": torch.from_numpy(STATES_MASK.astype(np.int64)),
        **others,
    }


@pytest.fixture(scope="module", params=["tiny_config", "tiny_small_config"])
def models(request):
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    return causal_pair(request.getfixturevalue(request.param).replace(scale_decoder_embedding=False))


@pytest.fixture(scope="module")
def batch():
    ids, mask = right_padded(np.random.default_rng(2), [5, 2, 4], 96)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask, ids, -100)}


@pytest.mark.parametrize("states", [False, True], ids=["alone", "over an encoder's states"])
def test_every_field_is_that_of_transformers(models, batch, states):
    reference, model, params = models
    ours_in = {**batch, "encoder_hidden_states": STATES, "encoder_attention_mask": STATES_MASK} if states else batch
    ours = run(model, params, ours_in)
    with torch.no_grad():
        theirs = reference(
            **as_torch(**batch), **(with_states() if states else {}), **dict.fromkeys(ALL, True), use_cache=False
        )
    found = differences(ours, theirs, STATES_MASK, batch["attention_mask"])
    assert max(found.values()) < TOLERANCE, found
    assert (ours.cross_attentions is not None) == states
    # Not shifted: each place is scored against its own label, not the next.
    assert largest_difference(ours.loss, cross_entropy(ours.logits, batch["labels"])) < 1e-5
    shifted = np.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    assert largest_difference(ours.loss, cross_entropy(ours.logits, shifted)) > 100 * TOLERANCE


def test_the_last_logits_and_embeddings_of_ones_own_are_as_in_transformers(models, batch):
    reference, model, params = models
    embeds = np.random.default_rng(3).normal(size=(3, 5, 24)).astype(np.float32)
    mask = batch["attention_mask"]

    @jax.jit
    def last(params, embeds):
        return model.apply({"params": params}, None, mask, inputs_embeds=embeds, logits_to_keep=2).logits

    with torch.no_grad():
        theirs = reference(
            inputs_embeds=torch.from_numpy(embeds), **as_torch(attention_mask=mask), logits_to_keep=2, use_cache=False
        )
    assert theirs.logits.shape == (3, 2, 96)
    assert largest_difference(last(params, embeds), theirs.logits, mask[:, -2:]) < TOLERANCE


def test_an_untied_head_is_used_beside_the_table(models, batch):
    reference, model, params = causal_pair(models[1].config.replace(tie_word_embeddings=False))
    wanted = jax.eval_shape(model.init_params, jax.random.key(0))
    assert {k: v.shape for k, v in flatten(params).items()} == {k: v.shape for k, v in flatten(wanted).items()}
    assert sum(sorted(leaf.shape) == [24, 96] for leaf in jax.tree.leaves(params)) == 2
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        theirs = reference(**as_torch(**ids), use_cache=False)
    assert largest_difference(run(model, params, ids, ()).logits, theirs.logits, batch["attention_mask"]) < TOLERANCE


DECODING = {
    "greedy": GenerationConfig(max_length=18),
    "greedy under rules": GenerationConfig(
        max_new_tokens=12, repetition_penalty=1.3, min_new_tokens=9, forced_eos_token_id=2
    ),
    "beams": GenerationConfig(num_beams=4, num_return_sequences=4, max_new_tokens=9, length_penalty=0.0),
    "beams under rules": GenerationConfig(
        num_beams=3, num_return_sequences=2, max_length=17, length_penalty=0.65, no_repeat_ngram_size=2, min_length=12,
        early_stopping=True, bad_words_ids=[[7], [9, 12]],
    ),
    "samples": GenerationConfig(do_sample=True, top_k=9, temperature=1.3, max_new_tokens=9, num_return_sequences=3),
}  # fmt: skip
# Way of decoding, architecture, whether over an encoder's states. Compiling dominates, so the rest is slow.
QUICK = {("greedy", "tiny_small_config", False), ("beams under rules", "tiny_config", True)}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(map(str, case)))
    for case in itertools.product(DECODING, ("tiny_config", "tiny_small_config"), (False, True))
]


@pytest.mark.parametrize(("name", "family", "states"), CASES)
def test_replies_continue_the_prompt_as_in_transformers(request, name, family, states):
    config = DECODING[name]
    shape = request.getfixturevalue(family).replace(scale_decoder_embedding=False)
    reference, model, params = causal_pair(shape, seed=4)
    mask = np.ones_like(PROMPTS)
    key = jax.random.key(5) if config.do_sample else None
    with shared_noise(jax.random.key(5), len(PROMPTS), config, PROMPTS.shape[1]):
        others = with_states(use_cache=False) if states else {"use_cache": False}
        theirs = decode_in_transformers(reference, PROMPTS, mask, config, **others)
    given = {"encoder_outputs": STATES, "encoder_attention_mask": STATES_MASK} if states else {}
    ours = generate(model, params, PROMPTS, config=config, key=key, **given)
    sequences, lengths = np.asarray(ours.sequences), np.asarray(ours.lengths)
    assert (sequences[:, :, : PROMPTS.shape[1]] == PROMPTS[:, None]).all()
    for b, r in np.ndindex(*lengths.shape):
        mine = sequences[b, r, : lengths[b, r]].tolist()
        assert theirs.sequences[b, r, : len(mine)].tolist() == mine
        # Past the end transformers fills with pad, or under beams with </s>.
        assert set(theirs.sequences[b, r, len(mine) :].tolist()) <= {0, 2}
    if theirs.scores is not None:
        np.testing.assert_allclose(np.asarray(ours.scores), theirs.scores, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("tiny_config", GenerationConfig(num_beams=3, max_new_tokens=6)),
        pytest.param("tiny_small_config", GenerationConfig(max_new_tokens=9), marks=pytest.mark.slow),
    ],
    ids=["beams", "greedy"],
)
def test_prompts_of_any_length_padded_on_the_left_are_continued_as_each_alone(request, family, config):
    model = BlenderbotForCausalLM(request.getfixturevalue(family))
    params = golden_params(model, eos_bias=None)
    prompts = [np.array([40]), np.arange(50, 57), np.arange(9, 3, -2)]
    W = max(map(len, prompts))
    ids = np.stack([np.pad(prompt, (W - len(prompt), 0)) for prompt in prompts])
    together = generate(model, params, ids, config=config)
    for b, prompt in enumerate(prompts[1:], 1):
        alone = generate(model, params, prompt[None], config=config)
        end, pads = int(alone.lengths[0, 0]), W - len(prompt)
        assert int(together.lengths[b, 0]) == pads + end
        assert together.sequences[b, 0, pads : pads + end].tolist() == alone.sequences[0, 0, :end].tolist()
        assert abs(float(together.scores[b, 0] - alone.scores[0, 0])) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"input_ids": None}, ValueError, "input_ids is required.*bos_token_id"),
        ({"input_ids": [[5, 6, 0], [5, 6, 7]]}, ValueError, "row 0 .*ends in padding.*left"),
        ({"attention_mask": [[1, 1], [1, 0]]}, ValueError, "row 1 .*ends in padding.*padding_side"),
        ({"attention_mask": [[1, 1]]}, ValueError, "attention_mask must have the shape of input_ids"),
        ({"input_ids": [[5] * 25]}, ValueError, "input_ids has 25 tokens.*24"),
        ({"input_ids": [[5, 96]]}, ValueError, r"input_ids\[0, 1\] is 96"),
        ({"input_ids": [[5] * 20]}, ValueError, "24 positions.*max_new_tokens at most 5"),
        ({"config": GenerationConfig(max_length=2)}, ValueError, "max_length=2"),
        ({"decoder_input_ids": [[1]]}, ValueError, "no decoder prompt beside input_ids"),
        ({"inputs_embeds": [[[0.0] * 24]]}, ValueError, "a causal model continues ids"),
        ({"encoder_attention_mask": [[1, 1], [1, 1]]}, ValueError, "mask over encoder_outputs, and there are none"),
        ({"encoder_outputs": STATES}, ValueError, "for a batch of 3, input_ids for one of 2"),
        ({"encoder_outputs": STATES[:2, :, :8]}, ValueError, "d_model=24"),
        ({"config": BEAMS.replace(encoder_no_repeat_ngram_size=3)}, ValueError, "encoder_no_repeat_ngram_size.*none"),
        ({"config": BEAMS.replace(encoder_repetition_penalty=1.2)}, ValueError, "encoder_repetition_penalty.*none"),
    ],
)
def test_what_a_decoder_alone_cannot_do_is_refused_by_name(tiny_config, inputs, error, words):
    model = BlenderbotForCausalLM(tiny_config)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    given = {"input_ids": [[5, 6], [7, 8]], "config": BEAMS} | inputs
    arrays = {
        name: value if isinstance(value, GenerationConfig | None) else np.asarray(value)
        for name, value in given.items()
    }
    with pytest.raises(error, match=words):
        generate(model, params, **arrays)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"input_ids": None}, ValueError, "input_ids is required"),
        ({"inputs_embeds": STATES[:2, :2]}, ValueError, "input_ids and inputs_embeds were both given"),
        ({"encoder_attention_mask": [[1]]}, ValueError, "mask over encoder_hidden_states, and there are none"),
        ({"encoder_hidden_states": STATES}, ValueError, "for a batch of 3, input_ids for one of 2"),
        ({"attention_mask": [[1, 1, 1]]}, ValueError, "attention_mask must have the shape of input_ids"),
        ({"labels": [[5], [6]]}, ValueError, r"labels must have the shape of the input, \[2, 2\]"),
        ({"past_key_values": ()}, TypeError, "past_key_values: decode step by step"),
        ({"decoder_input_ids": [[1]]}, TypeError, "takes no argument 'decoder_input_ids'"),
    ],
)  # fmt: skip
def test_what_its_forward_pass_cannot_do_is_refused_by_name(tiny_config, inputs, error, words):
    model = BlenderbotForCausalLM(tiny_config)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    given = {"input_ids": [[5, 6], [7, 8]]} | inputs
    arrays = {name: value if isinstance(value, tuple | None) else np.asarray(value) for name, value in given.items()}
    with pytest.raises(error, match=words):
        jax.eval_shape(lambda params: model.apply({"params": params}, **arrays), params)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_seq2seq_checkpoint_gives_its_decoder_embedding_and_head(tmp_path, tiny_config, tied):
    whole = BlenderbotForConditionalGeneration(tiny_config.replace(tie_word_embeddings=tied, decoder_layers=1))
    weights = {**golden_params(whole), "final_logits_bias": jnp.zeros((1, 96))}
    save_pretrained(tmp_path, whole.config, weights)
    lm, params = BlenderbotForCausalLM.from_pretrained(tmp_path)
    assert "final_logits_bias" not in params
    assert "encoder" not in params["model"]
    # Over the encoder's own states it is the whole model, but for the bias that it has none of.
    out = run(whole, weights, {"input_ids": PROMPTS, "decoder_input_ids": PROMPTS[:, ::-1]}, ())
    given = {"input_ids": PROMPTS[:, ::-1], "encoder_hidden_states": out.encoder_last_hidden_state}
    for tree in (params, weights):  # the whole tree may be passed as it is
        assert largest_difference(run(lm, tree, given, ()).logits, out.logits) < 1e-5
    assert jnp.abs(out.logits).max() > 0.01


def test_the_configuration_it_is_given_stays_as_it_is(tiny_config):
    model = BlenderbotForCausalLM(tiny_config)
    assert (model.config.is_decoder, model.config.is_encoder_decoder) == (True, False)
    assert (tiny_config.is_decoder, tiny_config.is_encoder_decoder) == (False, True)
    assert model == BlenderbotForCausalLM(model.config)


@pytest.mark.parametrize("models", ["tiny_small_config"], indirect=True)
@pytest.mark.parametrize("states", [False, True], ids=["alone", "over an encoder's states"])
def test_step_by_step_it_gives_the_logits_of_the_whole(models, batch, states):
    _, model, params = models
    encoded = STATES if states else None
    step = jax.jit(partial(model.apply, method="decode_step"))
    cache = model.apply(
        {"params": params}, encoded, STATES_MASK if states else None, method="prefill", capacity=6,
        **({} if states else {"batch": 3}),
    )  # fmt: skip
    first, cache = step({"params": params}, PROMPTS[:, None, :3], cache)
    rest = []
    for t in (3, 4):
        logits, cache = step({"params": params}, PROMPTS[:, None, t : t + 1], cache)
        rest.append(logits)
    given = {"encoder_hidden_states": STATES, "encoder_attention_mask": STATES_MASK} if states else {}
    whole = run(model, params, {"input_ids": PROMPTS, **given}, ()).logits
    assert largest_difference(jnp.concatenate([first, *rest], axis=2)[:, 0], whole) < 2e-5
