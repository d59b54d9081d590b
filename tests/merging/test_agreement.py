import pytest
import torch
from torch import Tensor

from merging.agreement import Agreement, refuse_disagreement
from merging.sources import HeldTensor, TensorSource

Tensors = dict[str, Tensor]


def compare(*inputs: Tensors, tied: tuple[bool | None, ...] = ()) -> Agreement:
    labels = [f"model-{index}" for index in range(len(inputs))]
    held: list[dict[str, TensorSource]] = [
        {name: HeldTensor(tensor, label) for name, tensor in tensors.items()}
        for label, tensors in zip(labels, inputs, strict=True)
    ]
    return refuse_disagreement(labels, held, tied)


def model(**more: Tensor) -> Tensors:
    return {"embed_tokens.weight": torch.arange(15.0).reshape(5, 3), "layers.0.w": torch.ones(3, 3), **more}


HEAD = "lm_head.weight"
IDS = "embeddings.position_ids"


def test_equal_models_agree_without_a_note() -> None:
    assert compare(model()) == compare(model(), model(), model()) == Agreement({}, ())


def test_missing_and_extra_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"^model-2: expected the tensors of model-0, got a model that lacks b; .*one"):
        compare(model(b=torch.ones(1)), model(b=torch.ones(1)), model())
    with pytest.raises(ValueError, match=r"model-1: .*adds a, b, c and 2 more"):
        compare(model(), model(**{name: torch.ones(1) for name in "abcde"}))
    with pytest.raises(ValueError, match=r"model-1: .*lacks x and adds y"):
        compare(model(x=torch.ones(1)), model(y=torch.ones(1)))


def test_a_prefix_of_every_name_is_pointed_out() -> None:
    causal = {f"model.{name}": tensor for name, tensor in model().items()}
    with pytest.raises(ValueError, match=r"model-1: .*the names of model-0 begin with 'model\.' besides"):
        compare({**causal, HEAD: torch.ones(5, 3)}, model())
    with pytest.raises(ValueError, match=r"model-1: .*the names of model-1 begin with 'model\.' besides"):
        compare(model(), causal)


def test_a_tied_output_layer_is_left_out_wherever_it_is_stored() -> None:
    storing = model(**{HEAD: model()["embed_tokens.weight"]})
    for inputs in ((storing, model()), (model(), storing), (model(), storing, storing)):
        agreed = compare(*inputs)
        assert set(agreed.left_out) == {HEAD}
        assert agreed.notes == (f"{HEAD} is left out: it equals embed_tokens.weight (tied weights)",)
        for tensors in inputs:
            assert list(agreed.kept({n: HeldTensor(t, "") for n, t in tensors.items()})) == list(model())
    assert compare(storing, storing) == Agreement({}, ()), "stored by all, it is merged like any other"


def test_an_output_layer_of_its_own_is_missed() -> None:
    untied = model(**{HEAD: torch.ones(5, 3)})
    own = r"expected no lm_head\.weight, or one equal to the embeddings, as model-{} has none, got one of its own"
    with pytest.raises(ValueError, match="^model-0: " + own.format(1)):
        compare(untied, model())
    with pytest.raises(ValueError, match="^model-1: " + own.format(0)):
        compare(model(), untied)
    tied = model(**{HEAD: model()["embed_tokens.weight"]})
    with pytest.raises(ValueError, match="^model-2: " + own.format(0)):
        compare(model(), tied, untied)
    with pytest.raises(ValueError, match=r"model-1: .*lacks layers\.0\.w, lm_head\.weight"):
        compare(untied, {"embed_tokens.weight": torch.ones(5, 3)})


def test_the_configuration_of_the_result_decides_whether_a_layer_may_go() -> None:
    tied = model(**{HEAD: model()["embed_tokens.weight"]})
    with pytest.raises(ValueError, match=r"model-1: expected lm_head\.weight as in model-0, .*tie_word_embeddings"):
        compare(tied, model(), tied=(False, True))
    assert HEAD in compare(tied, model(), tied=(True, False)).left_out
    assert HEAD in compare(tied, model(), tied=(None, None)).left_out
    assert HEAD in compare(model(), tied, tied=(False, False)).left_out, "the first has no head at all"


def test_positions_that_only_old_files_store_are_left_out() -> None:
    old = model(**{IDS: torch.arange(4).reshape(1, 4)})
    for inputs in ((old, model()), (model(), old)):
        assert set(compare(*inputs).left_out) == {IDS}
    with pytest.raises(ValueError, match=r"lacks embeddings\.position_ids"):
        compare(model(**{IDS: torch.arange(4).reshape(1, 4) + 1}), model())


def test_shapes_are_compared() -> None:
    with pytest.raises(ValueError, match=r"model-1: tensor layers\.0\.w: expected shape \[3, 3\] as in model-0, got "):
        compare(model(), model() | {"layers.0.w": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"model-2: tensor layers\.0\.w: expected shape \[3, 3\]"):
        compare(model(), model(), model() | {"layers.0.w": torch.ones(9)})


def test_vocabulary_sizes_are_named_as_such() -> None:
    with pytest.raises(
        ValueError,
        match=r"model-1: tensor embed_tokens\.weight: expected a vocabulary of 5 tokens as in model-0, got 7; .*resize",
    ):
        compare(model(), model() | {"embed_tokens.weight": torch.ones(7, 3)})
    with pytest.raises(ValueError, match=r"embed_tokens\.weight: expected shape \[5, 3\]"):
        compare(model(), model() | {"embed_tokens.weight": torch.ones(7, 4)})


def test_floating_point_dtypes_may_differ_with_a_note() -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in model().items()}
    assert compare(model(), half).notes == ("2 tensors are bfloat16 in model-1 and float32 in model-0; "
                                            "the result is float32",)  # fmt: skip
    assert compare(half, half) == Agreement({}, ())
    mixed = half | {"layers.0.w": torch.ones(3, 3, dtype=torch.float16)}
    assert compare(half, model(), mixed).notes == (
        "2 tensors are float32 in model-1 and bfloat16 in model-0; the result is bfloat16",
        "1 tensors are float16 in model-2 and bfloat16 in model-0; the result is bfloat16",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [(torch.float32, torch.int64), (torch.int32, torch.int64), (torch.bool, torch.uint8), (torch.int8, torch.float16)],
)
def test_integers_must_have_one_dtype(one: torch.dtype, other: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"model-1: tensor b: expected {one} as in model-0, got {other}"):
        compare(model(b=torch.ones(2, dtype=one)), model(b=torch.ones(2, dtype=other)))


@pytest.mark.parametrize("position", [0, 1])
def test_quantised_weights_are_refused_in_any_input(position: int) -> None:
    inputs = [model(), model()]
    inputs[position]["layers.0.w"] = torch.ones(3, 3).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=rf"model-{position}: tensor layers\.0\.w: .*float8_e4m3fn, which is quantise"):
        compare(*inputs)
