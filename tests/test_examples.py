"""Every file in examples/ is what it claims to be."""

from pathlib import Path

import pytest

from data.labelled_text import check_trainable, read_labelled_text
from data.pairs import check_pairs, is_pair_file, read_pairs
from lightning_app.command_line import parse
from lightning_app.config import TrainConfig
from lightning_app.stages import read_run_data
from merging.methods import METHODS
from merging.recipe_file import read_recipe_file

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").iterdir())


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_can_be_used(file):
    if file.suffix == ".jsonl":
        if pairs := is_pair_file(file):
            check_pairs(read_pairs(file))
        else:
            check_trainable(read_labelled_text(file))
        objective = "infonce" if pairs else "supcon"
        assert read_run_data(TrainConfig(data=str(file), objective=objective)).reported is not None
    elif file.name.startswith("merge_"):
        recipes = read_recipe_file(file).recipes
        for recipe in recipes:
            assert recipe.notes == ()
            settled = recipe.settings.at("layers.1.mlp.up_proj.weight", 4)
            assert settled.keys() <= METHODS[recipe.method].takes
            assert len(recipe.inputs) <= (METHODS[recipe.method].maximum or len(recipe.inputs))
    else:
        config = parse(TrainConfig, ["--config", str(file)])
        data = read_run_data(config)
        assert [stage.stage for stage in data.stages] == list(config.stages)
        assert config != TrainConfig()
