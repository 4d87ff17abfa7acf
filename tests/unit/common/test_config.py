from __future__ import annotations

from pathlib import Path

import pytest

from common.config import Config, known_keys, load
from common.errors import ConfigError

PROMISED = """
cloud.dtype edge.dtype engine.compile decoding.max_new_tokens decoding.temperature decoding.top_p
decoding.top_k decoding.seed drafting.length drafting.stop verification.mode
verification.rank_threshold gate.kind gate.threshold network.pipeline network.run_ahead
limits.edge.cpu_cores limits.edge.memory_gb limits.cloud.cpu_cores limits.cloud.memory_gb
cloud.token_budget cloud.cache_tokens cloud.max_sessions security.tls_cert security.tls_key
security.tls_client_ca security.token_file
"""


def test_every_promised_key_is_there() -> None:
    assert set(PROMISED.split()) <= set(known_keys())


@pytest.mark.parametrize("name", ["default", "memory_optimized"])
def test_the_shipped_configurations_say_float32(name: str) -> None:
    config = load(Path("configs") / f"{name}.yaml")
    assert (config.cloud.dtype, config.edge.dtype) == ("float32", "float32")
    text = (Path("configs") / f"{name}.yaml").read_text()
    assert text.count("dtype: float32") == 2  # said, not only implied


def test_the_default_file_is_the_defaults() -> None:
    assert load(Path("configs/default.yaml")) == Config()


def test_the_memory_optimized_file_is_smaller_in_what_takes_memory() -> None:
    small, default = load(Path("configs/memory_optimized.yaml")), Config()
    assert small.cloud.token_budget < default.cloud.token_budget
    assert small.cloud.cache_tokens < default.cloud.cache_tokens
    assert small.cloud.prefill_chunk < default.cloud.prefill_chunk
    assert small.cloud.max_sessions < default.cloud.max_sessions
    assert isinstance(small.drafting.length, int)  # the default goes to as many as help
    assert small.drafting.length < 4


def test_a_bare_off_is_off_and_on_is_on() -> None:
    assert load(None, ["engine.compile=off"]).engine.compile == "off"
    assert load(None, ["engine.compile=on"]).engine.compile == "on"


def test_run_ahead_is_a_number_and_older_files_say_false() -> None:
    assert load(None, ["network.run_ahead=64"]).network.run_ahead == 64
    assert load(None, ["network.run_ahead=false"]).network.run_ahead == 0


@pytest.mark.parametrize(
    "other", [["verification.mode=rank"], ["gate.kind=entropy", "gate.threshold=1"]]
)
def test_run_ahead_and_tokens_that_are_not_the_targets_own_are_refused_together(
    other: list[str],
) -> None:
    key, value = other[0].split("=")
    with pytest.raises(ConfigError, match=f"network.run_ahead = 8 needs.*{key} = '{value}'.*to 0"):
        load(None, ["network.run_ahead=8", *other])


def test_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("decoding: {temperature: 0.5, top_k: 3}\n")
    config = load(file, ["decoding.temperature=1", "decoding.temperature=2", "decoding.stop=[x]"])
    assert (config.decoding.temperature, config.decoding.top_k) == (2, 3)
    assert config.decoding.stop == ("x",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoding.temprature=1", "nearest known one is 'decoding.temperature'"),
        ("clowd.dtype=float32", "nearest known one is 'cloud'"),
        ("cloud.batch_window_ms=500", "'cloud.batch_window_ms' = 500: Input should be less than"),
        ("cloud.batch_window_ms=-1", "'cloud.batch_window_ms' = -1: Input should be greater"),
        ("decoding.top_p=2", "'decoding.top_p' = 2"),
        ("drafting.length=many", "'drafting.length' = 'many'"),
        ("cloud.dtype=fp8", "'cloud.dtype' = 'fp8'.*'float32'"),
        ("cloud.token_budget=0", "'cloud.token_budget' = 0"),
        ("cloud=3", "section.key=value"),
        ("decoding.stop=['']", "'decoding.stop' = ''"),
        ("decoding.seed=[", "not a YAML value"),
        ("decoding.seed.deep=1", "'decoding.seed'"),
        ("verification.mode=best", "'verification.mode' = 'best'.*'rejection'"),
        ("verification.rank_threshold=0", "'verification.rank_threshold' = 0"),
        ("verification.typical_alpha=0", "'verification.typical_alpha' = 0"),
        ("gate.kind=entropy", "gate.kind = 'entropy' needs gate.threshold"),
        ("gate.kind=doubt", "'gate.kind' = 'doubt'"),
        ("drafting.confidence_threshold=1.5", "'drafting.confidence_threshold' = 1.5"),
        ("drafting.candidates=1025", "'drafting.candidates' = 1025"),
        ("decoding.repetition_penalty=0", "'decoding.repetition_penalty' = 0"),
        ("decoding.min_p=2", "'decoding.min_p' = 2"),
        ("gate.threshold=.inf", "'gate.threshold' = inf"),
        ("gate.threshold=.nan", "'gate.threshold' = nan"),
        ("decoding.top_k=5000000000", "'decoding.top_k' = 5000000000"),
        ("decoding.max_new_tokens=5000000000", "'decoding.max_new_tokens' = 5000000000"),
        ("verification.rank_threshold=5000000000", "'verification.rank_threshold' = 5000000000"),
        ("verification.typical_threshold=1.0e-50", "'verification.typical_threshold' = 1e-50"),
        ("decoding.top_p=1.0e-50", "'decoding.top_p' = 1e-50"),
        ("drafting.length=often", "'drafting.length'"),
        ("network.pipeline=33", "'network.pipeline' = 33"),
        ("network.run_ahead=true", "'network.run_ahead' = True"),
        ("network.run_ahead=-1", "'network.run_ahead' = -1"),
        ("limits.edge.cpu_cores=0", "'limits.edge.cpu_cores' = 0"),
        ("limits.cloud.memory_gb=0.1", "'limits.cloud.memory_gb' = 0.1"),
        ("security.tls_cert=x", "security.tls_cert = 'x' needs security.tls_key beside it"),
        ("security.tls_key=x", "security.tls_key = 'x' needs security.tls_cert beside it"),
        ("security.tls_client_ca=x", "security.tls_client_ca = 'x' needs security.tls_cert"),
        ("security.token_file=''", "'security.token_file' = ''"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1\n", "expected sections"), ("cloud: 1\n", "'cloud' = 1")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Config().cloud.dtype = "bfloat16"
