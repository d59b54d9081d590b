"""The search command's part: two variants of the built-in model, a folder with the best merge and what was tried."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from lightning_app.search_figure import search_figure
from lightning_app.search_record import SearchRecord, csv_of
from lightning_app.searching import search_merge
from merging.engine import merge_checkpoints
from merging.front import Candidate, Parameters, choose
from models.embedder import load_embedder
from storage.json_file import read_json, write_json
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors, write_tensors

TINY_LLM = Path(__file__).parents[2] / "models" / "pretrained" / "tiny-llm"


def variant(base: Path, folder: Path, seed: int) -> Path:
    """A copy of a model with noise in its weights."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.3 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_tensors(base / "model.safetensors").items()
    }
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder


@pytest.fixture
def variants(tiny_folder, tmp_path):
    return [variant(tiny_folder, tmp_path / name, seed) for seed, name in enumerate("ab")]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "search.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_writes_the_best_merge_and_everything_it_tried(tmp_path, small_suites):
    variants, out = [variant(TINY_LLM, tmp_path / name, seed) for seed, name in enumerate("ab")], tmp_path / "out"
    report = search_merge(variants, out, method="slerp", base=TINY_LLM, retention=0.2, evaluations=7)
    rows = rows_of(out)
    scored = [(float(row["separation"]), float(row["retention"])) for row in rows]
    assert len(rows) == report["search"]["evaluations"] == 7
    best = max((s for s in scored if s[1] >= 0.2), key=lambda s: s[0])
    chosen = next(row for row in rows if row["chosen"] == "true")
    assert (float(chosen["separation"]), float(chosen["retention"])) == best
    assert report == read_json(out / "merge.json")
    assert report["search"]["chosen"] == {"t": [float(chosen["t"])], "separation": best[0], "retention": best[1]}
    assert report["search"]["floor"] == 0.2
    assert [row["on_front"] for row in rows].count("true") == len(report["search"]["front"])
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    assert {"search.csv", "search.png", "merge.json"} <= verify_manifest(out)["files"].keys()
    assert load_embedder(out).encode(["1, 2, 3"]).shape == (1, 128)
    plain = tmp_path / "plain"
    merge_checkpoints(variants, plain, method="slerp", base=TINY_LLM, t=float(chosen["t"]))
    written, expected = (read_tensors(folder / "model.safetensors") for folder in (out, plain))
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_from_the_base_along_the_arc_the_floor_holds(variants, tiny_folder, tmp_path, small_suites):
    report = search_merge(
        [tiny_folder, variants[0]], tmp_path / "out", method="slerp", base=tiny_folder, retention=0.95, evaluations=20,
        merge={"t": None, "weights": None, "density": None}, write={"threads": 1},
    )  # fmt: skip
    assert report["space"] == "weight"
    assert report["search"]["chosen"]["retention"] >= 0.95
    ends = [row for row in rows_of(tmp_path / "out") if row["t"] == "0.0"]
    assert float(ends[0]["retention"]) == pytest.approx(1, abs=1e-9)


def test_layers_and_options_reach_the_merge_that_is_written(variants, tiny_folder, tmp_path, small_suites):
    report = search_merge(
        variants, tmp_path / "out", method="ties", base=tiny_folder, retention=0.0, evaluations=7, strategy="evolve",
        merge={"density": 0.5, "scale": 0.5}, seed=3,
    )  # fmt: skip
    rows = rows_of(tmp_path / "out")
    assert [len(row["t"].split()) for row in rows] == [1] * 5 + [2] * 2
    assert report["search"]["seed"] == 3
    chosen = next(row for row in rows if row["chosen"] == "true")
    knots = [float(t) for t in chosen["t"].split()]
    weights = [[1 - t for t in knots], knots] if len(knots) > 1 else [1 - knots[0], knots[0]]
    plain = tmp_path / "plain"
    merge_checkpoints(
        variants, plain, method="ties", base=tiny_folder, weights=weights, density=0.5, scale=0.5, seed=3
    )  # fmt: skip
    written, expected = (read_tensors(folder / "model.safetensors") for folder in (tmp_path / "out", plain))
    assert all(torch.allclose(written[name], expected[name], atol=1e-7) for name in expected)


def test_a_floor_that_nothing_reaches_writes_nothing(variants, tiny_folder, tmp_path, small_suites, capfd):
    with pytest.raises(
        ValueError, match=r"--retention: expected a merge that keeps at least 0\.999, got at most 0\.\d+"
    ):
        search_merge(variants, tmp_path / "out", method="linear", base=tiny_folder, retention=0.999, evaluations=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    shown = capfd.readouterr().err
    assert "the front of 5 candidates" in shown
    assert "below the floor" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": None}, "--search: expected the model that retention is measured against, got none; add --base"),
        ({"merge": {"t": 0.5}}, "--t: expected it to be left to --search, got both"),
        ({"merge": {"weights": (1, 2)}}, "--weights: expected it to be left to --search, got both"),
        ({"method": "model_stock"}, "--search: expected a method told by --t or --weights"),
        ({"retention": -0.1}, "--retention: expected a number in"),
        ({"evaluations": 2}, "--evaluations: expected at least 5"),
        ({"method": "slurp"}, "--method: expected one of"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("lightning_app.searching.make_scorer", lambda *_, **__: pytest.fail("a model was loaded"))
    asked = {"method": "slerp", "base": TINY_LLM} | change
    with pytest.raises(ValueError, match=message):
        search_merge([TINY_LLM, TINY_LLM], tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_refused_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_app.searching.make_scorer", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="expected a name that is free"):
        search_merge([TINY_LLM, TINY_LLM], tmp_path / "out", method="slerp", base=TINY_LLM)


def record(*scores, floor=0.5):
    candidates = tuple(
        Candidate(Parameters(t=(index / (len(scores) - 1),)), *score) for index, score in enumerate(scores)
    )
    return SearchRecord(
        candidates=candidates, chosen=choose(candidates, floor), floor=floor, strategy="grid", seed=0, base="base"
    )


def test_the_csv_says_of_each_candidate_what_became_of_it():
    weighted = Candidate(Parameters(weights=(0.25, 0.75)), 0.0, 0.0)
    found = record((0.1, 1.0), (0.3, 0.75), (0.2, 0.5), (0.5, 0.25))
    text = csv_of(
        SearchRecord(
            candidates=(*found.candidates, weighted), chosen=found.chosen, floor=0.5, strategy="", seed=0, base=""
        )
    )
    assert text.splitlines() == [
        "evaluation,t,weights,separation,retention,on_front,chosen",
        "1,0.0,,0.1,1.0,true,false",
        "2,0.3333333333333333,,0.3,0.75,true,true",
        "3,0.6666666666666666,,0.2,0.5,false,false",
        "4,1.0,,0.5,0.25,true,false",
        "5,,0.25 0.75,0.0,0.0,false,false",
    ]


def test_the_picture_shows_the_front_the_floor_the_ends_and_the_choice():
    found = record((0.1, 1.0), (0.3, 0.75), (0.2, 0.5), (0.5, 0.25))
    axes = search_figure(found).axes[0]
    shown = {points.get_label(): points.get_offsets().tolist() for points in axes.collections}
    assert shown["the front"] == [[0.25, 0.5], [0.75, 0.3], [1.0, 0.1]]
    assert shown["an input by itself"] == [[1.0, 0.1], [0.25, 0.5]]
    assert shown["chosen: t = 0.3333"] == [[0.75, 0.3]]
    line = axes.lines[0]
    assert (line.get_drawstyle(), line.get_xdata().tolist()) == ("steps-pre", [0.25, 0.75, 1.0])
    low, high = axes.get_xlim()
    assert low < 0.25 < 1.0 < high
    assert {text.get_text() for text in axes.texts} == {"t = 0", "t = 1"}


@pytest.mark.parametrize("removed", [False, True])
def test_candidates_are_scored_with_the_attention_of_the_result(
    removed, variants, tiny_folder, tmp_path, small_suites, monkeypatch
):
    settings = variants[1] / "config.json"
    write_json(settings, read_json(settings) | ({"is_causal": False} if removed else {}))
    asked = []

    def scorer(*_, **options):
        asked.append(options["bidirectional"])
        return lambda tensors: (0.5, 1.0)

    monkeypatch.setattr("lightning_app.searching.make_scorer", scorer)
    search_merge(variants, tmp_path / "out", method="slerp", base=tiny_folder, evaluations=5)
    assert asked == [removed]
