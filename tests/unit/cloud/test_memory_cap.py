"""An engine under an enforced cap on memory: what goes beyond it fails, and nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import itertools, json
from common.config import SideLimits
from common.machine.limits import enforce
enforce(SideLimits(memory_gb=1.0), confine=lambda *_: [])
from cloud_server.acceptance import Check
from cloud_server.engine import Engine
from cloud_server.jobs import Job
from common.lm.runner import LanguageModel
from common.types import SamplingParams
from dataclasses import replace
from tests.models import loaded, tiny_llama

WIDE, SESSIONS, TOKENS = 1 << 17, 16, 200
model = replace(loaded(tiny_llama(vocab_size=WIDE)), vocab_size=WIDE)
model = LanguageModel(model, cache_tokens=4096)
told = []
ticks = itertools.count(1)
engine = Engine(model, token_budget=4096, prefill_chunk=64, clock=lambda: next(ticks),
                on_step=lambda report: None)

def ask(guesses):
    tokens = list(range(1, 1 + TOKENS))
    known = TOKENS - guesses
    check = Check(context=tuple(tokens[:known]), guesses=tuple(tokens[known:]), valid=0,
                  prompt_length=1, sampling=SamplingParams())
    for session in model.cache.sessions:
        engine.submit(Job(session=session, tokens=tokens, valid=known - 1, check=check,
                          arrived_ns=0,
                          then=lambda judged, timing: told.append(None),
                          failed=lambda error: told.append([error.reason, str(error)])))
    engine._take_inbox()
    while engine.jobs_waiting:
        engine.step()

for _ in range(SESSIONS):
    model.cache.allocate(TOKENS)
ask(TOKENS - 1)  # 1.7 GB of logits
ask(1)
print(json.dumps(told))
"""


def test_a_step_beyond_the_cap_is_refused_and_the_next_is_answered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    refused, answered = told[:16], told[16:]
    assert {reason for reason, _ in refused} == {"OVERLOADED"}
    assert "ran out of memory" in refused[0][1]
    assert "retry later, with fewer tokens" in refused[0][1]
    assert answered == [None] * 16
