import random
import shutil
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from engine.formats.completion import completed
from engine.formats.prompt import COOCCURRING, SideInformation, spread
from engine.formats.vocabulary import EOS_ID, LIST, SEP_ID, slot_token
from tests.train.conftest import write_impressions
from train.generation.examples import Example, Source, read_sources
from train.generation.generator import (
    GeneratorMetrics,
    ResponseLoss,
    RunPrompts,
    example_maker,
    read_prompts,
    train_generator,
)
from train.generation.responses import ResponseEncoder, Responses, to_batch
from train.models.backbone import Shape, llama_config, shapes_of
from train.models.shared_prefix import Packed, pack
from train.settings import GeneratorConfig, Mode

SHAPE = shapes_of("tiny").generator


@pytest.fixture(scope="module")
def prompts(mined_run: Path) -> RunPrompts:
    return read_prompts(mined_run)


def suggested(prompts: RunPrompts, num: int = 3) -> list[str]:
    vocabulary = prompts.renderer.vocabulary
    path = [vocabulary.decode([i]) for i in range(130, vocabulary.size)]
    words = [t for t in path if t and len(t) > 3 and vocabulary.encode(t) and t.isalpha()]
    return [t for t in words if len(vocabulary.encode(t)) <= 3][:num]


def encoded(prompts: RunPrompts, example: Example, mode: Mode) -> Packed | None:
    return ResponseEncoder(prompts.renderer, prompts.scenarios, mode)(example, random.Random(0))


def suffixes(packed: Packed) -> list[list[int]]:
    pairs = list(zip(packed.input_ids, packed.segment_ids, strict=True))
    return [[i for i, s in pairs if s == n] for n in range(1, packed.segment_ids[-1] + 1)]


def test_each_slot_starts_with_its_token_and_ends_with_eos(prompts: RunPrompts) -> None:
    texts = suggested(prompts)[::-1]
    side = [SideInformation(COOCCURRING, texts[0])]
    packed = encoded(prompts, Example("suggestion", texts[1], side, None, texts), "slots")
    assert packed is not None
    vocabulary = prompts.renderer.vocabulary
    prompt = prompts.renderer.generation_prompt("suggestion", texts[1], side)
    assert packed.input_ids[: len(prompt.ids)] == prompt.ids
    slots = spread(prompts.renderer.slot_ids("suggestion"), len(texts))
    in_order = sorted(texts, key=lambda t: t.encode())
    assert in_order != texts, "the order of the example would not be tested"
    for suffix, slot, text in zip(suffixes(packed), slots, in_order, strict=True):
        assert suffix == [slot, *vocabulary.encode(text), EOS_ID]


def test_auxiliary_text_is_slot_0_and_options_keep_their_slots_without_it(
    prompts: RunPrompts,
) -> None:
    texts = suggested(prompts)
    auxiliary_slot, *slots = prompts.renderer.slot_ids("clarification")
    assert auxiliary_slot == prompts.renderer.vocabulary.control_id(slot_token(0))
    for auxiliary, first in ((texts[2], [auxiliary_slot]), (None, []), ("x" * 200, [])):
        packed = encoded(prompts, Example("clarification", "q", [], auxiliary, texts[:2]), "slots")
        assert packed is not None
        assert [s[0] for s in suffixes(packed)] == [*first, *spread(slots, 2)]


def test_a_list_is_one_sequence_with_separators(prompts: RunPrompts) -> None:
    texts = suggested(prompts)
    vocabulary = prompts.renderer.vocabulary
    packed = encoded(prompts, Example("clarification", "q", [], texts[2], texts[:2]), "list")
    assert packed is not None
    one, two, question = ([*vocabulary.encode(t)] for t in texts)
    assert suffixes(packed) == [
        [vocabulary.control_id(LIST), *question, SEP_ID, *one, SEP_ID, *two, EOS_ID]
    ]
    # A list without its question would teach the model to leave questions out.
    assert encoded(prompts, Example("clarification", "q", [], None, texts[:2]), "list") is None


@pytest.mark.parametrize("mode", ["slots", "list"])
def test_completion_teaches_what_follows_the_healed_prefix(prompts: RunPrompts, mode: Mode) -> None:
    text = suggested(prompts, 1)[0]
    vocabulary = prompts.renderer.vocabulary
    for length in range(1, len(text)):
        example = Example("completion", text[:length], [], None, [text, text])
        packed = encoded(prompts, example, mode)
        assert packed is not None
        prompt = prompts.renderer.generation_prompt("completion", text[:length])
        assert prompt.healed is not None
        body = suffixes(packed)[0][1:-1]
        pieces = [body] if mode == "slots" else [body[: body.index(SEP_ID)]]
        if mode == "list":
            pieces.append(body[body.index(SEP_ID) + 1 :])
        for ids in pieces:
            first, end = prompt.first_token_range
            assert first <= ids[0] < end
            assert completed(vocabulary, prompt.healed, ids) == text


def test_suggestions_too_long_for_the_decoder_are_left_out(prompts: RunPrompts) -> None:
    texts = suggested(prompts)
    long = "zq" * 40
    packed = encoded(prompts, Example("suggestion", "q", [], None, [long, texts[0]]), "slots")
    assert packed is not None
    assert len(suffixes(packed)) == 1
    assert encoded(prompts, Example("suggestion", "q", [], None, [long]), "slots") is None
    longest = max(s.max_new_tokens for s in prompts.scenarios)
    assert all(len(s) - 1 <= longest for s in suffixes(packed))


def test_the_best_suggestions_alone_lie_where_they_lie_among_all(prompts: RunPrompts) -> None:
    texts = suggested(prompts, 4)
    wanted = [texts[2], texts[0]]
    example = Example("suggestion", "q", [], None, [*wanted, texts[3], texts[1]])
    modes: tuple[Mode, ...] = ("slots", "beam", "list")
    for mode in modes:
        every = encoded(prompts, example, mode)
        encoder = ResponseEncoder(prompts.renderer, prompts.scenarios, mode)
        some = encoder(example, random.Random(0), only=wanted)
        assert every is not None
        assert some is not None
        if mode == "list":
            (whole,), (part,) = suffixes(every), suffixes(some)
            assert part == whole[: len(part)]
            assert part.count(SEP_ID) == 2
        else:
            ids = [prompts.renderer.vocabulary.encode(text) for text in wanted]
            kept = [s for s in suffixes(every) if s[1:-1] in ids]
            assert suffixes(some) == kept
            assert len(kept) == 2
        assert encoder(example, random.Random(0), only=["another"]) is None
        assert encoder(example, random.Random(0), only=example.suggestions) == every


def random_packed(count: int, seed: int = 0) -> list[Packed]:
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(130, 512) for _ in range(rng.randrange(least, most))]

    return [
        pack(ids(3, 9), [[5, *ids(1, 5), EOS_ID] for _ in range(rng.randrange(1, 4))])
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def loss() -> ResponseLoss:
    torch.manual_seed(0)
    return ResponseLoss(LlamaForCausalLM(llama_config(SHAPE, 512))).eval()


@torch.inference_mode()
def slow_losses(model: torch.nn.Module, packed: Packed) -> list[float]:
    """One plain forward pass per suffix over prompt + suffix."""
    prompt = [i for i, s in zip(packed.input_ids, packed.segment_ids, strict=True) if s == 0]
    losses: list[float] = []
    for suffix in suffixes(packed):
        logits = model(torch.tensor([prompt + suffix])).logits[0]
        chosen = torch.log_softmax(logits, -1)[len(prompt) : -1]
        losses += (-chosen[range(len(suffix) - 1), suffix[1:]]).tolist()
    return losses


@torch.inference_mode()
def test_the_packed_loss_is_that_of_one_pass_per_slot(loss: ResponseLoss) -> None:
    packed = random_packed(6)
    expected = [value for p in packed for value in slow_losses(loss.model, p)]
    found = float(loss(**to_batch(packed))["loss"])
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@torch.inference_mode()
def test_partners_and_padding_do_not_change_a_loss(loss: ResponseLoss) -> None:
    short, *others = sorted(random_packed(5, seed=3), key=lambda p: len(p.input_ids))
    alone = float(loss(**to_batch([short]))["loss"])
    expected = [sum(slow_losses(loss.model, p)) for p in [short, *others]]
    count = [len(slow_losses(loss.model, p)) for p in [short, *others]]
    together = float(loss(**to_batch([short, *others]))["loss"])
    assert alone * count[0] == pytest.approx(expected[0], rel=1e-5)
    assert together * sum(count) == pytest.approx(sum(expected), rel=1e-5)


def responses(num_sources: int, num_epochs: float, seed: int = 0) -> Responses:
    sources = [Source("suggestion", str(n), (), (), (), None, False) for n in range(num_sources)]

    def make(source: Source, rng: random.Random) -> Packed | None:
        made = random_packed(1, seed=rng.randrange(10**6))[0]
        return None if int(source.query) % 7 == 0 else made

    return Responses(sources, make, batch_size=4, num_epochs=num_epochs, seed=seed)


def test_examples_come_in_a_fixed_order_wherever_one_starts() -> None:
    first = [responses(300, 1.5)[i] for i in range(0, 448, 50)]
    whole = responses(300, 1.5)
    assert len(whole) == 448  # 112.5 batches of 4, rounded
    assert [whole[i] for i in range(0, 448, 50)] == first
    assert [responses(300, 1.5, seed=1)[i] for i in range(3)] != first[:3]


def test_batches_hold_examples_of_similar_length() -> None:
    lengths = [len(p.input_ids) for p in (responses(300, 1)[i] for i in range(128))]
    spread = [max(lengths[i : i + 4]) - min(lengths[i : i + 4]) for i in range(0, 128, 4)]
    assert sum(spread) / len(spread) < 0.2 * (max(lengths) - min(lengths))


def test_an_epoch_takes_each_source_once_where_most_give_nothing() -> None:
    sources = [Source("suggestion", str(n), (), (), (), None, False) for n in range(1280)]

    def make(source: Source, rng: random.Random) -> Packed | None:
        number = int(source.query)
        return pack([number + 1], [[5, EOS_ID]]) if number % 5 == 0 else None

    made = Responses(sources, make, batch_size=4, num_epochs=1, seed=0, share=0.2)
    assert sorted(made[i].input_ids[0] for i in range(len(made))) == list(range(1, 1280, 5))


def test_sources_that_give_nothing_end_with_an_error() -> None:
    source = Source("suggestion", "q", (), (), (), None, False)
    empty = Responses([source], lambda s, r: None, batch_size=2, num_epochs=1, seed=0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        empty[0]
    with pytest.raises(ValueError, match="nothing was mined"):
        Responses([], lambda s, r: None, batch_size=2, num_epochs=1, seed=0)


def trained(run: Path, output: Path, shape: Shape = SHAPE, **changes: object) -> GeneratorMetrics:
    fields = {"mode": "both", "num_epochs": 12, "batch_size": 16, "learning_rate": 5e-3, **changes}
    config = GeneratorConfig(**fields)  # pyright: ignore[reportArgumentType]
    return train_generator(run, config, shape=shape, seed=0, output=output)


def test_training_learns_saves_and_reports(clicked_run: Path, tmp_path: Path) -> None:
    metrics = trained(clicked_run, tmp_path / "generator", num_epochs=1)
    assert metrics.train_loss < 6.5  # log(1024) = 6.9 is chance
    assert set(metrics.valid_loss) >= {"suggestion"}
    assert not metrics.stopped_by_time
    written = msgspec.json.decode((tmp_path / "generator/metrics.json").read_bytes())
    assert written["num_steps"] == metrics.num_steps
    assert not (tmp_path / "generator/checkpoints").exists()
    model = LlamaForCausalLM.from_pretrained(tmp_path / "generator")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.eos_token_id == EOS_ID


def test_the_held_out_loss_is_of_what_held_out_users_wanted(
    clicked_run: Path, tmp_path: Path
) -> None:
    config = GeneratorConfig(mode="slots", num_epochs=0.5, batch_size=16, learning_rate=5e-3)
    metrics = train_generator(clicked_run, config, shape=SHAPE, seed=0, output=tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    prompts = read_prompts(clicked_run)
    maker = example_maker(clicked_run / "mined", config, prompts, max_edges=32)
    sources = read_sources(clicked_run / "mined", maker.config, "valid", 0)
    rng, losses, num_others = random.Random(0), [], 0
    for source in [s for s in sources if s.scenario == "suggestion"][:400]:
        example = maker(source, rng)
        packed = None if example is None else encoded(prompts, example, "slots")
        if packed is None:
            continue
        prompt = [i for i, s in zip(packed.input_ids, packed.segment_ids, strict=True) if s == 0]
        texts = [prompts.renderer.vocabulary.decode(s[1:-1]) for s in suffixes(packed)]
        wanted = [
            s for s, text in zip(suffixes(packed), texts, strict=True) if text in source.wanted
        ]
        num_others += len(texts) - len(wanted)
        if wanted:
            losses += slow_losses(model, pack(prompt, wanted))
    assert num_others, "examples hold nothing but what was wanted"
    assert metrics.valid_loss["suggestion"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_a_time_limit_stops_cleanly_and_says_so(clicked_run: Path, tmp_path: Path) -> None:
    metrics = trained(clicked_run, tmp_path / "generator", num_epochs=500, max_train_s=0.5)
    assert metrics.stopped_by_time
    assert (tmp_path / "generator/model.safetensors").exists()


def test_a_run_without_training_examples_is_refused(mined_run: Path, tmp_path: Path) -> None:
    """Its contexts are all for validation, and no query was searched before."""
    run = shutil.copytree(mined_run, tmp_path / "run")
    queries = pq.read_table(run / "mined/queries.parquet")
    place = queries.schema.get_field_index("num_searches_before_cut")
    none = pa.array([0] * len(queries))
    queries = queries.set_column(place, "num_searches_before_cut", none)
    pq.write_table(queries, run / "mined/queries.parquet")
    with pytest.raises(ValueError, match="nothing was mined"):
        trained(run, tmp_path / "generator")


def warnings_of(run: Path, output: Path, mode: Mode = "slots") -> list[str]:
    lines: list[str] = []
    config = GeneratorConfig(mode=mode, num_epochs=0.01)
    train_generator(run, config, shape=SHAPE, seed=0, output=output, report=lines.append)
    return [line for line in lines if line.startswith("warning: ")]


def test_a_scenario_that_nothing_teaches_is_named(clicked_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(clicked_run, run)
    write_impressions(run, num_requests=200, swap_rate=0.0, scenario="clarification")
    assert warnings_of(run, tmp_path / "suggestion_without_contexts") == [
        "warning: nothing teaches suggestion: no searches that follow one another, and no clicked "
        "panels; leave it out of [[scenarios]] or bring impressions, or it answers nonsense"
    ]
    # One sequence begins with the lead-in, and there is none in these impressions.
    (clarification,) = (
        w for w in warnings_of(run, tmp_path / "list", "list") if "clarification" in w
    )
    assert "no clicked panels with an auxiliary text" in clarification
    (run / "mined/impressions.parquet").unlink()
    (clarification,) = (w for w in warnings_of(run, tmp_path / "bare") if "clarification" in w)
    assert "nothing teaches clarification: no clicked panels; leave it out of" in clarification


def test_a_scenario_whose_texts_do_not_fit_is_named(clicked_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(clicked_run, tmp_path / "run")
    path = run / "mined/scenarios.json"
    scenarios = msgspec.json.decode(path.read_bytes())
    (completion,) = (s for s in scenarios if s["completes_prefix"])
    completion["max_new_tokens"] = 1  # no more than the end
    path.write_bytes(msgspec.json.encode(scenarios))
    (warning,) = (w for w in warnings_of(run, tmp_path / "out") if completion["name"] in w)
    assert warning.startswith(
        "warning: 0% of the texts that would teach completion fit its max_new_tokens (1), and "
    )
    metrics = msgspec.json.decode((tmp_path / "out/metrics.json").read_bytes())
    assert metrics["fitting"]["completion"] == 0
    assert metrics["fitting"]["suggestion"] > 0.9


def test_auxiliary_texts_that_do_not_fit_are_counted(clicked_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(clicked_run, tmp_path / "run")
    write_impressions(run, num_requests=200, swap_rate=0.0, scenario="clarification")
    path = run / "mined/impressions.parquet"
    table = pq.read_table(path)
    taught = table.filter(pc.field("clicked") & (pc.field("split") == "train"))
    ids = taught["request_id"].unique().to_pylist()
    short = {ids[0]: "which one", ids[1]: "what kind"}
    long = "which of these do you mean " * 4
    texts = [short.get(i, f"{long}{i}") for i in table["request_id"].to_pylist()]
    place = table.schema.get_field_index("auxiliary_text")
    pq.write_table(table.set_column(place, "auxiliary_text", pa.array(texts)), path)
    (warning,) = (w for w in warnings_of(run, tmp_path / "out") if "clarification" in w)
    assert warning.startswith(
        f"warning: {len(ids) - 2} of {len(ids)} auxiliary texts that would teach clarification "
        "do not fit its max_auxiliary_tokens (16) and are left out: raise it in [[scenarios]], or "
    )


class Interrupted(Exception):
    """Stands for a kill in the middle of training."""


# Trainer warns where checkpoints follow one another within a second.
@pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")
def test_an_interrupted_training_goes_on_to_the_same_weights(
    clicked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"num_epochs": 0.2, "checkpoint_steps": 4}
    trained(clicked_run, tmp_path / "whole", **changes)
    num_batches = 0

    def interrupting(packed: list[Packed]) -> dict[str, torch.Tensor]:
        nonlocal num_batches
        num_batches += 1
        if num_batches == 11:
            raise Interrupted
        return to_batch(packed)

    with monkeypatch.context() as patched:
        patched.setattr("train.generation.generator.to_batch", interrupting)
        with pytest.raises(Interrupted):
            trained(clicked_run, tmp_path / "parts", **changes)
    assert (tmp_path / "parts/checkpoints/checkpoint-8").exists()
    trained(clicked_run, tmp_path / "parts", **changes)
    whole, parts = (
        LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("whole", "parts")
    )
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, msg=name)
