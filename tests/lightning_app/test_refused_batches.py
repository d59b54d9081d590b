"""Data that cannot fill a batch is refused before anything is loaded or written, in one line that names the flag."""

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_app.config import StageConfig, TrainConfig
from lightning_app.run import train

GOOD = [("one", 4), ("two", 4), ("three", 4)]


def write(file: Path, labels: list[tuple[str, int]]) -> str:
    rows = [f'{{"text": "{name} {i}", "label": "{name}"}}' for name, count in labels for i in range(count)]
    file.write_text("\n".join(rows), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("labels", "stage", "devices", "message"),
    [
        ([*GOOD, ("lonely", 1)], {}, 1, r"data\.jsonl: expected at least 2 texts a label, got 1 for 'lonely'"),
        ([("one", 4)], {}, 1, r"data\.jsonl: expected at least 2 labels, got only 'one'"),
        (GOOD, {"classes": 4}, 1, r"--stages\.0\.classes: expected 2 to 3 \(the labels of the stage\), got 4"),
        (GOOD, {"texts_per_class": 5}, 1, r"--stages\.0\.texts-per-class: expected 2 to 4 .*smallest label\), got 5"),
        (GOOD, {"classes": 30, "texts_per_class": 30}, 1, r"--stages\.0\.classes: expected 2 to 3 .*got 30"),
        (GOOD, {"texts_per_class": 1}, 1, r"--stages\.0\.texts-per-class: expected 2 to 4 .*got 1"),
        (GOOD, {"classes": 2, "texts_per_class": 2}, 8, r"--devices 8: expected a divisor of the batch .* = 4 texts"),
        (GOOD, {"classes": 3, "texts_per_class": 3}, 2, r"--devices 2: expected a divisor of the batch .* = 9 texts"),
    ],
    ids=["one text", "one label", "P", "K", "P x K", "K of one", "fewer than ranks", "not shared equally"],
)
def test_a_batch_that_cannot_be_is_refused(
    tmp_path: Path, tiny_folder: Path, labels: list[tuple[str, int]], stage: dict[str, int], devices: int, message: str
) -> None:
    config = TrainConfig(
        backbone=str(tiny_folder),
        data=write(tmp_path / "data.jsonl", labels),
        stages=(StageConfig(name="data", **stage),),  # type: ignore[arg-type]
        devices=devices,
        output=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match=message) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_devices_of_several_machines_share_a_batch_too(tmp_path: Path, tiny_folder: Path) -> None:
    config = TrainConfig(
        backbone=str(tiny_folder),
        data=write(tmp_path / "data.jsonl", GOOD),
        stages=(StageConfig(name="data", classes=2, texts_per_class=2),),
        devices=2,
        output=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match=r"--devices 2 --num-nodes 4: expected a divisor of the batch .* = 4 texts"):
        train(replace(config, num_nodes=4))
