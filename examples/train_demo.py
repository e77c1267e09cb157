"""Train the small BlenderBot that comes with the package, from dialogues to a checkpoint folder.

    python examples/train_demo.py --data DIALOGUES --out blenderbot_jax/demo

DIALOGUES holds JSON Lines files, one dialogue a line: {"turns": [{"speaker": "A", "text": ...}, ...], "personas"?:
{"A": [...], "B": [...]}}, named NAME.train.jsonl and NAME.valid.jsonl. About 45 minutes on two CPU cores. Progress is
kept under --work: a run that was stopped goes on where it was.

Two stages: `tokenizer` (a byte-level BPE of 4,000 tokens) and `model` (cross-entropy on each reply given the dialogue
before it, AdamW with warm-up and linear decay). At the end the folder is written and the held-out perplexity printed.
"""

import itertools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.dialogue import DialogueLayout, persona_block
from blenderbot_jax.files import replacing, write_text
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.model import IGNORED_LABEL, BlenderbotForConditionalGeneration, Params
from blenderbot_jax.tokenizer import BlenderbotTokenizer

CONFIG = BlenderbotConfig(
    vocab_size=4000,
    d_model=192,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=6,
    decoder_attention_heads=6,
    encoder_ffn_dim=768,
    decoder_ffn_dim=768,
    scale_embedding=True,
)
# A small model is at its best in short replies, and wider beams take it to ever safer ones; its folder says so.
DECODING = GenerationConfig.recipe(num_beams=3, min_length=10, max_length=40)
SOURCE_WIDTHS = (32, 64, 128)
TARGET_WIDTHS = (16, 32, 48)
# How much of the dialogue an example shows: mostly the last turns, sometimes all that fits.
HISTORY_TOKENS, HISTORY_SHARES = (32, 64, 128), (0.65, 0.25, 0.1)
PERSONA_SHARE = 0.25
SMALL_TALK_REPEATS = 4
TOKENS_PER_BATCH, STEPS = 6144, 3300
PEAK_LEARNING_RATE, WARM_UP_STEPS = 1.5e-3, 200
PROFANITY = re.compile(r"\b(fuck\w*|motherf\w*|cunt\w*|nigg\w*|faggot\w*|bitch\w*|shit\w*)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Dialogue:
    """Cleaned turns with their speakers, and the speakers' personas."""

    turns: tuple[tuple[str, str], ...]
    personas: dict[str, list[str]]
    small_talk: bool


@dataclass(frozen=True)
class Example:
    """What the encoder reads and what the decoder should say, as ids."""

    source: tuple[int, ...]
    target: tuple[int, ...]


def clean(text: str) -> str:
    """One line of plain prose; where a name was replaced by a placeholder, sentences about names are taken out."""
    if "[" in text:
        greeting = re.match(r"(Hi|Hello|Hey)\b", text)
        sentences = re.split(r"(?<=[.!?])\s+", text)
        kept = [sentence for sentence in sentences if not re.search(r"\[|\bname|\byours\b", sentence)]
        text = " ".join([*([f"{greeting[1]}!"] if greeting and "[" in sentences[0] else []), *kept])
    return " ".join(text.replace("\u2019", "'").split())


def read_dialogues(data: Path, split: str) -> list[Dialogue]:
    """All dialogues of a split, in file order; those with strong profanity are left out."""
    names = sorted(data.glob(f"*.{split}.jsonl"))
    if split == "train":
        names += sorted(path for path in data.glob("*.jsonl") if path.name.count(".") == 1)
    if not names:
        raise click.UsageError(f"{data} has no *.{split}.jsonl")
    dialogues = []
    for path in names:
        small_talk = path.name.count(".") == 1
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            turns = tuple((turn["speaker"], clean(turn["text"])) for turn in record["turns"])
            if not PROFANITY.search(" ".join(text for _, text in turns)):
                dialogues.append(Dialogue(turns, record.get("personas") or {}, small_talk))
    return dialogues


def train_tokenizer(dialogues: list[Dialogue], folder: Path) -> BlenderbotTokenizer:
    """Learn a byte-level BPE with the published special ids, and save it."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    texts = [text for dialogue in dialogues for _, text in dialogue.turns]
    texts += [persona_block(lines) for dialogue in dialogues for lines in dialogue.personas.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    tokenizer = BlenderbotTokenizer(
        learned["vocab"], merges, model_max_length=CONFIG.max_position_embeddings, truncation_side="left"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_examples(dialogues: list[Dialogue], tokenizer: BlenderbotTokenizer, seed: int) -> list[Example]:
    """One example for every reply that is short enough, with a random length of history before it."""
    rng = np.random.default_rng(seed)
    layout = DialogueLayout.of(tokenizer)
    examples = []
    for dialogue in dialogues:
        ids = [layout.read(tokenizer, text) for _, text in dialogue.turns]
        personas = {who: layout.read(tokenizer, persona_block(p)) for who, p in dialogue.personas.items() if p}
        for i in range(1, len(ids)):
            if not ids[i] or not ids[i - 1] or len(ids[i]) >= TARGET_WIDTHS[-1]:
                continue
            persona = personas.get(dialogue.turns[i][0])
            pinned = [persona] if persona and len(persona) < 96 and rng.random() < PERSONA_SHARE else []
            limit = HISTORY_TOKENS[-1] if pinned else int(rng.choice(HISTORY_TOKENS, p=HISTORY_SHARES))
            history = [turn for turn in ids[:i] if turn]
            example = Example(layout.fit(pinned, history, limit).input_ids, (*ids[i], CONFIG.eos_token_ids[0]))
            examples += [example] * (SMALL_TALK_REPEATS if dialogue.small_talk else 1)
    return examples


def batches(examples: list[Example], rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch in random order: (source ids [B, S] padded with 0, labels [B, T] padded with -100)."""
    groups: dict[tuple[int, int], list[Example]] = {}
    for i in rng.permutation(len(examples)):
        example = examples[i]
        S = next(width for width in SOURCE_WIDTHS if len(example.source) <= width)
        T = next(width for width in TARGET_WIDTHS if len(example.target) <= width)
        groups.setdefault((S, T), []).append(example)
    planned = []
    for (S, T), group in groups.items():
        B = TOKENS_PER_BATCH // (S + T) // 8 * 8
        planned += [(S, T, group[start : start + B]) for start in range(0, len(group) - B + 1, B)]
    for i in rng.permutation(len(planned)):
        S, T, group = planned[i]
        yield pad([e.source for e in group], S, 0), pad([e.target for e in group], T, IGNORED_LABEL)


def pad(rows: list[tuple[int, ...]], width: int, filler: int) -> np.ndarray:
    """Rows of unequal length as one int32 array [B, width]."""
    out = np.full((len(rows), width), filler, np.int32)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out


def perplexity(model: BlenderbotForConditionalGeneration, params: Params, examples: list[Example]) -> float:
    """exp of the mean loss in nats per reply token, `</s>` included."""

    @jax.jit
    def total(params: Params, source: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        count = (labels != IGNORED_LABEL).sum()
        return model.apply({"params": params}, source, source != 0, labels=labels).loss * count, count

    sums = [total(params, source, labels) for source, labels in batches(examples, np.random.default_rng(0))]
    losses, counts = (np.array(column, np.float64).sum() for column in zip(*sums, strict=True))
    return float(np.exp(losses / counts))


def save_progress(path: Path, state: Any, step: int) -> None:
    """All leaves of the training state, in tree order."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, step=step, **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))})


def load_progress(path: Path, state: Any) -> tuple[Any, int]:
    """The state saved by `save_progress`, in the shape of `state`."""
    with np.load(path) as saved:
        leaves = [jnp.asarray(saved[str(i)]) for i in range(len(jax.tree.leaves(state)))]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), int(saved["step"])


def train(examples: list[Example], steps: int, progress: Path) -> Params:
    """Cross-entropy on the replies; returns the parameters after the last step."""
    model = BlenderbotForConditionalGeneration(CONFIG)
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, WARM_UP_STEPS, steps, 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    params = model.init_params(jax.random.key(0))
    state, done = (params, optimizer.init(params)), 0
    if progress.exists():
        state, done = load_progress(progress, state)
    click.echo(f"{len(examples)} examples, {steps} steps, {sum(x.size for x in jax.tree.leaves(params)):,} parameters")

    @jax.jit
    def train_step(state: Any, source: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = state
        loss, gradients = jax.value_and_grad(
            lambda params: model.apply({"params": params}, source, source != 0, labels=labels).loss
        )(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    started, losses = time.monotonic(), []
    endless = (batch for epoch in itertools.count() for batch in batches(examples, np.random.default_rng(epoch)))
    for step, (source, labels) in enumerate(itertools.islice(endless, steps), start=1):
        if step <= done:
            continue
        state, loss = train_step(state, source, labels)
        losses.append(float(loss))
        if step % 100 == 0:
            click.echo(f"step {step}/{steps} loss {np.mean(losses[-100:]):.3f} {time.monotonic() - started:.0f} s")
        if step % 300 == 0 or step == steps:
            save_progress(progress, state, step)
    return state[0]


CARD = """# The bundled model

A BlenderBot of {parameters:,} parameters in the architecture and folder layout of the published models:
d_model {c.d_model}, {c.encoder_layers} encoder and {c.decoder_layers} decoder layers,
{c.max_position_embeddings} positions, its own byte-level BPE of {c.vocab_size} tokens, weights in float16.

It is there so that the package can be tried and tested without a download. It knows nothing of the world, makes things
up, and its replies are those of the people and the language model whose dialogues it has read; do not rely on it for
anything.

Trained from scratch by `examples/train_demo.py`, which reproduces it from the dialogues: {steps} steps, about
{tokens:.1f} million reply tokens, on two CPU cores. Held-out perplexity: **{perplexity:.2f}** per reply token, over
{replies:,} replies of dialogues it has not seen, in its own vocabulary.

## Data

| dialogues | source | licence |
| --- | --- | --- |
| Self-dialogue corpus | github.com/jfainberg/self_dialogue_corpus | BSD-3-Clause |
| Topical-Chat | github.com/alexa/Topical-Chat | CDLA-Sharing-1.0 |
| Synthetic-Persona-Chat | github.com/google-research-datasets/Synthetic-Persona-Chat | CC-BY-4.0 |
| chatterbot-corpus | github.com/gunthercox/chatterbot-corpus | BSD-3-Clause |

Dialogues with strong profanity were left out.

## Twenty replies, unedited

Its own settings (`generation_config.json`), each prompt on its own.

| prompt | reply |
| --- | --- |
{table}
"""
CARD_PROMPTS = (
    "Hello, how are you?",
    "My friends are cool but they eat too many carbs.",
    "Do you like movies?",
    "I have two dogs.",
    "What is your favorite food?",
    "I am sad today.",
    "Did you watch the game last night?",
    "I just got back from a trip to Italy.",
    "What do you do for work?",
    "I love listening to rock music.",
    "Tell me about yourself.",
    "It is raining outside.",
    "Have you read any good books lately?",
    "I am a teacher.",
    "Do you have any pets?",
    "My favorite color is blue.",
    "I like to cook for my family.",
    "Who is your favorite actor?",
    "I am learning to play the guitar.",
    "Good night!",
)


def write_card(out: Path, steps: int, target_tokens: float, held_out: float, replies: int) -> None:
    """Write the model card, with what the stored model answers."""
    bot = Chatbot.from_pretrained(out)
    rows = zip(CARD_PROMPTS, bot.replies(CARD_PROMPTS), strict=True)
    text = CARD.format(
        c=CONFIG,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(bot.checkpoint.params)),
        steps=steps,
        tokens=target_tokens / 1e6,
        perplexity=held_out,
        replies=replies,
        table="\n".join(f"| {prompt} | {reply} |" for prompt, reply in rows),
    )
    write_text(out / "README.md", text)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path(".demo-training"))
@click.option("--steps", type=click.IntRange(min=WARM_UP_STEPS + 1), default=STEPS, show_default=True)
def main(data: Path, out: Path, work: Path, steps: int) -> None:
    """Train and write the checkpoint folder."""
    dialogues, held_out = read_dialogues(data, "train"), read_dialogues(data, "valid")
    tokenizer = train_tokenizer(dialogues, work / "tokenizer")
    examples, valid = make_examples(dialogues, tokenizer, seed=0), make_examples(held_out, tokenizer, seed=1)
    params = train(examples, steps, work / "progress.npz")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    save_pretrained(out, CONFIG, half, DECODING, tokenizer)
    # Judged as stored: in half precision, computed in float32.
    model = BlenderbotForConditionalGeneration(CONFIG)
    held_out_perplexity = perplexity(model, half, valid)
    click.echo(f"held-out perplexity {held_out_perplexity:.2f} over {len(valid)} replies")
    seen = steps * sum(len(e.target) for e in examples) / sum(1 for _ in batches(examples, np.random.default_rng(0)))
    write_card(out, steps, seen, held_out_perplexity, len(valid))


if __name__ == "__main__":
    main()
