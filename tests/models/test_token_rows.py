"""Rows padded together, against the embedder's own ``preprocess`` of the texts together, for every kind of model."""

import pytest
import torch

from models.embedder import load_embedder
from models.token_rows import TokenRows
from tests.models.hub_folders import NAMES, write_hub_folder

TEXTS = ["1, 2, 3", "7", "2, 4, 8, 16, 32, 64", "1, 2, 3"]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[key].dtype == value.dtype, key
            assert torch.equal(ours[key], value), key
        else:
            assert ours[key] == value, key


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_s_features_are_its_own(name, tmp_path):
    write_hub_folder(tmp_path, name)
    embedder = load_embedder(name, cache=tmp_path, offline=True)
    pooling = next(each for each in embedder if hasattr(each, "include_prompt"))
    for prompt, included in ((None, True), ("a query: ", True), ("a query: ", False)):
        pooling.include_prompt = included
        rows = TokenRows(embedder, prompt=prompt)
        together = embedder.preprocess(TEXTS, prompt=prompt)
        padded = rows.padded([rows.row(text) for text in TEXTS])
        assert_same(padded, together)
        assert {"input_ids", "attention_mask"} <= padded.keys()
        with torch.no_grad():
            found, expected = (embedder(dict(each))["sentence_embedding"] for each in (padded, together))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_either_side_is_padded(side, tiny_folder):
    embedder = load_embedder(tiny_folder)
    embedder.tokenizer.padding_side = side
    rows = TokenRows(embedder)
    padded = rows.padded([rows.row(text) for text in TEXTS])
    assert_same(padded, embedder.preprocess(TEXTS))
    assert bool(padded["attention_mask"][1, 0]) == (side == "right")


def test_a_text_is_read_once(tiny_folder):
    embedder = load_embedder(tiny_folder)
    read, preprocess = [], embedder.preprocess
    embedder.preprocess = lambda texts, **how: read.extend(texts) or preprocess(texts, **how)
    rows = TokenRows(embedder)
    rows.add(TEXTS)
    rows.padded([rows.row(text) for text in TEXTS])
    assert sorted(read) == sorted(set(TEXTS))


def test_the_longest_come_last_and_again_where_there_are_too_few(tiny_folder):
    rows = TokenRows(load_embedder(tiny_folder))
    rows.add(TEXTS)
    lengths = {text: len(rows.row(text)["input_ids"]) for text in TEXTS}
    assert [len(row["input_ids"]) for row in rows.longest(2)] == sorted(lengths.values())[-2:]
    assert [len(row["input_ids"]) for row in rows.longest(4)] == [max(lengths.values()), *sorted(lengths.values())]
