"""Compiling in the background what a chat is going to need, while its user types."""

import os
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.warm import prompt_widths


class Warming:
    """A thread that compiles from the narrowest prompts on; a reply that needs what is being compiled waits for it.

    Args:
        bot: it is only read.
        conversation: what every prompt holds, such as a persona.
    """

    def __init__(self, bot: Chatbot, conversation: Conversation) -> None:
        self._bot, self._conversation = bot, conversation
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._compile, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        if kind is None and self._thread.is_alive():
            # A compilation cannot be stopped, Python must not end around it, and nobody waits for it any more.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        self._thread.join()

    def join(self) -> None:
        """Wait until all is compiled."""
        self._thread.join()

    def _compile(self) -> None:
        # What is wrong here is wrong in the first reply too, and told there.
        with suppress(Exception):
            checkpoint = self._bot.checkpoint
            least = len(checkpoint.encode(self._conversation.add("user", "Hi")).input_ids)
            widths = [width for width in prompt_widths(checkpoint.model.config) if width >= least]
            self._bot.warm_up(source_widths=widths, on_progress=self._go_on)

    def _go_on(self, done: int, total: int) -> None:
        if self._ended.is_set():
            raise InterruptedError(f"the chat has ended with {done} of {total} programs compiled")
