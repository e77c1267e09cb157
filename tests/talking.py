"""Bots for the tests that need no model: they say again what they hear."""

from blenderbot_jax import Conversation, Response
from blenderbot_jax.responses import Alternative


def saying(text, conversation=None):
    """A response of this text."""
    conversation = Conversation() if conversation is None else conversation
    return Response(text, 0.0, conversation.add("bot", text), 0, 0, (Alternative(text, 0.0),))


def echoing(asked):
    """In place of `Chatbot.responses`: what was said; the bot goes to a list."""

    def responses(bot, texts, **options):
        del options
        asked.append(bot)
        return [saying(text) for text in texts]

    return responses
