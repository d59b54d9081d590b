"""Settings of the commands as keywords of load_embedder."""

import inspect

import pytest
import torch

from lightning_app.config import EvaluateConfig, LoraConfig, TrainConfig
from lightning_app.loading import loading_options, pinned
from models.embedder import load_embedder

KNOWN = set(inspect.signature(load_embedder).parameters)


def test_of_training():
    config = TrainConfig(
        backbone="owner/name@0123abc",
        lora=LoraConfig(quantization="nf4"),
        bidirectional=True,
        dtype="bfloat16",
        seed=3,
        cache="elsewhere",
        offline=True,
        trust_remote_code=True,
        pickled_weights=True,
    )
    assert loading_options(config) == {
        "revision": "0123abc",
        "cache": "elsewhere",
        "offline": True,
        "dtype": torch.bfloat16,
        "quantization": "nf4",
        "bidirectional": True,
        "seed": 3,
        "trust_remote_code": True,
        "pickled_weights": True,
    }
    assert loading_options(config).keys() <= KNOWN


def test_of_evaluating():
    found = loading_options(EvaluateConfig(models=("tiny-llm",), device_map="auto", truncate_dim=64, dtype="float16"))
    assert found["device_map"] == "auto"
    assert found["truncate_dim"] == 64
    assert found["dtype"] == torch.float16
    assert found.keys() <= KNOWN


@pytest.mark.parametrize("config", [TrainConfig(), EvaluateConfig(models=("tiny-llm",))])
def test_a_precision_that_is_not_asked_for_is_the_stored_one(config):
    assert loading_options(config)["dtype"] is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/na.me@main", ("owner/na.me", "main")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("owner/name", ("owner/name", None)),
        ("e5-mistral", ("e5-mistral", None)),
        ("./here/there@home", ("./here/there@home", None)),
        ("/abs/there@home", ("/abs/there@home", None)),
        ("owner/name@", ("owner/name@", None)),
    ],
)
def test_a_revision_stands_behind_the_name(name, expected):
    assert pinned(name) == expected
