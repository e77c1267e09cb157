"""A ParlAI checkpoint gives the logits of ParlAI's own arithmetic here, and the same in transformers once converted."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
transformers = pytest.importorskip("transformers", reason="parity is measured against transformers")

from torch.nn import functional

from blenderbot_jax import Checkpoint
from blenderbot_jax.conversion import convert_checkpoint
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.parlai_conversion import convert_to_parlai
from tests.parity.reference import TOLERANCE, as_torch, forward, largest_difference, right_padded
from tests.parlai_files import TINY, published_tensors, write_checkpoint

START = 1


def tensors_of(variant):
    """Weights of an ordinary size, norms around one."""
    tensors = {key: (0.3 * array).astype(np.float32) for key, array in published_tensors(variant, "float32").items()}
    norms = ("norm.weight", "layernorm_embedding.weight")
    return {key: array + 1 if key.endswith(norms) else array for key, array in tensors.items()}


class ParlAI:
    """`TransformerGeneratorModel.forward`, line by line, on a state dict."""

    def __init__(self, path, variant):
        self.state = torch.load(path, weights_only=True)["model"]
        self.options, self.pre = TINY[variant], variant == "prelayernorm"
        self.heads, self.scale = self.options["n_heads"], math.sqrt(self.options["embedding_size"])

    def norm(self, x, name):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def linear(self, x, name):
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def attention(self, query, key, mask, name):
        def split(x):
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = (split(self.linear(x, f"{name}.{p}_lin")) for x, p in ((query, "q"), (key, "k"), (key, "v")))
        product = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
        product = product.masked_fill(mask == 0, -1e20)
        mixed = torch.softmax(product, -1) @ v
        return self.linear(mixed.transpose(1, 2).reshape(query.shape), f"{name}.out_lin")

    def feed_forward(self, x, name):
        return self.linear(functional.gelu(self.linear(x, f"{name}.lin1")), f"{name}.lin2")

    def residual(self, x, norm, sublayer):
        if self.pre:
            return x + sublayer(self.norm(x, norm))
        return self.norm(x + sublayer(x), norm)

    def embed(self, ids, positions, side):
        x = self.state["embeddings.weight"][ids] * self.scale
        table = self.state[f"{side}.position_embeddings.weight"][positions]
        if self.pre:
            return x + table
        norm = f"{side}.norm_embeddings"
        return self.norm(x + table, norm) if side == "encoder" else self.norm(x, norm) + table

    def encode(self, ids):
        mask = ids != 0
        keep = mask.unsqueeze(-1).float()
        x = self.embed(ids, (mask.cumsum(1) - 1).clamp(min=0), "encoder") * keep
        for i in range(1):
            at = f"encoder.layers.{i}"
            x = self.residual(
                x, f"{at}.norm1", lambda y, at=at: self.attention(y, y, mask[:, None, None], f"{at}.attention")
            )
            x = self.residual(x, f"{at}.norm2", lambda y, at=at: self.feed_forward(y, f"{at}.ffn")) * keep
        return (self.norm(x, "encoder.norm_embeddings") if self.pre else x), mask

    def logits(self, ids, inputs):
        encoded, mask = self.encode(ids)
        causal = torch.tril(torch.ones(inputs.shape[1], inputs.shape[1]))[None, None]
        x = self.embed(inputs, torch.arange(inputs.shape[1]), "decoder")
        for i in range(2):
            at = f"decoder.layers.{i}"
            x = self.residual(x, f"{at}.norm1", lambda y, at=at: self.attention(y, y, causal, f"{at}.self_attention"))
            x = self.residual(
                x, f"{at}.norm2",
                lambda y, at=at: self.attention(y, encoded, mask[:, None, None], f"{at}.encoder_attention"),
            )  # fmt: skip
            x = self.residual(x, f"{at}.norm3", lambda y, at=at: self.feed_forward(y, f"{at}.ffn"))
        x = self.norm(x, "decoder.norm_embeddings") if self.pre else x
        output = functional.linear(x, self.state["embeddings.weight"])
        output[:, :, START] = -1e20
        return output


@pytest.fixture(params=["prelayernorm", "xlm"])
def trained(request, tmp_path):
    folder = tmp_path / "blender"
    tensors = tensors_of(request.param)
    write_checkpoint(folder, request.param, dtype="float32", tensors=tensors, training=True)
    return folder, request.param


@pytest.fixture
def inputs():
    ids, mask = right_padded(np.random.default_rng(5), [11, 4, 24], 37)
    replies, _ = right_padded(np.random.default_rng(6), [6, 6, 6], 37)
    replies[:, 0] = START
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": replies}


@pytest.mark.parametrize("packed", [False, True], ids=["as trained", "written back"])
def test_logits_are_those_of_parlais_own_arithmetic(trained, inputs, tmp_path, packed):
    folder, variant = trained
    if packed:
        # As PyTorch reads what was written without it.
        convert_checkpoint(folder, tmp_path / "published")
        convert_to_parlai(tmp_path / "published", tmp_path / "back")
        folder = tmp_path / "back"
    else:
        # PyTorch, which builds no unknown objects, gets the weights alone.
        convert_to_parlai(folder, tmp_path / "alone")
    checkpoint = Checkpoint.from_pretrained(folder)
    assert checkpoint.model.config.scale_decoder_embedding
    ours = np.array(forward(checkpoint.model, checkpoint.params, inputs).logits)
    reference = ParlAI((folder if packed else tmp_path / "alone") / "model", variant)
    theirs = reference.logits(
        torch.from_numpy(inputs["input_ids"]).long(), torch.from_numpy(inputs["decoder_input_ids"]).long()
    )
    assert float(theirs[..., 2:].std()) > 0.1
    assert (theirs[..., START] == -1e20).all()
    ours[..., START] = -1e20
    assert largest_difference(ours, theirs) < TOLERANCE


def test_logits_are_those_of_transformers_once_converted(trained, inputs, tmp_path):
    folder, variant = trained
    convert_checkpoint(folder, tmp_path / "published")
    family = "Blenderbot" if variant == "prelayernorm" else "BlenderbotSmall"
    cls = getattr(transformers, f"{family}ForConditionalGeneration")
    model, report = cls.from_pretrained(tmp_path / "published", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        theirs = model.eval()(**as_torch(**inputs)).logits
    checkpoint = Checkpoint.from_pretrained(folder)
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    ours = BlenderbotForConditionalGeneration(checkpoint.model.config.replace(scale_decoder_embedding=False))
    assert float(theirs.std()) > 0.1
    assert largest_difference(forward(ours, checkpoint.params, inputs).logits, theirs) < TOLERANCE


def test_transformers_tokenizer_gives_the_same_ids(tmp_path):
    """Of the byte-level models: transformers splits the words of the 90M model otherwise than ParlAI did."""
    write_checkpoint(tmp_path / "blender", "prelayernorm")
    convert_checkpoint(tmp_path / "blender", tmp_path / "published")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "published")
    ours = Checkpoint.from_pretrained(tmp_path / "blender").tokenizer
    for text in ("hello", "hello hello, well", "  ünï 😀"):
        assert theirs(text)["input_ids"] == ours.encode(text)
