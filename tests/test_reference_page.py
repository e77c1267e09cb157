"""The transformers page of BlenderbotConfig, BlenderbotTokenizer, the three models and their Small kin, name by name.

The tables (`reference_tables.py`) are what the page offers. Everything in them is here under its own name, here under
another name, or refused by name; the last tests hold the tables to the installed transformers, so that what appears
there must be looked at.
What the numbers are is the business of `parity/`.
"""

import inspect
import operator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blenderbot_jax
from blenderbot_jax import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    BlenderbotModel,
    BlenderbotTokenizer,
    Checkpoint,
    GenerationConfig,
    generate,
)
from blenderbot_jax.config import BlenderbotSmallConfig
from blenderbot_jax.model import BlenderbotForCausalLM, cross_entropy
from blenderbot_jax.outputs import CausalLMOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, load_tokenizer
from tests.reference_tables import (
    ALIASES,
    ATTRIBUTES,
    CALL,
    CLASSES,
    CONFIG,
    FORWARD,
    GENERATE,
    INHERITED,
    LOADING,
    METHODS,
    MODEL_INSTEAD,
    NOT_HERE,
    OUTPUTS,
    SMALL_CONFIG,
    SMALL_TOKENIZER,
    TOKENIZER,
    TOKENIZER_INSTEAD,
    Here,
    Refused,
    Renamed,
)


def defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def arguments_of(table: dict[str, Any], kind: type) -> list[Any]:
    return [pytest.param(name, row, id=name) for name, row in table.items() if isinstance(row, kind)]


def assert_refused(call: Any, name: str, row: Refused) -> None:
    """The value that asks for something is refused in the words of the table, by the argument's name."""
    with pytest.raises((TypeError, ValueError), match=row.words.format(name=name)) as refusal:
        call(**{name: row.value})
    assert name in str(refusal.value) or name == "text_pair"


def test_every_class_is_here():
    missing = {name for name in CLASSES if not hasattr(blenderbot_jax, name)}
    assert missing == set()
    assert blenderbot_jax.BlenderbotTokenizerFast is BlenderbotTokenizer
    for kind in ("Config", "Model", "ForConditionalGeneration", "ForCausalLM"):
        small, large = (getattr(blenderbot_jax, f"Blenderbot{size}{kind}") for size in ("Small", ""))
        assert issubclass(small, large)


def test_every_field_of_the_configuration_is_here_with_its_default():
    for config, table in ((BlenderbotConfig(), CONFIG), (BlenderbotSmallConfig(), SMALL_CONFIG)):
        assert {name: getattr(config, name) for name in table} == table


def test_second_names_of_a_field_are_read():
    config = BlenderbotConfig(d_model=64, encoder_layers=5)
    for alias, name in ALIASES.items():
        assert getattr(config, alias) == getattr(config, name)
    assert BlenderbotConfig.from_dict({"hidden_size": 96, "num_hidden_layers": 3}).d_model == 96
    for alias in ALIASES:
        with pytest.raises(TypeError, match=alias):
            BlenderbotConfig(**{alias: 4})


def test_what_every_configuration_has_is_kept_in_files_and_refused_as_an_argument():
    assert BlenderbotConfig.from_dict(INHERITED).to_dict().items() >= INHERITED.items()
    for name, value in INHERITED.items():
        with pytest.raises(TypeError, match=name):
            BlenderbotConfig(**{name: value})


@cache
def tiny(kind: str, size: str = "") -> tuple[Any, Any]:
    """A model of one layer, and its parameters."""
    config = getattr(blenderbot_jax, f"Blenderbot{size}Config")(
        vocab_size=32, max_position_embeddings=8, d_model=8, encoder_layers=1, decoder_layers=1, scale_embedding=True,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, init_std=0.5,
    )  # fmt: skip
    model = getattr(blenderbot_jax, f"Blenderbot{size}{kind}")(config)
    return model, model.init_params(jax.random.key(0))


IDS, MASK = np.array([[5, 6, 2], [7, 2, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
REPLIES, REPLY_MASK = np.array([[1, 9, 8], [0, 1, 6]]), np.array([[1, 1, 1], [0, 1, 1]])
SOURCE = {"input_ids": IDS, "attention_mask": MASK}
BATCH = {**SOURCE, "decoder_input_ids": REPLIES, "decoder_attention_mask": REPLY_MASK}


def inputs_of(kind: str) -> dict[str, Any]:
    return SOURCE if kind == "ForCausalLM" else BATCH


@pytest.mark.parametrize("size", ["", "Small"])
@pytest.mark.parametrize("kind", FORWARD)
def test_every_argument_of_the_forward_pass_is_here_or_refused_with_the_way_out(kind, size):
    model, params = tiny(kind, size)
    ours = defaults(type(model).__call__)
    rows = FORWARD[kind]
    here = {name: row.default for name, row in rows.items() if isinstance(row, Here)}
    assert {name: ours[name] for name in here} == here
    assert set(ours) == {"self", "others", *here}
    if size:
        return  # the same code, and the refusals of the other are below
    shapes = lambda **given: jax.eval_shape(  # noqa: E731
        lambda params: model.apply({"params": params}, **inputs_of(kind), **given), params
    )
    refused = {name: row for name, row in rows.items() if isinstance(row, Refused)}
    for name, row in refused.items():
        assert_refused(shapes, name, row)
    plain = shapes()
    for i in range(3):  # several at once, since each call is traced
        neutral = {name: row.neutral[i] for name, row in refused.items() if len(row.neutral) > i}
        assert shapes(**neutral) == plain


@pytest.mark.parametrize("value", [np.array([0, 2]), -1, True, 1.0], ids=repr)
def test_logits_to_keep_is_a_static_number(value):
    model, params = tiny("ForCausalLM")
    with pytest.raises(TypeError, match=r"logits_to_keep is a static whole number.*index the logits with an array"):
        model.apply({"params": params}, **SOURCE, logits_to_keep=value)


@pytest.mark.parametrize("size", ["", "Small"])
@pytest.mark.parametrize("kind", FORWARD)
def test_every_output_has_the_fields_and_shapes_of_the_page(kind, size):
    model, params = tiny(kind, size)
    flags = {"output_attentions": True, "output_hidden_states": True}
    labels = {} if kind == "Model" else {"labels": IDS}
    states = {"encoder_hidden_states": np.ones((2, 5, 8), np.float32)} if kind == "ForCausalLM" else {}
    out = jax.eval_shape(
        lambda params: model.apply({"params": params}, **inputs_of(kind), **flags, **labels, **states), params
    )
    assert set(vars(out)) == set(OUTPUTS[type(out)].split())
    assert not hasattr(out, "past_key_values")
    S = 5 if states else 3
    expected = {"loss": [()], "logits": [(2, 3, 32)], "cross_attentions": [(2, 2, 3, S)]}
    for name, value in vars(out).items():
        shape = [(2, 2, 3, 3)] if name.endswith("attentions") else [(2, 3, 8)]
        shape = shape * 2 if name.endswith("hidden_states") else shape
        assert [leaf.shape for leaf in jax.tree.leaves(value)] == expected.get(name, shape), name


def test_every_argument_of_the_seq2seq_model_does_what_it_says():
    model, params = tiny("ForConditionalGeneration")
    without = lambda name: {key: value for key, value in BATCH.items() if key != name}  # noqa: E731

    @jax.jit
    def outs(params):
        run = lambda **inputs: model.apply({"params": params}, **inputs)  # noqa: E731
        embed = lambda ids, side: model.apply({"params": params}, ids, method=f"embed_{side}")  # noqa: E731
        out = run(**BATCH)
        return {
            "all": out,
            "attention_mask": run(**without("attention_mask")),
            "decoder_attention_mask": run(**without("decoder_attention_mask")),
            "encoder_outputs": run(**without("input_ids"), encoder_outputs=out.encoder_last_hidden_state),
            "inputs_embeds": run(**without("input_ids"), inputs_embeds=embed(IDS, "source")),
            "decoder_inputs_embeds": run(
                **without("decoder_input_ids"), decoder_inputs_embeds=embed(REPLIES, "target")
            ),
            "labels": run(**BATCH, labels=IDS),
            "logits_to_keep": run(**BATCH, logits_to_keep=2),
        }

    found = outs(params)
    logits = np.asarray(found["all"].logits)
    for name in ("encoder_outputs", "inputs_embeds", "decoder_inputs_embeds", "labels"):
        np.testing.assert_allclose(found[name].logits, logits, atol=1e-5, err_msg=name)
    for name in ("attention_mask", "decoder_attention_mask"):
        # The first row has no pads; the second is another without the mask that hides them.
        np.testing.assert_allclose(found[name].logits[0], logits[0], atol=1e-5, err_msg=name)
        assert np.abs(found[name].logits[1, -1] - logits[1, -1]).max() > 1e-2, name
    np.testing.assert_allclose(found["logits_to_keep"].logits, logits[:, -2:], atol=1e-5)
    np.testing.assert_allclose(found["labels"].loss, cross_entropy(jnp.asarray(logits), IDS), atol=1e-5)


def test_what_the_page_says_but_its_code_does_not_do_is_done_as_the_code_does():
    """Embeddings are multiplied, not divided, by sqrt(d_model); those of the reply are never those of the prompt."""
    model, params = tiny("ForConditionalGeneration")
    embeds = model.apply({"params": params}, IDS, method="embed_source")
    table = params["model"]["shared"]["embedding"]
    np.testing.assert_allclose(embeds, table[IDS] * np.float32(8**0.5), rtol=1e-6)
    with pytest.raises(ValueError, match="decoder_input_ids is required"):
        model.apply({"params": params}, inputs_embeds=embeds)


@pytest.mark.parametrize("kind", ["Model", "ForConditionalGeneration", "ForCausalLM"])
def test_every_argument_of_from_pretrained_is_here_or_refused_with_the_way_out(kind, monkeypatch):
    cls = getattr(blenderbot_jax, f"Blenderbot{kind}")
    fetched = []
    monkeypatch.setattr("blenderbot_jax.model.base.fetch", lambda name, **options: fetched.append(options) or 1 / 0)
    for name, row in LOADING.items():
        if isinstance(row, Here):
            with pytest.raises(ZeroDivisionError):
                cls.from_pretrained("demo", **{name: "here"})
            assert fetched.pop() == {name: "here"}
        elif isinstance(row, Renamed):
            assert row.name in defaults(cls.from_pretrained)
        else:
            assert_refused(lambda **given: cls.from_pretrained("demo", **given), name, row)
            for value in row.neutral:
                with pytest.raises(ZeroDivisionError):
                    cls.from_pretrained("demo", **{name: value})
                assert fetched.pop() == {}
    assert defaults(cls.from_pretrained)["dtype"] == jnp.float32


@pytest.mark.parametrize(("name", "row"), arguments_of(GENERATE, Refused))
def test_arguments_of_generate_that_are_not_here_say_the_way_out(name, row):
    model, params = tiny("ForConditionalGeneration")
    call = lambda **given: jax.eval_shape(  # noqa: E731
        lambda params: generate(model, params, IDS, MASK, config=GenerationConfig(max_length=4), **given), params
    )
    assert_refused(call, name, row)
    for value in row.neutral:
        assert call(**{name: value}).sequences.shape == (2, 1, 4)


@pytest.fixture(scope="module")
def tokenizer():
    return BlenderbotTokenizer.from_pretrained("demo")


@pytest.mark.parametrize(
    ("cls", "table"), [(BlenderbotTokenizer, TOKENIZER), (BlenderbotSmallTokenizer, SMALL_TOKENIZER)]
)
def test_every_argument_of_a_tokenizer_is_here_with_its_default(cls, table):
    ours = defaults(cls)
    for name, row in table.items():
        if isinstance(row, Renamed):
            assert row.name in ours
        else:
            assert ours[name] == row.default, name
    with pytest.raises(TypeError, match="'vocab' and 'merges'"):
        cls()


def test_every_argument_of_a_call_is_here_or_refused_by_name(tokenizer):
    ours = defaults(BlenderbotTokenizer.__call__)
    plain = tokenizer("hi")
    for name, row in CALL.items():
        if isinstance(row, Here):
            assert ours[name] == row.default, name
        else:
            assert_refused(lambda **given: tokenizer("hi", **given), name, row)
            for value in row.neutral:
                out = tokenizer("hi", **{name: value})
                assert {key: np.ravel(out[key]).tolist() for key in out} == dict(plain), (name, value)


def test_every_method_of_a_tokenizer_is_here_or_absent_on_purpose(tokenizer):
    for name, arguments in METHODS.items():
        taken = [given for given in defaults(getattr(tokenizer, name)) if given not in ("options", "overrides")]
        assert taken[: len(arguments.split())] == arguments.split(), name
    assert all(hasattr(tokenizer, name) for name in ATTRIBUTES)
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())


def test_methods_that_are_not_here_say_what_to_do_instead(tokenizer):
    for owner, table in ((tokenizer, TOKENIZER_INSTEAD), (tiny("ForConditionalGeneration")[0], MODEL_INSTEAD)):
        for words, names in table.items():
            for name in names.split():
                with pytest.raises(AttributeError, match=rf"has no '{name}'.*{words}"):
                    getattr(owner, name)
        with pytest.raises(AttributeError, match="nonsense"):
            _ = owner.nonsense


def test_a_configuration_is_saved_and_read_as_on_the_page(tmp_path):
    BlenderbotConfig.from_pretrained("demo").save_pretrained(tmp_path / "new")
    assert BlenderbotConfig.from_pretrained(tmp_path / "new") == BlenderbotConfig.from_pretrained("demo")


# The examples of the page.


def test_example_of_the_configuration():
    for config in (BlenderbotConfig(), BlenderbotSmallConfig()):
        model = BlenderbotModel(config)
        assert model.config == config


def test_example_of_the_tokenizer(tokenizer, data_folder):
    published = BlenderbotTokenizer.from_pretrained(data_folder / "tokenizers/blenderbot-3B")
    assert published("Hello world")["input_ids"] == published(" Hello world")["input_ids"] == [6950, 1085, 2]
    assert tokenizer("Hello world")["input_ids"] == tokenizer(" Hello world")["input_ids"]


@pytest.mark.parametrize(
    ("folder", "config", "shape"),
    [
        ("blenderbot-400M-distill", BlenderbotConfig.blenderbot_400m_distill(), (1, 6, 1280)),
        ("blenderbot_small-90M", BlenderbotConfig.blenderbot_small_90m(), (1, 3, 512)),
    ],
)
def test_example_of_the_model_without_head(data_folder, folder, config, shape):
    tokenizer = load_tokenizer(data_folder / "tokenizers" / folder)
    inputs = tokenizer("Studies have been shown that owning a dog is good for you", return_tensors="np")
    decoder_input_ids = tokenizer("Studies show that", return_tensors="np").input_ids
    model = BlenderbotModel(config)
    out = jax.eval_shape(
        lambda: model.apply(
            {"params": model.init_params(jax.random.key(0))}, inputs.input_ids, decoder_input_ids=decoder_input_ids
        )
    )
    assert out.last_hidden_state.shape == shape


def test_example_of_a_conversation():
    checkpoint = Checkpoint.from_pretrained("demo")
    model, params, tokenizer = checkpoint.model, checkpoint.params, checkpoint.tokenizer
    assert isinstance(model, BlenderbotForConditionalGeneration)
    replies = []
    for utterance in (
        "My friends are cool but they eat too many carbs.",
        "My friends are cool but they eat too many carbs.</s> <s>That's unfortunate. Are they trying to lose weight or "
        "are they just trying to be healthier?</s> <s> I'm not sure.",
    ):
        inputs = tokenizer([utterance], return_tensors="np")
        out = generate(model, params, **inputs, config=GenerationConfig(max_length=20))
        replies.append(tokenizer.batch_decode(out.sequences[:, 0], skip_special_tokens=True)[0])
    # Typed </s> and <s> are read as the special tokens, as on the page.
    assert np.isin([1, 2], inputs.input_ids[0, :-1]).all()
    assert all(reply.strip() and "</s>" not in reply for reply in replies)
    assert replies[0] != replies[1]


def test_example_of_the_causal_model(tokenizer):
    model, params = BlenderbotForCausalLM.from_pretrained("demo")
    assert model.config.is_decoder
    inputs = tokenizer("Hello, my dog is cute", return_tensors="np")
    out = jax.eval_shape(lambda params: model.apply({"params": params}, **inputs), params)
    assert out.logits.shape == (1, inputs.input_ids.shape[-1], model.config.vocab_size)


# The tables against the installed transformers.


def page(name: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="the tables are held to an installed transformers")
    pytest.importorskip("torch", reason="without it transformers has no models")
    return operator.attrgetter(name)(transformers)


def unlisted(function: Any, *tables: Any) -> set[str]:
    """The arguments of a function of transformers that no table holds."""
    skip = {"self", "args", "kwargs", "model_args", "init_inputs"}
    return set(inspect.signature(function).parameters) - skip - {name for table in tables for name in table}


@pytest.mark.parametrize("size", ["", "Small"])
def test_the_tables_hold_every_argument_of_the_installed_configuration(size):
    theirs = page(f"Blenderbot{size}Config")
    table = SMALL_CONFIG if size else CONFIG
    assert unlisted(theirs.__init__, table, INHERITED) == set()
    found = {name: value for name, value in defaults(theirs.__init__).items() if name in table}
    assert found.items() <= table.items()
    assert theirs.attribute_map.items() <= ALIASES.items()


@pytest.mark.parametrize("size", ["", "Small"])
@pytest.mark.parametrize("kind", FORWARD)
def test_the_tables_hold_every_argument_and_field_of_the_installed_models(kind, size):
    cls = page(f"Blenderbot{size}{kind}")
    assert unlisted(cls.forward, FORWARD[kind]) == set()
    assert unlisted(cls.from_pretrained, LOADING) == set()
    assert set(page("utils.generic").TransformersKwargs.__annotations__) <= set(FORWARD[kind])
    theirs, ours = {
        "Model": ("Seq2SeqModelOutput", Seq2SeqModelOutput),
        "ForConditionalGeneration": ("Seq2SeqLMOutput", Seq2SeqLMOutput),
        "ForCausalLM": ("CausalLMOutputWithCrossAttentions", CausalLMOutput),
    }[kind]
    fields = getattr(page("modeling_outputs"), theirs).__dataclass_fields__
    assert set(fields) - {"past_key_values"} == set(OUTPUTS[ours].split())
    if kind != "Model":
        assert unlisted(cls.generate, GENERATE) == set()


@pytest.mark.parametrize(("size", "table"), [("", TOKENIZER), ("Small", SMALL_TOKENIZER)])
def test_the_tables_hold_every_argument_and_method_of_the_installed_tokenizers(size, table):
    cls = page(f"Blenderbot{size}Tokenizer")
    assert unlisted(cls.__init__, table) == set()
    own = {
        name: row.default for name, row in table.items() if isinstance(row, Here) and name not in ("vocab", "merges")
    }
    assert own.items() <= defaults(cls.__init__).items()
    assert unlisted(cls.__call__, CALL) == set()
    public = {name for name in dir(cls) if not name.startswith("_")}
    assert public - set(METHODS) - set(ATTRIBUTES) - NOT_HERE == set()
