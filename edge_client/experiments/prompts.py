"""Prompt files: one JSON object a line, read whole and checked before anything runs.

A line holds exactly one of

    prompt    a string, continued as it stands (HumanEval's layout too)
    messages  a chat, [{"role": ..., "content": ...}, ...]; the last one is answered
    turns     what a user says, turn by turn; each is answered in order (Spec-Bench, MT-Bench)
    question  one user turn (GSM8K)

and optionally `id` (or `question_id`, `task_id`), `category` and `reference`: the
text that is wanted, or a list of texts. A list has one for each turn where there are
several turns, and equally good ones where there is one; a list within it has equally good
ones for its turn (Spec-Bench); in a list, null is none.
Other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common.errors import PromptError

Message = Mapping[str, str]

_KINDS = ("prompt", "messages", "turns", "question")
_IDS = ("id", "question_id", "task_id")
_ROLES = ("system", "user", "assistant")


class PromptEncoder(Protocol):
    """Turns text and chats into the pair's token ids."""

    def encode(self, text: str) -> Sequence[int]:
        """Returns the tokens of a text that is to be continued."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> Sequence[int]:
        """Returns the tokens of a chat up to where the reply begins.

        Raises PromptError when the tokenizer has no chat template.
        """
        ...

    def encode_turns(self, messages: Sequence[Message]) -> Sequence[int]:
        """Returns the tokens of a conversation, with or without a chat template."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """Is one line of a prompt file.

    `turns` are what is asked, one after the other; `history` the messages that
    stand before the first of them; `kind` is the field of the line that held it;
    `references` has the texts wanted of each turn.
    """

    prompt_id: str
    turns: tuple[str, ...]
    kind: str
    where: str
    history: tuple[Message, ...] = ()
    category: str | None = None
    references: tuple[tuple[str, ...], ...] = ()

    def encode(self, encoder: PromptEncoder, answers: Sequence[str] = ()) -> tuple[int, ...]:
        """Returns the prompt tokens of the turn that follows `answers`.

        Raises PromptError naming file and line when there are none.
        """
        try:
            if self.kind == "prompt":
                token_ids = tuple(encoder.encode(self.turns[0]))
            elif self.kind == "messages":
                token_ids = tuple(encoder.encode_chat(self.messages(answers)))
            else:
                token_ids = tuple(encoder.encode_turns(self.messages(answers)))
        except PromptError as error:
            raise PromptError(f"{self.where}: {error}") from None
        if not token_ids:
            raise PromptError(f"{self.where}: the prompt has no tokens; give it some text")
        return token_ids

    def references_of(self, turn: int) -> tuple[str, ...]:
        """Returns the texts wanted of a turn, none where the file has none."""
        return self.references[turn] if turn < len(self.references) else ()

    def messages(self, answers: Sequence[str]) -> list[Message]:
        """Returns the chat up to the turn that follows `answers`."""
        messages = list(self.history)
        for turn, answer in zip(self.turns, answers, strict=False):
            messages.append({"role": "user", "content": turn})
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": self.turns[len(answers)]})
        return messages


def read_prompts(file: Path, limit: int | None = None) -> tuple[Prompt, ...]:
    """Reads and checks a whole prompt file, and returns its first `limit` prompts.

    Every line is checked, those beyond the limit too. Raises PromptError naming
    file and line number.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise PromptError(f"prompt file {file}: {error.strerror}; check the path") from None
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(line, f"{file}:{number}", number)
        if prompt.prompt_id in seen:
            raise PromptError(
                f"{prompt.where}: id {prompt.prompt_id!r} is already used at "
                f"{seen[prompt.prompt_id]}; give each prompt its own"
            )
        seen[prompt.prompt_id] = prompt.where
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"prompt file {file} holds no prompts; write one JSON object a line")
    return tuple(prompts[:limit])


def _parse(line: bytes, where: str, number: int) -> Prompt:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # bad bytes, bad JSON, endless digits or nesting
        raise PromptError(f"{where}: not a JSON object: {error}") from None
    if not isinstance(fields, dict):
        raise PromptError(f"{where}: expected a JSON object, found {_short(fields)}")
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        raise PromptError(f"{where}: needs exactly one of {', '.join(_KINDS)}; found {found}")
    history, turns = _turns(kinds[0], fields[kinds[0]], where)
    return Prompt(
        prompt_id=_identity(fields, where, number),
        turns=turns,
        kind=kinds[0],
        where=where,
        history=history,
        category=_category(fields, where),
        references=_references(fields.get("reference"), len(turns), where),
    )


def _turns(kind: str, value: Any, where: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Returns the messages before the first turn, and the turns."""
    if kind == "messages":
        return _history(value, where)
    turns = value if kind == "turns" else [value]
    if not isinstance(turns, list) or not turns:
        raise PromptError(f"{where}: {kind!r} must be a list of strings, found {_short(value)}")
    for turn in turns:
        if not isinstance(turn, str) or not turn:
            raise PromptError(f"{where}: {kind!r} must hold text, found {_short(turn)}")
    return (), tuple(turns)


def _history(value: Any, where: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if not isinstance(value, list) or not value:
        raise PromptError(f"{where}: 'messages' must be a list, found {_short(value)}")
    for message in value:
        if not (
            isinstance(message, dict)
            and message.get("role") in _ROLES
            and isinstance(message.get("content"), str)
        ):
            raise PromptError(
                f"{where}: a message needs a role ({', '.join(_ROLES)}) and a text content, "
                f"found {_short(message)}"
            )
    if value[-1]["role"] != "user":
        raise PromptError(
            f"{where}: the last message must be the user's, found role {value[-1]['role']!r}"
        )
    messages = [{"role": m["role"], "content": m["content"]} for m in value]
    return tuple(messages[:-1]), (messages[-1]["content"],)


def _identity(fields: Mapping[str, Any], where: str, number: int) -> str:
    for name in _IDS:
        if name in fields:
            value = fields[name]
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise PromptError(
                    f"{where}: {name!r} must be a string or a whole number, found {_short(value)}"
                )
            return str(value)
    return f"line-{number}"


def _category(fields: Mapping[str, Any], where: str) -> str | None:
    value = fields.get("category")
    if value is not None and not isinstance(value, str):
        raise PromptError(f"{where}: 'category' must be a string, found {_short(value)}")
    return value


def _references(value: Any, turns: int, where: str) -> tuple[tuple[str, ...], ...]:
    """Returns the texts wanted of each turn; a list within the list has equally good ones."""
    if value is None:
        return ()
    each = value if isinstance(value, list) else [value]
    inner = [text if isinstance(text, list) else [text] for text in each]
    if not all(text is None or isinstance(text, str) for texts in inner for text in texts):
        raise PromptError(
            f"{where}: 'reference' must be text, or a list of texts, found {_short(value)}"
        )
    wanted = [tuple(text for text in texts if text is not None) for texts in inner]
    if turns == 1:
        return (tuple(text for texts in wanted for text in texts),)
    if len(wanted) > turns:
        raise PromptError(f"{where}: 'reference' has {len(wanted)} texts for {turns} turns")
    return tuple(wanted)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
