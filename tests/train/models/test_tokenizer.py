import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from engine.formats.text import normalise
from engine.formats.vocabulary import FIRST_TEXT_ID, Vocabulary, scenario_token
from train.models.tokenizer import arrange, train_tokenizer

SYLLABLES = ["lap", "top", "gam", "ing", "char", "ger", "cof", "fee", "grin", "der", "shoe", "run"]
WORDS = [a + b for a in SYLLABLES for b in SYLLABLES]
TEXTS = [f"{a} {b}" for a, b in zip(WORDS, WORDS[::-1], strict=True)]
TEXTS += [f"{a} pro" for a in WORDS] + ["卵 レシピ", "größe", "emoji 🎉"]


def trained(size: int = 512, texts: list[str] = TEXTS) -> Vocabulary:
    counts = [1 + i % 7 for i in range(len(texts))]
    return train_tokenizer(texts, counts, size=size, scenarios=["suggestion"], kinds=["session"])


def test_the_size_is_the_largest_multiple_of_128_that_the_text_gives() -> None:
    assert trained(512).size == 512
    size = trained(6144).size
    assert size % 128 == 0
    assert 512 <= size < 6144


def test_all_bytes_have_a_token_and_any_text_survives() -> None:
    vocabulary = trained()
    assert all(vocabulary.id_of_bytes(bytes([b])) >= FIRST_TEXT_ID for b in range(256))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.text(max_size=20).map(normalise))
    def check(text: str) -> None:
        ids = vocabulary.encode(text)
        assert vocabulary.bytes_of(ids) == b" " + text.encode("utf-8", "surrogatepass")
        assert all(i >= FIRST_TEXT_ID for i in ids)

    check()


def test_text_that_looks_like_a_control_token_stays_text() -> None:
    vocabulary = trained()
    token = scenario_token("suggestion")
    assert vocabulary.control_id(token) not in vocabulary.encode(f"<|pad|>{token}<|eos|>")
    assert vocabulary.decode(vocabulary.encode(token)) == token


def test_training_is_deterministic(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("tokenizers")
    for name in "ab":
        trained().save(directory / name)
    assert (directory / "a").read_bytes() == (directory / "b").read_bytes()


def test_a_saved_vocabulary_loads_and_encodes_alike(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    vocabulary = trained()
    vocabulary.save(path)
    assert Vocabulary.load(path).encode_batch(TEXTS) == vocabulary.encode_batch(TEXTS)


@pytest.mark.parametrize("size", [500, 384, 0])
def test_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}"):
        trained(size)


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 distinct texts"):
        trained(512, ["a"])


def foreign_tokenizer(num_text: int = 382) -> Tokenizer:
    """A byte-level BPE tokenizer as checkpoints have them: specials first, ids by merge order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2 + num_text,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((" " + t for t in TEXTS), trainer)
    return tokenizer


def test_a_foreign_tokenizer_keeps_its_segmentation_under_new_ids() -> None:
    foreign = foreign_tokenizer()
    layout = arrange(foreign, size=512, scenarios=["suggestion"], kinds=[])
    assert layout.vocabulary.size == 512 == len(layout.old_ids)
    assert set(layout.old_ids[FIRST_TEXT_ID:]) == set(range(2, 384))
    for text in TEXTS:
        new = layout.vocabulary.encode(text)
        old = foreign.encode(" " + text, add_special_tokens=False).ids
        assert [layout.old_ids[i] for i in new] == old


def test_cutting_a_vocabulary_drops_its_last_merges_only() -> None:
    layout = arrange(foreign_tokenizer(400), size=512, scenarios=[], kinds=[])
    assert {i for i in layout.old_ids if i is not None} == set(range(2, 384))
    for text in TEXTS:
        assert layout.vocabulary.decode(layout.vocabulary.encode(text)) == text


def test_other_kinds_of_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match="only byte-level BPE"):
        arrange(Tokenizer(models.WordPiece()), size=512, scenarios=[], kinds=[])
    with pytest.raises(ValueError, match="text tokens"):
        arrange(foreign_tokenizer(), size=640, scenarios=[], kinds=[])
