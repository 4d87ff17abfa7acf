"""The arm `cloud_assisted`: draft and target on the server, and the text of `cloud_optimized`."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from transformers import AutoTokenizer

from cloud_server.host import Host
from common.config import CloudSection
from common.errors import ModelError
from common.lm.runner import LanguageModel
from common.types import GeneratedTokens, OpenSession, Peer, SamplingParams, StopParams
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.integration.processes import Server, edge, generate, serving
from tests.integration.test_exactness import LIMITS, ROUNDING, random_run
from tests.integration.test_service import opening, refusal
from tests.integration.test_two_processes import cloud_text
from tests.models import Pair, language_model, loaded, noised_copy, tiny
from tests.robustness.watching import metric, wait_for_rest
from tests.three_arms import Run, cloud_assisted, cloud_optimized, hosting, parting

BATCHES, BATCH = 4, 4
DRAFT_CACHE = "outrider_draft_kv_cache_used_tokens"


async def together(
    host: Host, runs: list[Run]
) -> tuple[list[list[GeneratedTokens]], list[list[int]]]:
    assisted = asyncio.gather(*(cloud_assisted(host, run) for run in runs))
    alone = asyncio.gather(*(cloud_optimized(host, run) for run in runs))
    return await assisted, await alone


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe"])
def test_random_runs_write_what_the_target_alone_writes(architecture: str) -> None:
    """Greedy and sampled, drafts of any length, side by side with decodes in the same forwards."""
    target = language_model(architecture, cache_tokens=2048)
    draft = LanguageModel(loaded(noised_copy(tiny(architecture), 0.1)), cache_tokens=2048)
    rng = random.Random(f"assisted {architecture}")
    ties = accepted = drafted = 0
    with hosting(target, LIMITS, draft) as host:
        for _ in range(BATCHES):
            runs = [random_run(rng, target.loaded.vocab_size) for _ in range(BATCH)]
            for run, pieces, alone in zip(runs, *asyncio.run(together(host, runs)), strict=True):
                text = [token for piece in pieces for token in piece.token_ids]
                if text != alone:
                    assert parting(host, run, alone, text).gap < ROUNDING
                    ties += 1
                    continue
                assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
                assert pieces[-1].finish_reason is not None
                made = [piece.round for piece in pieces if piece.round is not None]
                assert len(made) == len(pieces)
                accepted += sum(one.num_accepted_tokens for one in made)
                drafted += sum(one.num_draft_tokens for one in made)
                assert max(one.num_draft_tokens for one in made) <= run.draft_length
        settled = threading.Event()
        host.engine.call(settled.set)  # after what was given back before
        assert settled.wait(60)
        assert draft.cache.used_tokens == 0
        count = host.metrics.registry.get_sample_value
        assert count("outrider_spec_decode_num_accepted_tokens_total") == accepted
        assert count("outrider_draft_iteration_sessions_sum") > count(  # type: ignore[operator]
            "outrider_draft_iteration_sessions_count"
        )
    assert ties <= 1
    assert 0 < accepted < drafted


def test_pieces_follow_each_other_without_a_gap_and_the_parts_fit_into_the_whole() -> None:
    target = language_model(cache_tokens=2048)
    draft = LanguageModel(loaded(noised_copy(tiny("llama"), 0.1)), cache_tokens=2048)
    opened = OpenSession(Peer("", "", 0, ""), (5, 6, 7), SamplingParams(), StopParams(40, ()))
    run = Run(opened, draft_length=3)
    with hosting(target, LIMITS, draft) as host:
        began = host.clock()
        pieces = asyncio.run(cloud_assisted(host, run))
        whole = host.clock() - began
    assert len(pieces) > 10
    for piece in pieces:
        assert piece.round is not None
        timing, made = piece.timing, piece.round
        parts = timing.queued_ns + timing.batched_ns + timing.computed_ns + made.draft_ns
        assert timing.total_ns == parts
        assert 0 < made.draft_busy_ns <= made.draft_ns or not made.num_draft_tokens
    assert 0 < sum(piece.timing.total_ns for piece in pieces) <= whole


def test_the_target_reads_of_a_later_turn_what_it_adds() -> None:
    target = language_model(cache_tokens=2048)
    draft = LanguageModel(loaded(noised_copy(tiny("llama"), 0.1)), cache_tokens=2048)
    first = OpenSession(
        Peer("", "", 0, ""), (5, 6, 7), SamplingParams(), StopParams(12, ()), conversation=b"us"
    )
    with hosting(target, LIMITS, draft) as host:

        def written(opened: OpenSession) -> tuple[list[int], float]:
            """Returns the text and how many tokens went through the target for it."""
            before = host.metrics.registry.get_sample_value("outrider_iteration_tokens_sum")
            pieces = asyncio.run(cloud_assisted(host, Run(opened, draft_length=3)))
            after = host.metrics.registry.get_sample_value("outrider_iteration_tokens_sum")
            assert before is not None
            assert after is not None
            return [token for piece in pieces for token in piece.token_ids], after - before

        answer, _ = written(first)
        later = replace(first, prompt_token_ids=(5, 6, 7, *answer, 8, 9))
        text, read = written(later)
        alone, read_cold = written(replace(later, conversation=b""))
    assert text == alone
    assert read_cold - read == 3 + len(answer) - 1  # the last token was never read


def test_an_engine_without_a_draft_model_says_so_before_anything_is_reserved() -> None:
    with (
        hosting(language_model(), CloudSection(cache_tokens=1024)) as host,
        pytest.raises(ModelError, match=r"no draft model beside llama: start it with --draft-m"),
    ):
        host.drafts()


@pytest.fixture(scope="module")
def assisting_server(tiny_pair: Pair) -> Iterator[Server]:
    with serving(tiny_pair.target, "--draft-model", str(tiny_pair.draft)) as running:
        yield running


def test_a_user_gets_the_targets_own_text(assisting_server: Server, tiny_pair: Pair) -> None:
    prompt = "One day, she"
    assisted = generate(
        assisting_server.address, tiny_pair.draft, prompt, "--arm", "cloud_assisted",
        "--max-new-tokens", "24", "--ignore-eos", "--set", "drafting.length=3",
    )  # fmt: skip
    with grpc.insecure_channel(assisting_server.address) as channel:
        ids = AutoTokenizer.from_pretrained(tiny_pair.target)(prompt)["input_ids"]
        assert assisted["token_ids"] == cloud_text(channel, ids, 24)
    stats = assisted["stats"]
    assert 0 < stats["num_accepted_tokens"] < stats["num_draft_tokens"]
    assert stats["rounds"] + stats["num_accepted_tokens"] == 24
    assert len(stats["drafted_per_position"]) == 3
    assert stats["target_forward_passes"] == stats["rounds"]
    assert (stats["lossless"], stats["verification"]["mode"]) == (True, "coupled")


@pytest.mark.parametrize("flags", [(), ("--temperature", "0.9", "--seed", "7", "--top-p", "0.9")])
def test_a_bench_of_all_arms_finds_one_text(
    assisting_server: Server, tiny_pair: Pair, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(f'{{"prompt": "Once upon a {n}"}}\n' for n in range(2)))
    done = edge(
        "bench", "--server", assisting_server.address, "--draft", str(tiny_pair.draft),
        "--prompts", str(prompts), "--max-new-tokens", "12", "--out", str(out), "--trace",
        "--arms", "edge,cloud,cloud_optimized,speculative,cloud_assisted",
        "--set", "drafting.length=3", "--set", "network.pipeline=0", *flags,
    )  # fmt: skip
    assert "identical to cloud: 2/2" in done.stdout
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["error"] for record in records] == [None] * 10
    for prompt in ("line-1", "line-2"):
        found = {r["arm"]: r for r in records if r["prompt_id"] == prompt}
        assisted, split = found["cloud_assisted"], found["speculative"]
        assert assisted["output_token_ids"] == found["cloud_optimized"]["output_token_ids"]
        assert (assisted["draft_dtype"], assisted["target_dtype"]) == ("float32", "float32")
        assert assisted["verification"]["mode"] == "coupled"
        # One rule and one draft length: the rounds are the same, wherever the draft is made.
        for field in ("rounds", "num_draft_tokens", "num_accepted_tokens", "accepted_per_position"):
            assert assisted[field] == split[field]
        for field in ("rtt_ms", "unasked_blocks", "cloud_call_rate", "drafts_ahead"):
            assert assisted[field] is None
            assert split[field] is not None
        assert assisted["draft_ms"]["p50"] > 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["environment"]["server"]["draft_model"]["name"] == tiny_pair.draft.name
    parts = summary["arms"]["cloud_assisted"]["ms_per_token"]
    assert all(parts[part]["value"] > 0 for part in ("draft", "queue", "target_compute"))
    assert summary["arms"]["cloud_assisted"]["overlap_ms_per_token"] is None


def test_both_caches_are_given_back_by_who_leaves_in_the_middle(
    assisting_server: Server,
) -> None:
    with grpc.insecure_channel(assisting_server.address) as channel:
        request = pb.GenerateRequest(mode=pb.GENERATE_MODE_ASSISTED, open=opening(200))
        call = VerifierStub(channel).Generate(request, timeout=60)
        assert next(iter(call)).round.draft_count == 4  # as the server likes
        assert metric(assisting_server, DRAFT_CACHE) == 256  # 203 tokens, by whole blocks
        call.cancel()  # type: ignore[no-untyped-call]
    assert wait_for_rest(assisting_server) == {}
    assert metric(assisting_server, DRAFT_CACHE) == 0


def test_a_server_without_a_draft_model_refuses(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        request = pb.GenerateRequest(mode=pb.GENERATE_MODE_ASSISTED, open=opening())
        with pytest.raises(grpc.RpcError) as refused:
            list(VerifierStub(channel).Generate(request, timeout=60))
    status, error = refusal(refused.value)
    assert status == "FAILED_PRECONDITION"
    assert isinstance(error, ModelError)
    assert "start it with --draft-model" in str(error)
