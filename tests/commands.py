"""A command as the tests type it: what it prints, or how it refuses."""

from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner, Result


@dataclass(frozen=True)
class Typed:
    """A command, and the words that stand in front of all arguments."""

    command: Any
    before: tuple[str, ...] = ()
    name: str = "blenderbot-jax"

    def run(self, *arguments: Any, stdin: Any = None) -> Result:
        """Whatever comes of it."""
        given = [*self.before, *map(str, arguments)]
        return CliRunner().invoke(self.command, given, input=stdin, prog_name=self.name)

    def output(self, *arguments: Any, code: int = 0, stdin: Any = None) -> str:
        """What it prints, where nothing is wrong."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == code, result.output
        assert result.stderr == ""
        return result.stdout

    def refusal(self, *arguments: Any, stdin: Any = None) -> str:
        """The one line with which it refuses."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 2, result.output
        [line] = result.stderr.splitlines()
        assert line.startswith("Error: ")
        return line
