"""The stop rule against a naive reading of it, however the tokens are cut into blocks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.stopping import Stopper
from common.types import FinishReason, StopParams

EOS = 9
TEXTS = ["a", "b", "ab", "", "ba", "aab", "c", "abc", "d", ""]  # of the tokens 0..9
STOP_STRINGS = st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3).map(tuple)


def naive(tokens: list[int], stop: StopParams, room: int) -> tuple[int, str, FinishReason | None]:
    text = ""
    for count, token in enumerate(tokens, start=1):
        before, text = text, text + TEXTS[token]
        if token == EOS:
            return count, text, FinishReason.EOS
        hits = [at for s in stop.stop_strings if (at := text.find(s)) >= 0]
        if hits:
            assert all(s not in before for s in stop.stop_strings)
            return count, text[: min(hits)], FinishReason.STOP_STRING
        if count == stop.max_new_tokens:
            return count, text, FinishReason.MAX_NEW_TOKENS
        if count == room:
            return count, text, FinishReason.CONTEXT_LENGTH
    return len(tokens), text, None


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8),
    STOP_STRINGS,
    st.integers(1, 30),
    st.integers(1, 30),
)
@example([[0, 0], [1, 9, 3]], (), 30, 30)  # an end-of-sequence token inside a block
@example([[0], [1], [6]], ("abc",), 30, 30)  # a stop string over three tokens
@example([[0], [1], [0], [1]], ("abab",), 30, 30)  # one that could have begun twice
@example([[7]], ("c", "bc"), 30, 30)  # two completed at once: the text ends before the earlier
def test_any_blocks_give_the_naive_result(
    blocks: list[list[int]], stop_strings: tuple[str, ...], max_new_tokens: int, room: int
) -> None:
    stop = StopParams(max_new_tokens, (EOS,), stop_strings)
    stopper = Stopper(stop, model_eos=(), room=room, detokenize=lambda token: TEXTS[token])
    tokens = [token for block in blocks for token in block]
    count, text, reason = naive(tokens, stop, room)

    kept: list[int] = []
    shown = ""
    for block in blocks:
        piece = stopper.push(block)
        kept += piece.token_ids
        shown += piece.text
        assert text.startswith(shown)  # nothing is ever taken back
        assert stopper.remaining == (
            0 if stopper.finish_reason else min(max_new_tokens, room) - len(kept)
        )
    assert kept == tokens[:count]
    assert stopper.finish_reason is reason
    if reason is not None:
        assert shown == text
    else:  # only what could begin a stop string is held back
        held = text[len(shown) :]
        assert not held or any(s.startswith(held) for s in stop_strings)


def test_the_models_own_end_tokens_count_unless_others_or_none_are_named() -> None:
    def ends(eos: tuple[int, ...] | None) -> bool:
        stopper = Stopper(StopParams(5, eos), model_eos=(7,), room=5)
        return stopper.push([7]).finish_reason is FinishReason.EOS

    assert ends(None)
    assert not ends(())
    assert not ends((3,))


def test_stop_strings_without_text_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="detokenizer"):
        Stopper(StopParams(5, (), ("x",)), model_eos=(), room=5)
