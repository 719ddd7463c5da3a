"""Sample requests of a run."""

import pytest

from engine.formats.prompt import token_limits
from export.checkpoint import Run
from export.requests import decoding, sample_requests
from export.sample import write_sample_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("requests") / "run"
    write_sample_run(directory)
    return Run(directory)


def test_a_list_may_be_as_long_as_all_texts_that_it_is_taught(run: Run) -> None:
    for scenario in run.scenarios:
        single = decoding(run, scenario.name, "slots").max_new_tokens
        assert len(single) == scenario.num_slots
        assert decoding(run, scenario.name, "list").max_new_tokens == [sum(single)]


def test_limits_are_of_the_texts_asked_for_and_the_auxiliary_one(run: Run) -> None:
    suggestion, _, clarification = run.scenarios
    assert token_limits(suggestion, "slots") == [8] * 8
    assert token_limits(clarification, "beam", 2, 6) == [16, 6, 6]
    assert token_limits(clarification, "list", 2, 6) == [28]


def test_scenarios_and_numbers_of_candidates_take_turns(run: Run) -> None:
    requests = sample_requests(run, 48, seed=0)
    pairs = {(r.scenario, len(r.candidates)) for r in requests}
    assert len(pairs) == 48
