"""The paper's decoding mode, one sequence of queries, over real gRPC: what slots mode promises."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.suggestion_pb2 import SuggestionSource
from tests.blocking import BlockingStub, blocking_stub

TIMEOUT_S = 10
QUERIES = ("leather jacket", "winter", "baby chair", "running lamp", "no such query in any log")


@pytest.fixture(scope="module")
def list_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in list mode with random weights, but a generator that often writes <|sep|>.

    All text tokens share a direction that <|sep|> has twice as much of, so it likes to follow them.
    """
    from safetensors.torch import load_file, save_file

    from engine.formats.vocabulary import FIRST_TEXT_ID, SEP_ID
    from export.bundle import export_bundle
    from export.sample import write_sample_run

    directory = tmp_path_factory.mktemp("list")
    write_sample_run(directory / "run")
    weights = directory / "run/generator/model.safetensors"
    state = load_file(weights)
    embedding_VD = state["model.embed_tokens.weight"]
    norms_V = embedding_VD.norm(dim=1)
    shared_D = 2 * norms_V.mean() / norms_V[SEP_ID] * embedding_VD[SEP_ID]
    embedding_VD[FIRST_TEXT_ID:] += shared_D
    embedding_VD[SEP_ID] = 2 * shared_D
    save_file(state, weights, metadata={"format": "pt"})
    export_bundle(directory / "run", directory / "bundle", mode="list", num_parity_requests=3)
    return directory / "bundle"


@pytest.fixture(scope="module")
def stub(list_bundle, tmp_path_factory, start_engine, stop_engine) -> Iterator[BlockingStub]:
    engine = start_engine(list_bundle, tmp_path_factory.mktemp("engine"))
    with grpc.insecure_channel(engine.target) as channel:
        yield blocking_stub(channel)
    assert stop_engine(engine) == 0


def ask(stub, scenario: str, query: str, **fields) -> pb.RecommendResponse:
    request = pb.RecommendRequest(scenario=scenario, query=query, **fields)
    return stub.Recommend(request, timeout=TIMEOUT_S)


def generated(response: pb.RecommendResponse) -> list[str]:
    source = SuggestionSource.SUGGESTION_SOURCE_GENERATED
    return [s.text for s in response.suggestions if source in s.sources]


def test_generated_suggestions_arrive_distinct_and_never_the_query(stub):
    num_generated = 0
    for query in QUERIES:
        response = ask(stub, "suggestion", query, max_suggestions=32)
        texts = [s.text for s in response.suggestions]
        assert len(set(texts)) == len(texts) > 5
        assert query not in texts
        assert not any("<|" in t for t in texts)
        num_generated += len(generated(response))
    assert num_generated >= 2


def test_the_auxiliary_text_arrives_where_the_scenario_has_one(stub):
    auxiliary = []
    for query in QUERIES:
        response = ask(stub, "clarification", query)
        assert len(response.auxiliary_text.encode()) <= 256
        assert response.suggestions
        auxiliary.append(response.auxiliary_text)
    assert any(auxiliary)
    assert not any(ask(stub, "suggestion", q).auxiliary_text for q in QUERIES)


@pytest.mark.parametrize(
    "prefix", ["wireless m", "wireless ", "zxq unheard of pre", "caf\u00e9 ta", "\U0001f600 st"]
)
def test_every_completion_starts_with_what_was_typed(stub, prefix):
    response = ask(stub, "completion", prefix, max_suggestions=32)
    assert response.suggestions
    assert all(s.text.startswith(prefix) for s in response.suggestions)


def test_an_unknown_prefix_is_completed_by_the_generator(stub):
    answers = [ask(stub, "completion", f"zxq {p}") for p in ("a", "b", "pre", "wo", "su")]
    assert sum(len(generated(a)) for a in answers) > 0


@pytest.mark.parametrize("num_wanted", [1, 3, 20])
@pytest.mark.parametrize("scenario", ["suggestion", "clarification"])
def test_no_more_suggestions_come_than_were_asked_for(stub, scenario, num_wanted):
    response = ask(stub, scenario, "garden chair", max_suggestions=num_wanted)
    assert len(response.suggestions) == num_wanted
    assert [s.position for s in response.suggestions] == list(range(1, num_wanted + 1))


def test_the_longest_prompt_and_the_longest_list_fit_the_graph(stub):
    response = ask(
        stub,
        "clarification",
        "\U00010301" * 64,
        session_queries=["\u092d\u093e\u0930\u0924 " * 15] * 16,
        answer="word " * 1600,
    )
    assert response.suggestions
    assert not response.omissions
