import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from train.models.shared_prefix import IGNORED_LABEL, block_mask, collate, next_token_labels, pack

PREFIXES = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
SUFFIXES = [[[20, 21], [22], [23, 24, 25]], [[26, 27, 28, 29]], [[30], [31, 32]]]


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # large weights: a leak between suffixes would be visible
    )
    return LlamaModel(config).eval()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_pass_equals_one_pass_per_suffix(model: LlamaModel, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    batch = collate([pack(p, s) for p, s in zip(PREFIXES, SUFFIXES, strict=True)])
    packed_BLD = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
    ).last_hidden_state
    for row, (prefix, suffixes) in enumerate(zip(PREFIXES, SUFFIXES, strict=True)):
        for number, suffix in enumerate(suffixes):
            alone_LD = model(torch.tensor([prefix + suffix])).last_hidden_state[0]
            selected = batch.segment_ids[row] == number + 1
            torch.testing.assert_close(
                packed_BLD[row, selected], alone_LD[len(prefix) :], atol=1e-5, rtol=1e-4
            )
            last_D = packed_BLD[row, batch.last_indices[row, number]]
            torch.testing.assert_close(last_D, alone_LD[-1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_and_neighbours_change_nothing_and_give_no_nan(model: LlamaModel) -> None:
    single = collate([pack(PREFIXES[0], SUFFIXES[0])])
    padded = collate([pack(PREFIXES[0], SUFFIXES[0]), pack([1], [[2]])], multiple_of=16)
    outputs = [
        model(
            input_ids=b.input_ids, attention_mask=b.attention_mask, position_ids=b.position_ids
        ).last_hidden_state
        for b in (single, padded)
    ]
    assert padded.input_ids.shape == (2, 16)
    assert torch.isfinite(outputs[1]).all()
    torch.testing.assert_close(outputs[0][0], outputs[1][0, : outputs[0].shape[1]])


def test_mask_by_hand() -> None:
    mask_LL = block_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    assert (mask_LL == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_missing_suffixes_are_masked() -> None:
    batch = collate([pack([1, 2], [[3], [4, 5]]), pack([1], [[6]]), pack([1], [])])
    assert batch.last_indices.tolist() == [[2, 4], [1, 0], [0, 0]]
    assert batch.suffix_mask.tolist() == [[True, True], [True, False], [False, False]]


def test_labels_are_the_next_token_of_the_same_suffix_only() -> None:
    batch = collate([pack([1, 2], [[3, 4, 5], [6, 7]]), pack([1], [[8, 9]])])
    no = IGNORED_LABEL
    assert next_token_labels(batch).tolist() == [
        [no, no, 4, 5, no, 7, no],
        [no, 9, no, no, no, no, no],
    ]


def test_positions_go_on_from_the_prefix() -> None:
    assert pack([1, 2, 3], [[4, 5], [6]]).position_ids == [0, 1, 2, 3, 4, 3]


def test_empty_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        pack([], [[1]])
    with pytest.raises(ValueError, match="suffix 1"):
        pack([1], [[2], []])
