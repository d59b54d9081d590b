"""What the settings of a command say of how its model is loaded."""

from typing import Any

import torch

from lightning_app.config import EvaluateConfig, TrainConfig
from models.revision import split_revision


def loading_options(config: TrainConfig | EvaluateConfig) -> dict[str, Any]:
    """Keywords of ``load_embedder``.

    Args:
        config: Of training (with the seed, the quantisation and the mask) or of evaluating (with the devices and the
            dimension to cut to).

    Example:
        >>> loading_options(TrainConfig(dtype="bfloat16"))["dtype"]
        torch.bfloat16
    """
    options: dict[str, Any] = {
        "cache": config.cache,
        "offline": config.offline,
        "dtype": None if config.dtype is None else getattr(torch, config.dtype),
        "trust_remote_code": config.trust_remote_code,
        "pickled_weights": config.pickled_weights,
    }
    if isinstance(config, EvaluateConfig):
        return options | {"device_map": config.device_map, "truncate_dim": config.truncate_dim}
    return options | {
        "revision": pinned(config.backbone)[1],
        "seed": config.seed,
        "quantization": config.lora.quantization,
        "bidirectional": config.bidirectional,
    }


def pinned(name: str) -> tuple[str, str | None]:
    """A model's name and the revision that is asked for behind an ``@``; a folder's name is left as it is.

    Example:
        >>> pinned("owner/name@0123abc"), pinned("./folder@home")
        (('owner/name', '0123abc'), ('./folder@home', None))
    """
    return split_revision(name)
