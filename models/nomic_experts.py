"""The mixture of experts of NomicBert: a router sends each token to a few of the experts' MLPs.

Nussbaum and Duderstadt (2025), Training Sparse Mixture of Experts Text Embedding Models, arXiv:2502.07972.

Dimension names: n texts, t tokens, m tokens of all texts (n * t), d hidden size, f width of an MLP, e experts,
s experts that a token is sent to.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.nomic_config import NomicMoeConfig


class NomicRouter(nn.Module):
    """Softmax over all experts, of which the largest few are taken as they are: their sum is below 1."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.top_k = config.moe_top_k
        self.layer = nn.Linear(config.n_embd, config.num_experts, bias=False)

    def forward(self, states: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "m s"], Int[Tensor, "m s"]]:
        weights, chosen = self.layer(states).softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        return weights.to(states.dtype), chosen


class NomicExpertMLP(nn.Module):
    """All experts in two matrices, expert after expert; the rows of both are hidden units, so only w1 is transposed.

    LoRA goes on the matrices as a whole: its A is shared by the experts of w1, its B tells them apart.
    """

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.shape = (config.num_experts, config.n_inner, config.n_embd)
        self.w1 = nn.Parameter(torch.empty(config.num_experts * config.n_inner, config.n_embd))
        self.w2 = nn.Parameter(torch.empty(config.num_experts * config.n_inner, config.n_embd))

    def forward(
        self, states: Float[Tensor, "m d"], weights: Float[Tensor, "m s"], chosen: Int[Tensor, "m s"]
    ) -> Float[Tensor, "m d"]:
        # Read once: under an adapter each reading adds its update anew.
        w1: Float[Tensor, "e f d"] = self.w1.view(self.shape)
        w2: Float[Tensor, "e f d"] = self.w2.view(self.shape)
        mixed = torch.zeros_like(states)
        for expert in range(len(w1)):
            token, place = torch.where(chosen == expert)
            out = F.gelu(states[token] @ w1[expert].T) @ w2[expert] * weights[token, place, None]
            mixed.index_add_(0, token, out.to(mixed.dtype))
        return mixed


class NomicExperts(nn.Module):
    """The weighted sum of the chosen experts, and one bias for all, which is not weighted."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.mlp = NomicExpertMLP(config)
        self.bias = nn.Parameter(torch.zeros(config.n_embd))

    def forward(
        self, states: Float[Tensor, "m d"], weights: Float[Tensor, "m s"], chosen: Int[Tensor, "m s"]
    ) -> Float[Tensor, "m d"]:
        return self.mlp(states, weights, chosen) + self.bias


class NomicMixture(nn.Module):
    """A router and its experts, in the place of an MLP."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.router = NomicRouter(config)
        self.experts = NomicExperts(config)

    def forward(self, states: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        tokens: Float[Tensor, "m d"] = states.flatten(0, 1)
        return self.experts(tokens, *self.router(tokens)).view_as(states)
