"""ContrastiveEmbedder: what it trains, what it stores, and that a step's randomness is its own."""

import pytest
import torch

from lightning_app.module import ContrastiveEmbedder
from lightning_app.step_seed import hash_seed
from models.embedder import load_embedder
from models.lora import add_lora


@pytest.fixture
def module(tiny_folder):
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=4, alpha=8, targets=["q_proj"])
    return ContrastiveEmbedder(embedder, learning_rate=1e-2, total_steps=20, warmup_steps=4)


def test_forward_of_a_collated_batch_is_what_encode_says(module):
    texts = ["1, 2, 3", "10, 20", "7, 14, 21, 28"]
    batch = module.collate([(text, i) for i, text in enumerate(texts)])
    assert batch.targets[:, 0].tolist() == [0, 1, 2]
    module.eval()
    with torch.no_grad():
        embeddings = torch.cat([module(part) for part in batch.parts])[batch.order]
        torch.testing.assert_close(embeddings, module.encode(texts), atol=1e-6, rtol=0)


def test_the_models_default_prompt_is_trained_with(module):
    module.embedder.prompts = {"query": "q: "}
    module.embedder.default_prompt_name = "query"
    (features,) = module.collate([("1, 2", 0)]).parts
    plain = module.embedder.preprocess(["q: 1, 2"])
    assert torch.equal(features["input_ids"], plain["input_ids"])
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(features), module.encode(["1, 2"]), atol=1e-6, rtol=0)


def test_state_is_the_adapter_alone_and_is_loaded_strictly(module):
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert state
    assert all("lora_" in name for name in state)
    module.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert all(torch.equal(module.state_dict()[name], tensor + 1) for name, tensor in state.items())
    first = min(state)
    with pytest.raises(ValueError, match=f"first that differs: {first}"):
        module.load_state_dict({name: tensor for name, tensor in state.items() if name != first})
    with pytest.raises(ValueError, match="first that differs: another"):
        module.load_state_dict(state | {"another": torch.zeros(1)})


def test_the_rate_rises_then_falls_to_a_tenth(module):
    settings = module.configure_optimizers()
    optimizer, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0.001)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters() if p.requires_grad}


def test_seeds_differ_by_step_and_rank_and_are_the_same_everywhere():
    seeds = {hash_seed(0, step, rank) for step in range(200) for rank in range(8)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert hash_seed(0, 1, 2) == hash_seed(0, 1, 2) != hash_seed(0, 2, 1)
