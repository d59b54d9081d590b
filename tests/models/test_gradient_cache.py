"""GradCache in one graph, against its two passes as the paper has them, and what it holds at its fullest."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.embedder import load_embedder
from models.gradient_cache import embed_parts
from models.lora import add_lora
from models.losses import supervised_contrastive_loss

LABELS = torch.tensor([0, 1] * 6)


@pytest.fixture
def embedder(tiny_folder):
    torch.manual_seed(0)
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=4, alpha=8, dropout=0.3, targets=["q_proj", "v_proj", "down_proj"])
    for name, weight in embedder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return embedder.train()


def parts_of(embedder, *sizes):
    texts, parts = [", ".join(str(n * k + 1) for k in range(2 + n)) for n in range(sum(sizes))], []
    for size in sizes:
        parts.append(dict(embedder.preprocess(texts[:size])))
        texts = texts[size:]
    return parts


def trainable(embedder):
    return {name: weight for name, weight in embedder.named_parameters() if weight.requires_grad}


def in_two_passes(embedder, parts, loss_of):
    """Gao et al. (2021), section 3.2: embed without a graph, the loss's gradient of each embedding, embed again with it."""
    states, rows = [], []
    with torch.no_grad():
        for part in parts:
            states.append(torch.get_rng_state())
            rows.append(embedder(dict(part))["sentence_embedding"])
    cached = torch.cat(rows).requires_grad_()
    loss = loss_of(cached)
    loss.backward()
    slices = cached.grad.split([len(each) for each in rows])
    gradients = {name: torch.zeros_like(weight) for name, weight in trainable(embedder).items()}
    for part, state, upstream in zip(parts, states, slices, strict=True):
        torch.set_rng_state(state)
        surrogate = (embedder(dict(part))["sentence_embedding"] * upstream).sum()
        own = torch.autograd.grad(surrogate, list(trainable(embedder).values()))
        for name, gradient in zip(gradients, own, strict=True):
            gradients[name] += gradient
    return loss.detach(), gradients


def loss_of(embeddings):
    return supervised_contrastive_loss(embeddings, LABELS)


def by_us(embedder, parts, *, recompute):
    embedder.zero_grad()
    loss = loss_of(embed_parts(embedder, parts, recompute=recompute))
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in trainable(embedder).items()}


@pytest.mark.parametrize("recompute", [True, False])
def test_loss_and_gradients_are_those_of_the_papers_two_passes(embedder, recompute):
    parts = parts_of(embedder, 4, 3, 4, 1)
    torch.manual_seed(5)
    expected_loss, expected = in_two_passes(embedder, parts, loss_of)
    torch.manual_seed(5)
    loss, found = by_us(embedder, parts, recompute=recompute)
    assert torch.equal(loss, expected_loss)
    assert max(each.abs().max() for each in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)
    other, _ = by_us(embedder, parts, recompute=recompute)
    assert not torch.equal(other, loss), "without dropout the random numbers would not matter"


def test_computed_again_is_bit_equal_to_kept(embedder):
    parts = parts_of(embedder, 6, 6)
    found = []
    for recompute in (True, False):
        torch.manual_seed(5)
        found.append(by_us(embedder, parts, recompute=recompute))
    (loss, gradients), (plain_loss, plain) = found
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)


class Held(TorchDispatchMode):
    """Bytes of all tensors alive at once that were made inside."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and (storage := each.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def free(self, size):
        self.now -= size


def test_what_is_held_is_one_part_s(embedder):
    def most(parts, recompute):
        with Held() as held:
            by_us(embedder, parts, recompute=recompute)
        return held.most

    part = parts_of(embedder, 12)[0]
    many = [
        {key: value[at : at + 2] if isinstance(value, torch.Tensor) else value for key, value in part.items()}
        for at in range(0, 12, 2)
    ]
    kept, again = most(many, False), most(many, True)
    assert again < 0.4 * kept, (again, kept)
    assert again < 0.4 * most([part], False)
