"""What is learned is said: a model trained on fifty dialogues repeats them word for word."""

import jax
import pytest

from blenderbot_jax import Chatbot, Checkpoint, Conversation
from blenderbot_jax.data import Batches, dialogue_examples, read_dialogues
from blenderbot_jax.dialogue import Turn
from blenderbot_jax.evaluation.likelihood import likelihood
from blenderbot_jax.training import TrainingConfig, fit


@pytest.mark.slow
def test_fifty_dialogues_are_learned_by_heart(data_folder):
    demo = Checkpoint.from_pretrained("demo")
    dialogues = []
    for dialogue in read_dialogues([data_folder / "dialogues" / "self_dialogue.train.jsonl"]):
        turns = dialogue.turns[:4]  # what fits into the model whole
        if len(turns) == 4 and all(len(demo.tokenizer.encode(text)) < 24 for _, text in turns):
            dialogues.append(turns)
        if len(dialogues) == 50:
            break
    examples = [
        example
        for turns in dialogues
        for dialogue in read_dialogues([{"turns": [{"speaker": who, "text": text} for who, text in turns]}])
        for example in dialogue_examples(dialogue, demo.tokenizer, max_source=128, max_target=32)
    ]
    batches = Batches(examples, 50)
    config = TrainingConfig(
        steps=250, batch_size=50, learning_rate=2e-3, warmup_steps=20, clip_norm=1.0, schedule="cosine", b2=0.98
    )
    model = demo.model.clone(config=demo.model.config.replace(dropout=0.0))
    with jax.numpy_dtype_promotion("standard"):
        trained = fit(model, demo.params, batches, config)
    found = likelihood(model, trained.params, Batches(examples, 50, shuffle=False).epoch(0))
    assert found.perplexity < 1.5
    bot = Chatbot(Checkpoint(model, trained.params, demo.tokenizer, demo.generation_config), demo.generation_config)
    bot = bot.configured(
        num_beams=1, min_length=0, max_length=40, no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0
    )
    chats, wanted = [], []
    for turns in dialogues:
        for place in range(1, len(turns)):
            said = tuple(
                Turn("bot" if (place - i) % 2 == 0 else "user", text) for i, (_, text) in enumerate(turns[:place])
            )
            chats.append(Conversation(turns=said))
            wanted.append(turns[place][1].strip())
    right = [ours == theirs for ours, theirs in zip(bot.replies(chats), wanted, strict=True)]
    assert sum(right) >= 0.97 * len(right)
