"""Prompt files: every layout of INTERFACE.md, and what a user sees of a bad line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.errors import PromptError
from edge_client.experiments.prompts import Message, read_prompts
from tests.unit.experiments.fakes import FakeEncoder

GOOD = '{"prompt": "hello there"}'


def write(folder: Path, *lines: object) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
        encoding="utf-8",
    )
    return file


LAYOUTS = {
    "own": ({"id": "a", "prompt": "Once", "category": "stories"}, "a", ("Once",), "stories"),
    "chat": (
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        "line-1",
        ("u",),
        None,
    ),
    "spec_bench": (
        {"question_id": 81, "category": "writing", "turns": ["Compose", "Rewrite"]},
        "81",
        ("Compose", "Rewrite"),
        "writing",
    ),
    "human_eval": (
        {"task_id": "HumanEval/0", "prompt": "def f():", "entry_point": "f", "test": "x"},
        "HumanEval/0",
        ("def f():",),
        None,
    ),
    "gsm8k": ({"question": "How many?", "answer": "#### 18"}, "line-1", ("How many?",), None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, tmp_path: Path) -> None:
    line, prompt_id, turns, category = LAYOUTS[name]
    (prompt,) = read_prompts(write(tmp_path, line))
    assert (prompt.prompt_id, prompt.turns, prompt.category) == (prompt_id, turns, category)


@pytest.mark.parametrize(
    ("line", "references"),
    [
        ({"prompt": "a"}, [()]),
        ({"prompt": "a", "reference": "b"}, [("b",)]),
        ({"prompt": "a", "reference": ["b", None, "c"]}, [("b", "c")]),
        ({"turns": ["a", "a"], "reference": ["b"]}, [("b",), ()]),
        ({"turns": ["a", "a"], "reference": [None, "c"]}, [(), ("c",)]),
    ],
)
def test_references_belong_to_their_turns(
    line: dict[str, object], references: list[tuple[str, ...]], tmp_path: Path
) -> None:
    (prompt,) = read_prompts(write(tmp_path, line))
    assert [prompt.references_of(turn) for turn in range(len(references))] == references


def test_later_turns_hold_the_answers(tmp_path: Path) -> None:
    (prompt,) = read_prompts(write(tmp_path, {"turns": ["one", "two", "three"]}))
    assert [m["content"] for m in prompt.messages(["first", "second"])] == [
        "one",
        "first",
        "two",
        "second",
        "three",
    ]
    assert [m["role"] for m in prompt.messages(["first"])] == ["user", "assistant", "user"]


def test_a_plain_prompt_is_not_put_into_a_template(tmp_path: Path) -> None:
    class Refusing(FakeEncoder):
        def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
            raise AssertionError("a plain prompt went through the chat template")

    (prompt,) = read_prompts(write(tmp_path, {"prompt": "to be"}))
    assert prompt.encode(Refusing()) == (2, 2)


MALFORMED = {
    "{": "not a JSON object",
    "[1, 2]": "expected a JSON object",
    "[" * 100_000: "not a JSON object",
    '{"id": ' + "1" * 5000 + "}": "not a JSON object",
    "{}": "found none of them",
    '{"prompt": "a", "turns": ["b"]}': "found prompt and turns",
    '{"prompt": 3}': "must hold text",
    '{"prompt": ""}': "must hold text",
    '{"turns": []}': "must be a list of strings",
    '{"turns": "no list"}': "must be a list of strings",
    '{"turns": ["a", null]}': "must hold text",
    '{"messages": []}': "must be a list",
    '{"messages": [{"role": "robot", "content": "x"}]}': "a message needs a role",
    '{"messages": [{"role": "user"}]}': "a message needs a role",
    '{"messages": [{"role": "assistant", "content": "x"}]}': "the last message must be the user's",
    '{"id": [], "prompt": "a"}': "must be a string or a whole number",
    '{"id": true, "prompt": "a"}': "must be a string or a whole number",
    '{"category": 1, "prompt": "a"}': "'category' must be a string",
    '{"reference": 1, "prompt": "a"}': "'reference' must be text, or a list of texts, found 1",
    '{"reference": ["b", 1], "prompt": "a"}': "'reference' must be text, or a list of texts",
    '{"reference": ["b", "c"], "turns": ["a"], "prompt": "a"}': "found prompt and turns",
    '{"reference": ["b", "c", "d"], "turns": ["a", "a"]}': "'reference' has 3 texts for 2 turns",
}


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_named_by_file_and_number(line: str, tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, "", line)
    with pytest.raises(PromptError) as caught:
        read_prompts(file)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert MALFORMED[line] in str(caught.value)


def test_a_line_beyond_the_limit_is_checked_too(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, "{")
    with pytest.raises(PromptError, match=":2: not a JSON object"):
        read_prompts(file, limit=1)


def test_limit(tmp_path: Path) -> None:
    file = write(tmp_path, *({"prompt": str(i)} for i in range(5)))
    assert [p.turns[0] for p in read_prompts(file, limit=2)] == ["0", "1"]


def test_an_id_used_twice_names_both_lines(tmp_path: Path) -> None:
    file = write(tmp_path, {"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"})
    with pytest.raises(PromptError, match=r":2: id '1' is already used at .*:1;"):
        read_prompts(file)


def test_no_file_and_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="No such file"):
        read_prompts(tmp_path / "missing.jsonl")
    with pytest.raises(PromptError, match="holds no prompts"):
        read_prompts(write(tmp_path, "", "  "))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(PromptError, match=":1: not a JSON object"):
        read_prompts(file)


def test_a_prompt_without_tokens_is_named(tmp_path: Path) -> None:
    (prompt,) = read_prompts(write(tmp_path, {"prompt": " "}))
    with pytest.raises(PromptError, match=":1: the prompt has no tokens"):
        prompt.encode(FakeEncoder())


def test_what_the_encoder_refuses_is_named_by_line(tmp_path: Path) -> None:
    class NoTemplate(FakeEncoder):
        def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
            raise PromptError("the tokenizer has no chat template")

    line = {"messages": [{"role": "user", "content": "u"}]}
    (prompt,) = read_prompts(write(tmp_path, line))
    with pytest.raises(PromptError, match=":1: the tokenizer has no chat template"):
        prompt.encode(NoTemplate())


def test_a_list_within_the_references_has_equally_good_ones(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines = [
        {"turns": ["a"], "reference": [["one", "two", None]]},
        {"turns": ["a", "b"], "reference": ["x", ["y", "z"]]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    one, two = read_prompts(file)
    assert one.references == (("one", "two"),)
    assert two.references == (("x",), ("y", "z"))


PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "prompts"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published files are not beside this folder")
@pytest.mark.parametrize(
    ("file", "prompts", "turns", "categories"),
    [
        ("spec_bench_question.jsonl", 480, 560, 13),
        ("mt_bench_question.jsonl", 80, 160, 8),
        ("HumanEval.jsonl", 164, 164, 0),
        ("gsm8k_test.jsonl", 1319, 1319, 0),
    ],
)
def test_published_files_are_read_whole(
    file: str, prompts: int, turns: int, categories: int
) -> None:
    read = read_prompts(PUBLISHED / file)
    assert len(read) == prompts
    assert sum(len(prompt.turns) for prompt in read) == turns
    assert len({prompt.category for prompt in read} - {None}) == categories
