"""CandidatePrefix: candidates of one search share the states below the lowest block in which any of them is not the base."""

from collections.abc import Mapping, Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from lightning_app.places import Places
from merging.sources import as_matrix
from models.adapter import transformer_of
from models.lora import block_stack
from models.prefix_cache import PrefixCache
from models.prefix_store import MemoryStore


class CandidatePrefix:
    """Keeps a cache on the embedder that fits every candidate so far; without one where they differ from the first block on.

    Args:
        embedder: With the base's weights; it will be given those of one candidate after another.
        places: Of its weights in a candidate.
        texts: A few, to prove the cache on.
    """

    def __init__(self, embedder: SentenceTransformer, places: Places, texts: Sequence[str]) -> None:
        self._embedder, self._places, self._texts = embedder, places, list(texts)
        model = transformer_of(embedder)
        _, stack = block_stack(model)
        self.layer = len(stack)
        """Below it all candidates were the base; the number of blocks: they were the base; 0: nowhere."""
        self._depth = len(stack)
        self._cache: PrefixCache | None = None
        blocks = {id(each): number for number, block in enumerate(stack) for each in block.parameters()}
        self._blocks = {id(each): blocks.get(id(each), 0) for each in model.parameters()}
        self._outside = {id(each) for each in model.parameters()} - blocks.keys()

    def suit(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the cache one that suits this candidate too; to be called before its weights are written."""
        lowest = self._lowest(tensors)
        if lowest == self.layer:
            return
        if self._cache is not None:
            self._cache.remove()
            self._cache = None
        self.layer = lowest
        if lowest in (0, self._depth):
            return
        cache = PrefixCache(self._embedder, self.layer, MemoryStore())
        try:
            cache.prove(self._texts)
        except ValueError:
            self.layer = 0
            return
        cache.install()
        self._cache = cache

    def _lowest(self, tensors: Mapping[str, Tensor]) -> int:
        """The lowest block, of those that were the base's so far, with a weight that is not the candidate's."""
        found = self.layer
        for weight, view in self._places.weights:
            block = self._blocks.get(id(weight), found)
            if block >= found and id(weight) not in self._outside:
                continue
            tensor, shape = tensors.get(view.name), self._places.shapes[view.name]
            if tensor is None or tuple(tensor.shape) != shape or found == 0:
                continue  # what does not fit is refused, by name, where it is written
            rows = tensor.reshape(as_matrix(shape))[view.start : view.stop].reshape(weight.shape)
            if not torch.equal(rows.to(weight.device, weight.dtype), weight):
                found = block
        return found
