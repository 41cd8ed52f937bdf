"""Every command and Python example of the documentation is run, or followed up to a launch.

`make test` runs the quick ones and follows those that need more than one process or would install something;
`make test-docs` runs the rest, as printed but for the placeholders and what rules.SHORTER adds.
"""

from __future__ import annotations

import re
import shlex

import pytest

from tests.docs import launches, rules
from tests.docs.commands import Snippet, documents, program, snippets, unrecognised
from tests.docs.sandbox import Sandbox

ALL = [snippet for document in documents() for snippet in snippets(document)]


def of_kind(kind: str) -> list[object]:
    return [pytest.param(snippet, id=str(snippet)) for snippet in ALL if snippet.kind == kind]


@pytest.mark.parametrize("document", documents())
def test_every_block_is_recognised(document: str) -> None:
    assert not (wrong := unrecognised(document)), "\n".join(
        [*wrong, "Add the program to tests/docs/rules.py, or declare a block as output with ```text."]
    )


def test_none_is_left_out() -> None:
    """Each has one kind, and the tests below take them all; a place names one command."""
    taken = [parameter.values[0] for kind in rules.KINDS for parameter in of_kind(kind)]
    assert sorted(map(str, taken)) == sorted(map(str, ALL))
    assert len({(snippet.document, snippet.line, snippet.text) for snippet in ALL}) == len(ALL)
    assert {"README.md", "docs/speed.md"} <= {snippet.document for snippet in ALL}


@pytest.mark.parametrize("snippet", of_kind("quick"))
def test_quick(sandbox: Sandbox, snippet: Snippet) -> None:
    run(sandbox, snippet)


@pytest.mark.parametrize("snippet", of_kind("parsed"))
def test_parsed(sandbox: Sandbox, snippet: Snippet) -> None:
    started = sandbox.record(snippet)
    assert started, "it starts no program"
    for item in started:
        launches.check(sandbox, item["argv"], item["env"])


@pytest.mark.docs_long
@pytest.mark.slow
@pytest.mark.parametrize("snippet", of_kind("long"))
def test_long(sandbox: Sandbox, snippet: Snippet) -> None:
    run(sandbox, snippet)


def run(sandbox: Sandbox, snippet: Snippet) -> None:
    """Run it: the exit code is 0, and what it names as its output is there."""
    done = sandbox.run(snippet)
    assert done.returncode == 0, f"$ {snippet.text}\n{done.stdout[-6000:]}"
    if snippet.language == "shell":
        words = shlex.split(rules.fill_in(snippet.document, snippet.text), comments=True)
        for path in (words[i + 1] for i, word in enumerate(words) if word == "--output" and "--check" not in words):
            assert (sandbox.folder / path).exists(), f"it left no {path}:\n{done.stdout[-2000:]}"


MARKDOWN = """\
# Title

Run `make test`, `X=1 python tools/a.py
--fast`, or `lift-det plot DIR…`; `lift_det` is a package.

    export A=1    # a comment
    B=$(python -c "print('x y')")/c
    A=b lift-det train CONFIG \\
        --val x
    # only a comment
    cat > f.py <<'EOF'
    make nothing
    EOF

It prints

      score    31.5

```python
# f.py
    x = 1
```

1. In a list:

   ```bash
   make a

   .venv/bin/lift-det doctor
   ```

```bash
#!/bin/bash
for i in 1 2; do srun make; done
```

```text
python is not run here
```
"""


def test_extraction() -> None:
    found = [(s.line, s.language, s.inline, s.text) for s in snippets("x.md", MARKDOWN)]
    assert found == [
        (3, "shell", True, "make test"),
        (3, "shell", True, "X=1 python tools/a.py --fast"),
        (6, "shell", False, "export A=1    # a comment"),
        (7, "shell", False, "B=$(python -c \"print('x y')\")/c"),
        (8, "shell", False, "A=b lift-det train CONFIG \\\n    --val x"),
        (11, "shell", False, "cat > f.py <<'EOF'\nmake nothing\nEOF"),
        (20, "python", False, "# f.py\n    x = 1"),
        (27, "shell", False, "make a"),
        (29, "shell", False, ".venv/bin/lift-det doctor"),
        (33, "shell", False, "#!/bin/bash\nfor i in 1 2; do srun make; done"),
    ]
    assert [program(text) for _, language, _, text in found if language == "shell"] == [
        *("make", "python", "export", "assignment", "lift-det", "cat", "make", "lift-det", "script")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nmake a\ndocker run x\n```",
        "    make a\n    docker run x",
        "    docker run x",
        "```\nsome words\n```",
        "```zsh\nmake a\n```",
    ],
)
def test_what_is_not_known_is_not_passed_over(text: str) -> None:
    (wrong,) = unrecognised("x.md", text)
    assert re.match(r"x\.md:\d", wrong)


def test_a_printed_value_is_replaced_and_a_missing_one_added() -> None:
    assert rules.shorten("python", ["tools/benchmark_ops.py", "--repeats", "15", "--ops", "a"]) == [
        *("tools/benchmark_ops.py", "--repeats", "1", "--ops", "a", "--masks", "10x28")
    ]
    assert rules.fill_in("x.md", "DATASETS=DATASETS DETECTRON2_DATASETS=DATASETS a --x=FILE FILE.pth /DIR") == (
        "datasets=datasets DETECTRON2_DATASETS=datasets a --x=model_final.pth FILE.pth /DIR"
    )
