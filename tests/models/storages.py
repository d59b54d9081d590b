"""Bytes that a model's tensors take in memory, each storage once: the oracle of what is counted without weights."""

from torch import Tensor, nn


def storage_bytes(module: nn.Module) -> int:
    """Of weights and buffers, and of the scales and tables that bitsandbytes keeps beside them."""
    found: dict[int, int] = {}

    def add(tensor: Tensor | None) -> None:
        if tensor is not None:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()

    for tensor in (*module.parameters(), *module.buffers()):
        add(tensor)
        add(getattr(tensor, "SCB", None))
        state = getattr(tensor, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            add(getattr(each, "absmax", None))
            add(getattr(each, "code", None))
        add(getattr(state, "offset", None))
    for each in module.modules():  # after a forward pass int8 has its scales here
        add(getattr(getattr(each, "state", None), "SCB", None))
    return sum(found.values())
