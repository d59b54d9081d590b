"""The tiny models of the table, each made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backbones.hub_model import HubModel, model_named

MakeHub = Callable[[str], HubModel]


@pytest.fixture(scope="session")
def hub_named(tmp_path_factory: pytest.TempPathFactory) -> MakeHub:
    """``hub_named(name)``: one model for all columns, so that it is trained once."""
    folder, made = tmp_path_factory.mktemp("backbones"), dict[str, HubModel]()

    def hub(name: str) -> HubModel:
        if name not in made:
            made[name] = model_named(name, Path(folder))
        return made[name]

    return hub
