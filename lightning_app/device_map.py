"""``--device-map``: over which devices one model is spread, in accelerate's words."""

import re

from storage.json_file import parse_json

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
DEVICE = re.compile("cpu|disk|cuda(:[0-9]+)?")


def parse_device_map(text: str | None) -> str | dict[str, int | str] | None:
    """A strategy, or a JSON object that gives each part of the model its device, as ``load_embedder`` takes it.

    Raises:
        ValueError: another word, or a part whose device is neither a GPU's number nor cpu, cuda, cuda:N or disk.

    Reference: https://huggingface.co/docs/accelerate/usage_guides/big_modeling

    Example:
        >>> parse_device_map("balanced")
        'balanced'
        >>> parse_device_map('{"layers.0": 0, "": "cpu"}')
        {'layers.0': 0, '': 'cpu'}
    """
    if text is None or text in STRATEGIES:
        return text
    if not text.lstrip().startswith("{"):
        raise ValueError(
            f"--device-map: expected {', '.join(STRATEGIES)}, or a JSON object of module names and devices, got {text!r}"
        )
    places: dict[str, int | str] = parse_json(text, "--device-map")
    for module, device in places.items():
        number = type(device) is int and device >= 0
        if not number and not (isinstance(device, str) and DEVICE.fullmatch(device)):
            raise ValueError(
                f"--device-map: expected a GPU's number, cpu, cuda:N or disk for {module!r}, got {device!r}; correct it"
            )
    if not places:
        raise ValueError("--device-map: expected a device for every part of the model, got an empty object; give auto")
    return places
