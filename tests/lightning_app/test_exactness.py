"""However a batch is cut, kept, spread or computed again: the loss and the gradients of one padded batch on one rank."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_app.module import ContrastiveEmbedder
from models.export import save_embedder
from models.prefix_cache import PrefixCache
from models.prefix_store import MemoryStore
from models.tiny_llm import build_tiny_llm
from tests.lightning_app.one_step import assert_alike, build_module, some_weights, steps

WAYS = {
    "padded": {"batching": "padded"},
    "packed": {"batching": "packed"},
    "packed, budget": {"batching": "packed", "token_budget": 60},
    "sorted": {},
    "budget": {"token_budget": 64},
    "blocks": {"checkpointing": True},
    "budget and blocks": {"token_budget": 64, "checkpointing": True},
    "sharp": {"temperature": 0.05, "token_budget": 64},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """As wide as a block of 4-bit weights."""
    folder = tmp_path_factory.mktemp("models") / "base"
    return save_embedder(build_tiny_llm(hidden_size=64, layers=2, heads=2, intermediate_size=128, seed=1), folder)


@pytest.fixture(scope="module")
def weights(base):
    return some_weights(build_module(base))


@pytest.fixture(scope="module")
def padded(base, weights, tmp_path_factory):
    """``padded(**how)``: one padded batch on one rank."""
    kept = {}

    def run(**how):
        key = str(how)
        if key not in kept:
            module = build_module(base, batching="padded", **how)
            kept[key] = steps(module, tmp_path_factory.mktemp("padded") / "one", weights)
        return kept[key]

    return run


@pytest.mark.parametrize("way", WAYS)
def test_one_rank_and_two_say_what_one_padded_batch_says(way, base, weights, padded, tmp_path):
    how = WAYS[way]
    expected = padded(**{name: how[name] for name in how if name == "temperature"})
    for devices in (1, 2):
        module = build_module(base, **how)
        found = steps(module, tmp_path / str(devices), weights, devices=devices)
        assert_alike(
            found, expected, atol=1e-5 if devices == 2 or way in ("sharp", "packed", "packed, budget") else 1e-6
        )


def test_a_base_in_four_bits_too(base, weights, tmp_path, padded):
    expected = padded(quantization="nf4")
    for devices in (1, 2):
        module = build_module(base, quantization="nf4", token_budget=64)
        assert_alike(steps(module, tmp_path / str(devices), weights, devices=devices), expected, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"token_budget": 64, "checkpointing": True}])
def test_states_below_the_adapted_block_that_are_kept_too(how, base, tmp_path):
    module = build_module(base, adapt_top=1, batching="padded")
    weights = some_weights(module)
    expected = steps(module, tmp_path / "padded", weights)
    for devices in (1, 2):
        module, store = build_module(base, adapt_top=1, **how), MemoryStore()
        with PrefixCache(module.embedder, 1, store).installed():
            found = steps(module, tmp_path / str(devices), weights, devices=devices)
        assert_alike(found, expected, atol=1e-5)
        assert devices == 2 or len(store) > 0  # ranks are forks, whose memory is their own


@pytest.mark.parametrize("how", [{}, {"token_budget": 64}, {"token_budget": 64, "checkpointing": True}])
def test_weights_spread_over_two_ranks_too(how, base, weights, tmp_path, padded):
    module = build_module(base, **how)
    found = steps(module, tmp_path / "two", weights, devices=2, strategy="fsdp")
    assert_alike(found, padded(), atol=1e-5)


def test_bf16_mixed_keeps_the_adapter_and_the_loss_in_float32(base, weights, tmp_path, padded):
    module = build_module(base)
    found = steps(module, tmp_path / "mixed", weights, precision="bf16-mixed")
    for ours, theirs in zip(found, padded(), strict=True):
        assert {each.dtype for each in ours.values()} == {torch.float32}
        torch.testing.assert_close(ours["loss"], theirs["loss"], atol=1e-2, rtol=0)
        assert not torch.equal(ours["loss"], theirs["loss"])
    assert {each.dtype for each in module.parameters() if each.requires_grad} == {torch.float32}


def test_processes_that_make_batches_ready_read_nothing_and_copy_no_weights(base, weights, tmp_path, monkeypatch):
    here = steps(build_module(base), tmp_path / "0", weights)
    module = build_module(base)

    def refuse(*_, **__):
        raise AssertionError("a text was tokenised after the fork, or the module pickled")

    monkeypatch.setattr(module.rows, "_preprocess", refuse)
    monkeypatch.setattr(ContrastiveEmbedder, "__reduce_ex__", refuse)
    for ours, theirs in zip(steps(module, tmp_path / "2", weights, num_workers=2), here, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class NoHostRead(TorchDispatchMode):
    """Fails on what makes the host wait for the device: values, and shapes that depend on values."""

    paused = False
    """In the model, as transformers looks whether anything is padded: one wait a pass that is not ours to leave out. And in the
    loss, which looks at its labels where that costs nothing: on the CPU."""
    waits = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        masks = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if not NoHostRead.paused and (name in self.waits or masks):
            raise AssertionError(f"{name}: the host waits for the device")
        return func(*args, **(kwargs or {}))


class Watched(ContrastiveEmbedder):
    """Its step reads nothing from the device, from the batch to the gradients' norm."""

    seen = 0

    def training_step(self, batch, batch_idx):
        with NoHostRead():
            return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        with NoHostRead():
            super().on_before_optimizer_step(optimizer)
        Watched.seen += 1


def test_the_watch_sees_a_host_that_waits():
    ones = torch.ones(2)
    for wait in (lambda: ones[0].item(), lambda: bool(ones.any()), lambda: ones[ones > 0], lambda: ones.nonzero()):
        with pytest.raises(AssertionError, match="the host waits"), NoHostRead():
            wait()


@pytest.mark.parametrize("how", [{}, {"token_budget": 64}])
def test_no_step_waits_for_the_device(how, base, weights, tmp_path, monkeypatch):
    before = Watched.seen
    module = build_module(base, kind=Watched, **how)
    monkeypatch.setattr(NoHostRead, "paused", False)
    loss = module.objective

    def paused(*batch):
        NoHostRead.paused = True
        found = loss(*batch)
        NoHostRead.paused = False
        return found

    module.objective = paused
    module.embedder.register_forward_pre_hook(lambda *_: setattr(NoHostRead, "paused", True))
    module.embedder.register_forward_hook(lambda *_: setattr(NoHostRead, "paused", False))
    steps(module, tmp_path / "watched", weights)
    assert Watched.seen == before + len(weights)


def test_the_loss_takes_tensors_without_values(base, monkeypatch):
    """On the meta device, which is not the CPU, every read is an error."""
    module = build_module(base)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # that it does not know
    embeddings = torch.empty(8, 4, device="meta", requires_grad=True)
    targets = torch.empty(8, 3, dtype=torch.long, device="meta")
    module.objective(embeddings, targets).backward()
    assert embeddings.grad.shape == (8, 4)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        bool(embeddings.any())
