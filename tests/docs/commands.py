"""What a reader of the documentation would type: the commands and Python examples of Markdown files, with their places.

    python -m tests.docs.commands    # every one of them, and how it is tested

The rule, for what stands in a fence or is indented by four spaces:

- ```` ```python ```` is an example, run as a script, under the name that its first line gives (``# my_config.py``);
- ```` ```bash ```` or ```` ```sh ```` holds commands, one a line. A line that ends with a backslash goes on, a heredoc
  goes on to its end, comments are passed over. A fence that starts with ``#!`` is one script;
- ```` ```text ````, ``yaml``, ``json`` and ``bibtex`` are for the eye;
- without a language it holds commands if its first word is a known program, and is for the eye if it looks like one of
  ``rules.OUTPUT``. If it is neither, a test fails.

In running text a span such as `make quickstart` is a command if its first word is a known program and more follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs import rules

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """Some lines of a document that belong together.

    Attributes:
        line: of the document, from 1, at which the text starts.
        form: "text" (a paragraph), "indented" or "fence".
        language: of a fence, as written; "" for none.
        text: without fence and indentation.
    """

    line: int
    form: str
    language: str
    text: str


@dataclass(frozen=True)
class Snippet:
    """One command or Python example.

    Attributes:
        document: its path below the root.
        line: from 1.
        language: "shell" or "python".
        text: as printed.
        inline: whether it is a span in running text.
    """

    document: str
    line: int
    language: str
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def program(self) -> str:
        """The program's name without a folder; "assignment" for ``X=…`` alone, "script" for a script, else ""."""
        return program(self.text) if self.language == "shell" else "python"

    @property
    def kind(self) -> str:
        """How it is tested; each is exactly one of rules.KINDS."""
        return rules.kind(self)


def documents() -> list[str]:
    """The documents whose commands are tested, in the order in which a reader would take them."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    found += sorted((ROOT / "projects").glob("*/README.md"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def snippets(document: str, text: str | None = None) -> list[Snippet]:
    """A document's commands and examples, in its order; the same text in running text only once."""
    text = (ROOT / document).read_text(encoding="utf-8") if text is None else text
    found: list[Snippet] = []
    for block in blocks(text):
        if block.form == "text":
            spans = [
                Snippet(document, line, "shell", span, inline=True)
                for line, span in inline_code(block)
                if " " in span and "…" not in span and program(span) in rules.PROGRAMS
            ]
            found += [span for span in spans if span.text not in {other.text for other in found}]
        elif block.language == "python":
            found.append(Snippet(document, block.line, "python", block.text))
        elif is_shell(block):
            found += [Snippet(document, block.line + at, "shell", command) for at, command in split_commands(block)]
    return found


def unrecognised(document: str, text: str | None = None) -> list[str]:
    """What is neither a command nor said to be something else, each as ``document:line: text``."""
    text = (ROOT / document).read_text(encoding="utf-8") if text is None else text
    wrong = []
    for block in blocks(text):
        if block.form == "text" or block.language in ("python", *rules.OUTPUT_LANGUAGES):
            continue
        if is_shell(block):
            wrong += [
                f"{document}:{block.line + at}: '{program(command)}' is no known program: {command}"
                for at, command in split_commands(block)
                if program(command) not in rules.PROGRAMS
            ]
        elif block.language or not any(re.search(pattern, block.text) for pattern in rules.OUTPUT):
            wrong.append(f"{document}:{block.line}: neither commands nor declared as output: {block.text[:80]!r}")
    return wrong


def blocks(text: str) -> list[Block]:
    """Paragraphs, indented blocks and fences of a Markdown text."""
    lines = text.splitlines()
    found = []
    i = 0
    while i < len(lines):
        fence = re.match(r"( *)(`{3,}|~{3,})\s*(\S*)", lines[i])
        start = i
        if fence:
            indentation, mark, language = fence.groups()
            i += 1
            while i < len(lines) and lines[i].strip() != mark:
                i += 1
            inside = [line.removeprefix(indentation) for line in lines[start + 1 : i]]
            found.append(Block(start + 2, "fence", language, "\n".join(inside)))
            i += 1
        elif lines[i].startswith("    ") and lines[i].strip() and (i == 0 or not lines[i - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            inside = [line[4:] for line in lines[start:i]]
            found.append(Block(start + 1, "indented", "", "\n".join(inside).rstrip()))
        elif lines[i].strip():
            while i < len(lines) and lines[i].strip() and not re.match(r" *(`{3,}|~{3,})", lines[i]):
                i += 1
            found.append(Block(start + 1, "text", "", "\n".join(lines[start:i])))
        else:
            i += 1
    return found


def inline_code(block: Block) -> Iterator[tuple[int, str]]:
    """The spans in backticks of a paragraph, each with its line; line breaks within become spaces."""
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", block.text):
        yield block.line + block.text.count("\n", 0, match.start()), " ".join(match[1].split())


def is_shell(block: Block) -> bool:
    """Whether a block holds commands: by its language, or by its first word."""
    if block.language:
        return block.language in rules.SHELL_LANGUAGES
    commands = split_commands(block)
    return bool(commands) and program(commands[0][1]) in rules.PROGRAMS


def split_commands(block: Block) -> list[tuple[int, str]]:
    """The commands of a block, each with the number of lines before it."""
    if block.text.startswith("#!"):
        return [(0, block.text)]
    lines = block.text.split("\n")
    found = []
    i = 0
    while i < len(lines):
        start = i
        while lines[i].endswith("\\") and i + 1 < len(lines):
            i += 1
        heredoc = re.search(r"<<-?\s*['\"]?(\w+)", lines[i])
        if heredoc:
            while lines[i].strip() != heredoc[1] and i + 1 < len(lines):
                i += 1
        i += 1
        command = "\n".join(lines[start:i])
        if command.strip() and not command.lstrip().startswith("#"):
            found.append((start, command))
    return found


def program(command: str) -> str:
    """The program that a command line starts; see :attr:`Snippet.program`."""
    if command.startswith("#!"):
        return "script"
    rest = command.lstrip()
    while re.match(r"[A-Za-z_]\w*=", rest):
        rest = rest[_word_length(rest) :].lstrip()
        if not rest or rest.startswith("#"):
            return "assignment"
    words = rest.split()
    return words[0].rsplit("/", 1)[-1] if words else ""


def _word_length(text: str) -> int:
    """The length of a shell's first word, quoted parts and ``$(…)`` included."""
    depth, quote = 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character.isspace() and not depth:
            return i
    return len(text)


def table() -> str:
    """Every command and example of the documentation, a line each, and how it is tested."""
    found = [snippet for document in documents() for snippet in snippets(document)]
    lines = [f"{snippet.kind:<7} {str(snippet):<36} {' '.join(snippet.text.split())[:120]}" for snippet in found]
    counts = ", ".join(f"{sum(snippet.kind == kind for snippet in found)} {kind}" for kind in rules.KINDS)
    return "\n".join([*lines, f"{len(found)}: {counts}"])


if __name__ == "__main__":
    print(table())
