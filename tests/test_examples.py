"""Every file in examples/ is what it claims to be."""

import re
import shlex
import subprocess
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
    elif file.suffix == ".sh":
        assert subprocess.run(["bash", "-n", file]).returncode == 0
        command = file.read_text().replace("\\\n", " ").partition("srun python train.py")[2].splitlines()[0]
        config = parse(TrainConfig, shlex.split(command))
        tasks = re.findall(r"^#SBATCH --(?:nodes|ntasks-per-node)=(\d+)$", file.read_text(), re.MULTILINE)
        assert [config.num_nodes, config.devices] == [int(each) for each in tasks]
        assert config.resume
    else:
        config = parse(TrainConfig, ["--config", str(file)])
        data = read_run_data(config)
        assert [stage.stage for stage in data.stages] == list(config.stages)
        assert config != TrainConfig()
