"""The arms: one request, one rule for its end, and nothing kept between runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import ConfigError, InternalError, PromptError
from common.types import AssistedRound, FinishReason, GeneratedTokens, StopParams
from edge_client.arms import ARM_NAMES, Arm, Drafting, GenerationRequest, build_arms
from edge_client.draft_length import FixedPace
from edge_client.steps import Step
from tests.models import tiny_tokenizer
from tests.unit.edge.pair import (
    CONTEXT,
    GREEDY,
    PEER,
    TIMING,
    Clock,
    PairedCloud,
    ScriptedDrafter,
    server_info,
    text_of,
    undisturbed,
)

PROMPT = (260, 261, 262)


def built(
    *names: str,
    cloud: PairedCloud | None = None,
    drafter: ScriptedDrafter | None = None,
    cloud_length: int | None = None,
    **server: object,
) -> dict[str, Arm]:
    return build_arms(
        names,
        tokenizer=tiny_tokenizer(),
        peer=PEER,
        drafter=drafter or ScriptedDrafter(),
        cloud=cloud,
        server=None if cloud is None else server_info(**server),
        drafting=Drafting(FixedPace(4, 8), cloud_length=cloud_length),
        clock=Clock(),
    )


def asked(max_new_tokens: int = 8, prompt: tuple[int, ...] = PROMPT) -> GenerationRequest:
    return GenerationRequest(prompt, GREEDY, StopParams(max_new_tokens))


def streamed(*blocks: tuple[int, ...], end: FinishReason | None) -> list[GeneratedTokens]:
    pieces = [GeneratedTokens(block, None, TIMING) for block in blocks[:-1]]
    return [*pieces, GeneratedTokens(blocks[-1], end, TIMING)]


def tokens(steps: list[Step]) -> tuple[int, ...]:
    return tuple(token_id for step in steps for token_id in step.token_ids)


def test_every_arm_gives_the_same_output_for_the_same_tokens() -> None:
    expected = undisturbed(PROMPT, StopParams(8))
    pieces = streamed(*((token_id,) for token_id in expected), end=FinishReason.MAX_NEW_TOKENS)
    arms = built(*ARM_NAMES, cloud=PairedCloud(pieces))
    assert list(arms) == list(ARM_NAMES)
    outputs = {name: list(arm.run(asked())) for name, arm in arms.items()}
    for name, steps in outputs.items():
        assert arms[name].name == name
        assert tokens(steps) == expected
        assert "".join(step.text for step in steps) == text_of(expected)
        assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
        assert steps[-1].finish_reason is FinishReason.MAX_NEW_TOKENS


def test_what_does_not_apply_to_an_arm_is_none() -> None:
    pieces = streamed(undisturbed(PROMPT, StopParams(8)), end=FinishReason.MAX_NEW_TOKENS)
    arms = built(*ARM_NAMES, cloud=PairedCloud(pieces))
    edge, cloud, speculative = (
        next(iter(arms[name].run(asked()))) for name in ("edge", "cloud", "speculative")
    )
    assert (edge.elapsed_ns, edge.timing, edge.bytes_up, edge.draft_ns) == (None,) * 4
    assert (cloud.draft_ns, cloud.num_draft_tokens, cloud.num_accepted_tokens) == (None,) * 3
    assert (cloud.elapsed_ns, cloud.bytes_up, cloud.bytes_down, cloud.timing) == (9, 7, 5, TIMING)
    assert None not in (speculative.draft_ns, speculative.elapsed_ns, speculative.bytes_up)


def test_edge_needs_no_server_and_ends_by_the_drafts_own_rule() -> None:
    steps = list(built("edge")["edge"].run(asked(60)))
    assert tokens(steps) == undisturbed(PROMPT, StopParams(60))
    assert steps[-1].finish_reason is FinishReason.EOS


def test_beside_a_server_every_arm_ends_at_the_targets_eos() -> None:
    drafter = ScriptedDrafter()
    drafter.eos_token_ids = (undisturbed(PROMPT, StopParams(1))[0],)
    assert len(list(built("edge", drafter=drafter)["edge"].run(asked()))) == 1
    arms = built("edge", cloud=PairedCloud(), drafter=drafter)
    assert len(list(arms["edge"].run(asked()))) == 8


@pytest.mark.parametrize("name", ["edge", "speculative"])
def test_every_run_starts_cold(name: str) -> None:
    drafter = ScriptedDrafter()
    arm = built(name, cloud=PairedCloud(), drafter=drafter)[name]
    list(arm.run(asked()))
    list(arm.run(asked()))
    assert drafter.resets == 2
    list(arm.run(replace(asked(), continues=True)))  # but for the next turn of a conversation
    assert drafter.resets == 2


@pytest.mark.parametrize("name", ["edge", "cloud", "speculative"])
def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(name: str) -> None:
    arm = built(name, cloud=PairedCloud())[name]
    with pytest.raises(PromptError, match=r"64 tokens and the context 64; .* at most 63"):
        list(arm.run(asked(prompt=tuple(range(200, 200 + CONTEXT)))))


def test_the_reason_may_come_in_a_message_of_its_own() -> None:
    expected = undisturbed(PROMPT, StopParams(8))
    cloud = PairedCloud(streamed(expected[:5], expected[5:], (), end=FinishReason.MAX_NEW_TOKENS))
    steps = list(built("cloud", cloud=cloud)["cloud"].run(asked()))
    assert [len(step.token_ids) for step in steps] == [5, 3]
    assert steps[-1].finish_reason is FinishReason.MAX_NEW_TOKENS


@pytest.mark.parametrize(
    "pieces",
    [
        streamed(undisturbed(PROMPT, StopParams(9)), end=FinishReason.MAX_NEW_TOKENS),
        streamed(undisturbed(PROMPT, StopParams(8)), end=FinishReason.EOS),
        streamed(undisturbed(PROMPT, StopParams(7)), end=FinishReason.MAX_NEW_TOKENS),
        streamed(undisturbed(PROMPT, StopParams(8)), (300,), end=FinishReason.MAX_NEW_TOKENS),
    ],
    ids=["one more", "another reason", "one less", "after the end"],
)
def test_a_cloud_arm_that_ends_elsewhere_is_our_fault(pieces: list[GeneratedTokens]) -> None:
    arm = built("cloud_optimized", cloud=PairedCloud(pieces))["cloud_optimized"]
    with pytest.raises(InternalError, match="disagree where the output ends"):
        list(arm.run(asked()))


def test_a_cloud_arm_that_just_ends_is_our_fault() -> None:
    cloud = PairedCloud(streamed(undisturbed(PROMPT, StopParams(7)), end=None))
    with pytest.raises(InternalError, match="no finish reason"):
        list(built("cloud", cloud=cloud)["cloud"].run(asked()))


def test_the_server_is_told_who_asks_and_for_what() -> None:
    cloud = PairedCloud()
    list(built("speculative", cloud=cloud)["speculative"].run(asked()))
    opening = cloud.openings[0]
    assert (opening.peer, opening.prompt_token_ids) == (PEER, PROMPT)
    assert (opening.sampling, opening.stop) == (GREEDY, StopParams(8))


def test_a_draft_model_on_the_server_is_asked_for_and_told_of() -> None:
    expected = undisturbed(PROMPT, StopParams(8))
    pieces = streamed(expected[:4], expected[4:], end=FinishReason.MAX_NEW_TOKENS)
    made = AssistedRound(num_draft_tokens=5, num_accepted_tokens=3, draft_ns=6, draft_busy_ns=2)
    cloud = PairedCloud([replace(piece, round=made) for piece in pieces])
    for length in (3, None):
        arms = built("cloud_assisted", "cloud_optimized", cloud=cloud, cloud_length=length)
        first, second = arms["cloud_assisted"].run(asked())
        assert cloud.openings[-1].draft_length == length
        list(arms["cloud_optimized"].run(asked()))
        assert cloud.openings[-1].draft_length is None
    assert first.token_ids + second.token_ids == expected
    assert (first.draft_ns, first.num_draft_tokens, first.num_accepted_tokens) == (6, 5, 3)
    assert (first.num_guessed_tokens, first.num_wasted_tokens) == (5, 2)
    assert (first.elapsed_ns, first.asked, first.ahead, first.drafting) == (9, None, None, None)


def test_a_server_without_a_draft_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the one that serves big has none; start it with --dr"):
        built("cloud_assisted", cloud=PairedCloud(), draft_model_name="", model_name="big")


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="no arm 'fog'; choose from edge, cloud"):
        built("fog")
    with pytest.raises(ConfigError, match="named twice in edge,edge"):
        built("edge", "edge")
    with pytest.raises(ConfigError, match="needs a server; name one with --server"):
        built("cloud")


def test_a_missing_draft_model_is_named() -> None:
    with pytest.raises(ConfigError, match="name one with --draft"):
        build_arms(
            ["edge"],
            tokenizer=tiny_tokenizer(),
            peer=PEER,
            drafter=None,
            cloud=None,
            server=None,
            drafting=Drafting(FixedPace(4, 8)),
        )
