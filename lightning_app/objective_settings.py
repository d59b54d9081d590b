"""Settings of the objective that can be refused before anything is read."""

from lightning_app.config import TrainConfig
from models.prefix_lengths import check_dimensions

NAMES = {"supcon": "Supervised contrastive loss", "infonce": "InfoNCE"}


def check_objective(config: TrainConfig) -> None:
    """--matryoshka, --geometry-weight and what they stand beside; the model's own dimension is checked when it is known.

    Raises:
        ValueError: dimensions that are not ascending numbers above 0; a weight that is negative or not finite, or beside Dense
            modules that are trained.
    """
    check_dimensions(config.matryoshka, name="--matryoshka")
    if not 0 <= config.geometry_weight < float("inf"):
        raise ValueError(
            f"--geometry-weight: expected 0 or a positive number, got {config.geometry_weight}; 0 leaves the term out"
        )
    if config.geometry_weight > 0 and config.lora.dense == "train":
        raise ValueError(
            f"--geometry-weight {config.geometry_weight}: expected --lora.dense freeze, as the base is what the model says "
            "without its adapter, and trained Dense modules stay on; drop one of the two"
        )


def describe_objective(config: TrainConfig) -> str:
    """The objective in words, for a card.

    >>> describe_objective(TrainConfig(objective="infonce", matryoshka=(64, 128), geometry_weight=0.5))
    "InfoNCE at temperature 0.1, also over the first 64, 128 dimensions, plus 0.5 times the distance from the base's similarities"
    """
    said = f"{NAMES[config.objective]} at temperature {config.temperature:g}"
    if config.matryoshka:
        said += f", also over the first {', '.join(map(str, config.matryoshka))} dimensions"
    if config.geometry_weight > 0:
        said += f", plus {config.geometry_weight:g} times the distance from the base's similarities"
    return said
