"""Train the small BlenderBot that comes with the package, from dialogues to a checkpoint folder.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python examples/train_demo.py --data DIALOGUES --out blenderbot_jax/demo

DIALOGUES holds JSON Lines files, one dialogue a line: {"turns": [{"speaker": "A", "text": ...}, ...], "personas"?:
{"A": [...], "B": [...]}}, named NAME.train.jsonl and NAME.valid.jsonl; what has neither ending is small talk, which is
learned more often. About an hour and a quarter on two CPU cores, with huge pages where the system has them. Progress is
kept under --work: a run that was stopped goes on where it was.

Two stages: a byte-level BPE of 4,000 tokens, then the model, by `blenderbot_jax.training`. At the end the folder is
written, with a card that says how it does on dialogues that it has not seen.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, Chatbot, GenerationConfig
from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.data import Batches, Dialogue, Example, corpus_examples, dialogue_examples, read_dialogues
from blenderbot_jax.dialogue import DialogueLayout, persona_block
from blenderbot_jax.evaluation import Report, evaluate
from blenderbot_jax.files import write_text
from blenderbot_jax.tokenizer import BlenderbotTokenizer
from blenderbot_jax.training import TrainingConfig, draw_curves, fit, read_log

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
TRAINING = TrainingConfig(
    steps=6_600,
    batch_size=96,
    learning_rate=2e-3,
    warmup_steps=300,
    b2=0.98,
    weight_decay=0.01,
    clip_norm=1.0,
    validate_every=500,
)
# A small model is at its best in short replies, and wider beams take it to ever safer ones; its folder says so.
DECODING = GenerationConfig.recipe(num_beams=3, min_length=10, max_length=40)
SOURCE_WIDTHS, TARGET_WIDTHS = (32, 64, 128), (16, 32, 48)
# How much of a dialogue its examples show: mostly the last turns, sometimes all that fits; drawn anew for every view.
HISTORY_SHARES, VIEWS = (0.65, 0.25, 0.1), 4
PERSONA_SHARE, LONGEST_PERSONA = 0.25, 96
SMALL_TALK_REPEATS = 4
VALIDATED, ANSWERED = 1500, 300
PROFANITY = re.compile(r"\b(fuck\w*|motherf\w*|cunt\w*|nigg\w*|faggot\w*|bitch\w*|shit\w*)\b", re.IGNORECASE)


def clean(text: str) -> str:
    """One line of plain prose; where a name was replaced by a placeholder, sentences about names are taken out."""
    if "[" in text:
        greeting = re.match(r"(Hi|Hello|Hey)\b", text)
        sentences = re.split(r"(?<=[.!?])\s+", text)
        kept = [sentence for sentence in sentences if not re.search(r"\[|\bname|\byours\b", sentence)]
        text = " ".join([*([f"{greeting[1]}!"] if greeting and "[" in sentences[0] else []), *kept])
    return " ".join(text.replace("\u2019", "'").split())


def cleaned(paths: list[Path]) -> list[Dialogue]:
    """The dialogues of some files, in their order; those with strong profanity are left out."""
    found = []
    for dialogue in read_dialogues([str(path) for path in paths]):
        turns = tuple((speaker, clean(text)) for speaker, text in dialogue.turns)
        if not PROFANITY.search(" ".join(text for _, text in turns)):
            found.append(replace(dialogue, turns=turns))
    return found


@dataclass(frozen=True)
class Corpora:
    """What there is to learn from, and to be judged by."""

    train: list[Dialogue]
    small_talk: list[Dialogue]
    valid: Mapping[str, list[Dialogue]]
    """By corpus."""

    @classmethod
    def read(cls, data: Path) -> "Corpora":
        """From a folder of JSON Lines files."""
        valid = {path.name.split(".")[0]: cleaned([path]) for path in sorted(data.glob("*.valid.jsonl"))}
        train = sorted(data.glob("*.train.jsonl"))
        if not train or not valid:
            raise click.UsageError(f"{data} has no *.train.jsonl, or no *.valid.jsonl")
        small_talk = sorted(path for path in data.glob("*.jsonl") if path.name.count(".") == 1)
        return cls(cleaned(train), cleaned(small_talk) if small_talk else [], valid)


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


def views(dialogues: list[Dialogue], tokenizer: BlenderbotTokenizer, rng: np.random.Generator) -> Iterator[Example]:
    """One example for every reply that is short enough; each dialogue's with as much history as chance gives it."""
    layout = DialogueLayout.of(tokenizer)
    for dialogue in dialogues:
        lengths = [len(layout.read(tokenizer, persona_block(lines))) for lines in dialogue.personas.values() if lines]
        persona = bool(lengths) and max(lengths) < LONGEST_PERSONA and rng.random() < PERSONA_SHARE
        room = SOURCE_WIDTHS[-1] if persona else int(rng.choice(SOURCE_WIDTHS, p=HISTORY_SHARES))
        made = dialogue_examples(
            dialogue, tokenizer, persona=persona, layout=layout, max_source=room, max_target=TARGET_WIDTHS[-1]
        )
        yield from (example for example in made if not example.dropped_labels)


def batches(corpora: Corpora, tokenizer: BlenderbotTokenizer) -> tuple[Batches, Batches]:
    """What is learned, several views of every dialogue; and some that is not, to follow how it goes."""
    rng = np.random.default_rng(TRAINING.seed)
    shaped = partial(Batches, source_widths=SOURCE_WIDTHS, target_widths=TARGET_WIDTHS)
    dialogues = corpora.train + SMALL_TALK_REPEATS * corpora.small_talk
    learned = (example for _ in range(VIEWS) for example in views(dialogues, tokenizer, rng))
    unseen = [example for some in corpora.valid.values() for example in views(some, tokenizer, rng)]
    chosen = [unseen[place] for place in rng.permutation(len(unseen))[:VALIDATED]]
    return (
        shaped(learned, TRAINING.batch_size, seed=TRAINING.seed),
        shaped(chosen, TRAINING.batch_size, shuffle=False),
    )


CARD = """# The bundled model

A BlenderBot of {parameters:,} parameters in the architecture and folder layout of the published models:
d_model {c.d_model}, {c.encoder_layers} encoder and {c.decoder_layers} decoder layers,
{c.max_position_embeddings} positions, its own byte-level BPE of {c.vocab_size} tokens, weights in float16.

It is there so that the package can be tried and tested without a download. It knows nothing of the world, makes things
up, and its replies are those of the people and the language model whose dialogues it has read; do not rely on it for
anything.

Trained from scratch by `examples/train_demo.py`, which reproduces it from the dialogues: {t.steps:,} steps of
{t.batch_size} examples on two CPU cores.

![Loss, held-out perplexity, learning rate and tokens a second by step](curves.svg)

## On dialogues that it has not seen

Perplexity per reply token, `</s>` included, in its own vocabulary, each reply after all of its dialogue that fits.
Distinct-n, within and across replies, and words a reply, are of its own replies to the first {answered} turns of each.

    blenderbot-jax eval DIALOGUES/*.valid.jsonl

| dialogues | replies | perplexity | token accuracy | distinct-1, -2 within | across | words |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{scores}

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
{replies}
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


def write_card(out: Path, data: Path, steps: int) -> Report:
    """Judge the stored model, in half precision as it is, and write its card; gives what it was found to score."""
    bot = Chatbot.from_pretrained(out)
    tokenizer, positions = bot.checkpoint.tokenizer, CONFIG.max_position_embeddings
    unseen = {
        path.name.split(".")[0]: [
            *corpus_examples(read_dialogues(path), tokenizer, max_source=positions, max_target=positions)
        ]
        for path in sorted(data.glob("*.valid.jsonl"))
    }
    report = evaluate(bot, unseen, metrics=(), batch_size=64)
    own = evaluate(bot, {name: some[:ANSWERED] for name, some in unseen.items()}, metrics=("distinct", "length"))
    pairs = [(name, report.by_corpus[name], own.by_corpus[name]) for name in unseen]
    scores = []
    for name, given, said in [*pairs, ("**in all**", report.in_all, own.in_all)]:
        n, m = given.likelihood, said.metrics
        within, across = (f"{m[f'{kind}distinct-1']:.3f}, {m[f'{kind}distinct-2']:.3f}" for kind in ("intra", "inter"))
        scores.append(
            f"| {name} | {n.examples:,} | {n.perplexity:.2f} | {n.token_accuracy:.3f} | {within} | {across} | "
            f"{m['words']:.1f} |"
        )
    answers = zip(CARD_PROMPTS, bot.replies(CARD_PROMPTS), strict=True)
    text = CARD.format(
        c=CONFIG,
        t=TRAINING.replace(steps=steps),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(bot.checkpoint.params)),
        answered=ANSWERED,
        scores="\n".join(scores),
        replies="\n".join(f"| {prompt} | {reply} |" for prompt, reply in answers),
    )
    write_text(out / "README.md", text)
    return report


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path(".demo-training"))
@click.option("--steps", type=click.IntRange(min=1), default=TRAINING.steps, show_default=True)
def main(data: Path, out: Path, work: Path, steps: int) -> None:
    """Train and write the checkpoint folder."""
    corpora, run = Corpora.read(data), work / "run"
    tokenizer = train_tokenizer(corpora.train + corpora.small_talk, work / "tokenizer")
    learned, valid = batches(corpora, tokenizer)
    click.echo(f"{len(learned.examples):,} examples in {len(learned):,} batches, {steps:,} steps")
    model = BlenderbotForConditionalGeneration(CONFIG)
    trained = fit(
        model,
        model.init_params(jax.random.key(TRAINING.seed)),
        learned,
        TRAINING.replace(steps=steps, warmup_steps=min(TRAINING.warmup_steps, steps // 10)),
        valid=[*valid.epoch(0)],
        folder=run,
        resume=run.exists(),
        logs=[lambda record: click.echo(json.dumps(record))],
        log_every=100,
    )
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), trained.weights)
    save_pretrained(out, CONFIG, half, DECODING, tokenizer)
    draw_curves(read_log(run), out / "curves.svg")
    found = write_card(out, data, steps).in_all.likelihood
    click.echo(f"held-out perplexity {found.perplexity:.2f} over {found.examples:,} replies")


if __name__ == "__main__":
    main()
