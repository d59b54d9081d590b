import json

import pytest
import torch
from torch import Tensor

from merging.sources import HeldTensor, TensorSource, open_model
from merging.tied import is_output_layer, is_vocabulary, says_tied, why_implied
from tests.merging.conftest import MakeModel


def held(tensors: dict[str, Tensor]) -> dict[str, TensorSource]:
    return {name: HeldTensor(tensor, "a") for name, tensor in tensors.items()}


EMBEDDING = torch.randn(5000, 3)
CHANGED_AT_THE_END = EMBEDDING + torch.nn.functional.pad(torch.full((1, 3), 1e-3), (0, 0, 4999, 0))


@pytest.mark.parametrize(
    ("output", "embedding"),
    [
        ("lm_head.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "embed_tokens.weight"),
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("0_Transformer/lm_head.weight", "0_Transformer/wte.weight"),
    ],
)
def test_an_output_layer_equal_to_the_embeddings_is_tied(output: str, embedding: str) -> None:
    assert is_output_layer(output)
    assert is_vocabulary(output)
    assert is_vocabulary(embedding)
    assert why_implied(output, held({embedding: EMBEDDING, output: EMBEDDING.clone()})) == (
        f"it equals {embedding} (tied weights)"
    )
    assert why_implied(output, held({embedding: EMBEDDING, output: CHANGED_AT_THE_END})) is None
    assert why_implied(output, held({embedding: EMBEDDING, output: EMBEDDING.double()})) is None
    assert why_implied(output, held({embedding: EMBEDDING, output: EMBEDDING[:-1]})) is None
    assert why_implied(output, held({output: EMBEDDING})) is None


def test_other_layers_are_not_tied_however_equal() -> None:
    tensors = held({"embed_tokens.weight": EMBEDDING, "mlp.weight": EMBEDDING, "my_lm_head.weight": EMBEDDING})
    assert [why_implied(name, tensors) for name in tensors] == [None] * 3


@pytest.mark.parametrize(
    ("values", "implied"),
    [
        (torch.arange(8), True),
        (torch.arange(8).reshape(1, 8), True),
        (torch.arange(8, dtype=torch.int32), True),
        (torch.arange(8) + 2, False),
        (torch.arange(8).reshape(2, 4), False),
        (torch.arange(8.0), False),
        (torch.tensor(0), False),
    ],
)
def test_positions_that_count_up_are_implied(values: Tensor, implied: bool) -> None:
    found = why_implied("embeddings.position_ids", held({"embeddings.position_ids": values}))
    assert (found is not None) == implied
    assert why_implied("ids", held({"ids": values})) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"tie_word_embeddings": True}, True), ({"tie_word_embeddings": False}, False), ({}, None), ([], None)],
)
def test_what_the_configuration_says(make_model: MakeModel, config: object, expected: bool | None) -> None:
    folder = make_model("a", {"w": torch.ones(1)}, sub="0_T")
    (folder / "0_T" / "config.json").write_text(json.dumps(config))
    assert says_tied(open_model(folder)) is expected
    (folder / "0_T" / "config.json").unlink()
    assert says_tied(open_model(folder)) is None
