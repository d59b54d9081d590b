"""MTEB's files are read as MTEB reads them, and ours are written so that MTEB reads them."""

import hashlib
import json
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.mteb import MTEBResult, benchmark_scores, read_mteb, write_mteb
from evaluation.mteb_writing import file_name

REVISION = "8b3219a92973c328a8e22fadcfa821b5dc75636a"
BANKING = {
    "dataset_revision": "0fd18e25b25c072e09e0d92ab615fda904d66300",
    "evaluation_time": 45.4,
    "mteb_version": "1.12.41",
    "scores": {"test": [{"accuracy": 0.79, "hf_subset": "default", "languages": ["eng-Latn"], "main_score": 0.7936}]},
    "task_name": "Banking77Classification",
    "a key of a later version": {"x": 1},
}


def put(folder, content, model="org__model", revision=REVISION, task="Banking77Classification"):
    target = folder / model / revision if revision else folder / model
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"{task}.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def changed(**changes):
    """The file with other keys; a key of the subset's scores is changed there."""
    inner = {key: value for key, value in changes.items() if key in ("main_score", "hf_subset", "languages")}
    entry = BANKING["scores"]["test"][0] | inner
    return BANKING | {"scores": {"test": [entry]}} | {k: v for k, v in changes.items() if k not in inner}


def old(task="SummEval", **splits):
    return {"dataset_revision": None, "mteb_dataset_name": task, "mteb_version": "1.6.36", **splits}


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_file_and_the_folders_above_it_say_the_same(tmp_path, depth):
    file = put(tmp_path, BANKING)
    where = [file, *file.parents][depth]
    assert read_mteb(where) == [
        MTEBResult(
            model="org/model",
            revision=REVISION,
            task="Banking77Classification",
            split="test",
            subset="default",
            main_score=0.7936,
            task_type=None,
            languages=("eng-Latn",),
        )
    ]


def test_the_model_is_told_by_the_meta_file_before_the_folders(tmp_path):
    file = put(tmp_path, BANKING, model="anything", revision="else")
    # as MTEB writes it for a model without a limit: no strict JSON
    file.with_name("model_meta.json").write_text('{"name": "a/b__c", "revision": "7", "max_tokens": Infinity}')
    assert {(found.model, found.revision) for found in read_mteb(tmp_path)} == {("a/b__c", "7")}
    file.with_name("model_meta.json").write_text('{"model_name": "old/name", "versions": null}')
    assert {(found.model, found.revision) for found in read_mteb(file)} == {("old/name", "no_revision_available")}


def test_before_revisions_had_folders_the_model_is_the_folder(tmp_path):
    put(tmp_path, BANKING, revision=None)
    assert [(found.model, found.revision) for found in read_mteb(tmp_path)] == [("org/model", "no_revision_available")]


def test_a_model_without_organisation_is_known_by_its_revision(tmp_path):
    put(tmp_path, BANKING, model="all-MiniLM-L6-v2")
    assert read_mteb(tmp_path)[0].model == "all-MiniLM-L6-v2"
    file = put(tmp_path / "x", BANKING, model="downloads", revision="today")
    with pytest.raises(ValueError, match=r"Banking77Classification\.json: expected MODEL/REVISION.*model_meta\.json"):
        read_mteb(file)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"accuracy": 0.9, "f1": 0.8, "main_score": 0.9}, 0.9),
        ({"v_measure": 0.4, "v_measure_std": 0.01, "v_measures": {"Level 0": [0.4]}}, 0.4),
        ({"map_at_10": 0.2, "ndcg_at_10": 0.3, "recall_at_10": 0.5}, 0.3),
        ({"map": 0.55, "mrr": 0.7}, 0.55),
        ({"cos_sim": {"accuracy": 0.65, "ap": 0.71}, "dot": {"ap": 0.6}}, 0.71),
        ({"cos_sim": {"pearson": 0.305, "spearman": 0.309}, "dot": {"spearman": 0.252}}, 0.309),
    ],
)
def test_the_older_shape_has_its_main_score_under_the_name_of_the_metric(tmp_path, split, expected):
    put(tmp_path, old(test=split | {"evaluation_time": 161.49}))
    (found,) = read_mteb(tmp_path)
    assert (found.task, found.split, found.subset, found.main_score) == ("SummEval", "test", "default", expected)
    assert found.languages == ()


def test_the_older_shape_with_languages_has_a_result_each(tmp_path):
    subsets = {"de": {"accuracy": 0.5, "main_score": 0.5}, "fr": {"main_score": 0.7}, "evaluation_time": 3.0}
    put(tmp_path, old("AmazonReviews", test=subsets, validation={"de": {"main_score": 0.1}}))
    found = [(result.split, result.subset, result.main_score) for result in read_mteb(tmp_path)]
    assert found == [("test", "de", 0.5), ("test", "fr", 0.7), ("validation", "de", 0.1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"line 1: expected JSON"),
        ('{\n"task_name": }', r"line 2: expected JSON"),
        ("[]", r"the file: expected an object"),
        ("[" * 100_000, r"modest depth"),
        (changed(main_score=None), r"scores\.test\.default\.main_score: expected a finite number, got nothing"),
        (changed(main_score="0.5"), r"main_score: expected a finite number, got '0.5'"),
        (changed(main_score=True), r"main_score: expected a finite number, got True"),
        (changed(main_score=math.nan), r"main_score: expected a finite number, got nan"),
        (json.dumps(BANKING).replace("0.7936", "1" + "0" * 5000), r"main_score: expected a finite number, got inf"),
        (changed(hf_subset=None), r"scores\.test\[0\]\.hf_subset: expected a text, got nothing"),
        (changed(task_name=7), r"task_name: expected a text, got 7"),
        (changed(scores=[]), r"scores: expected a mapping of splits, got \[\]"),
        (changed(scores={"test": []}), r"scores\.test: expected a list with an entry a subset"),
        (changed(scores={"test": ["x"]}), r"scores\.test\[0\]: expected a mapping, got 'x'"),
        ({"rows": []}, r"mteb_dataset_name: expected a text, got nothing"),
        (old(), r"expected a key 'scores', or splits such as 'test', got neither"),
        (old(test={"accuracy": 0.5}), r"test\.default\.main_score: expected a finite number, got nothing"),
    ],
)
def test_a_file_that_is_not_mtebs_is_refused_by_name_and_key(tmp_path, content, message):
    file = put(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_mteb(tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_nan_in_a_key_that_is_not_read_is_none_of_ours(tmp_path):
    put(tmp_path, json.dumps(BANKING).replace("0.79,", "NaN,"))
    assert read_mteb(tmp_path)[0].main_score == 0.7936


def test_where_nothing_is_nothing_is_read(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_mteb(tmp_path / "absent.json")
    (tmp_path / ".hidden.json").write_text("{}")
    (tmp_path / "model_meta.json").write_text("{}")
    with pytest.raises(ValueError, match="got none"):
        read_mteb(tmp_path)


def result(score, *, split="test", subset="default", model="org/model", task="STS17", revision="1"):
    return MTEBResult(
        model=model,
        revision=revision,
        task=task,
        split=split,
        subset=subset,
        main_score=score,
        task_type=None,
        languages=(),
    )


def test_a_score_is_the_mean_over_the_subsets_of_test():
    found = benchmark_scores(
        [
            result(0.5, subset="de"),
            result(0.7, subset="fr"),
            result(0.1, subset="de", split="validation"),
            result(0.3, task="MSMARCO", split="dev"),
            result(0.2, task="Opusparcus", split="test.full"),
            result(0.4, task="Opusparcus", split="validation.full"),
            result(0.9, model="b"),
        ]
    )
    expected = {"org/model": {"STS17": 0.6, "MSMARCO": 0.3, "Opusparcus": 0.3}, "b": {"STS17": 0.9}}
    assert {model: pytest.approx(tasks) for model, tasks in expected.items()} == found


def test_two_revisions_of_one_model_are_not_mixed():
    with pytest.raises(ValueError, match="org/model, STS17, test, default: expected one result.*1 and 2"):
        benchmark_scores([result(0.5), result(0.6, revision="2")])


TEXTS = {"paper": ["1, 2", "2, 4"], "large": ["3, 6"], "held-out": ["5"]}


def test_what_is_written_is_read_back(tmp_path, make_row):
    row = make_row("org/model")
    written = write_mteb(tmp_path, row, revision=REVISION, suites=TEXTS)
    assert written == [
        tmp_path / "org__model" / REVISION / f"Embarc{suite}Clustering.json" for suite in ("Paper", "Large", "HeldOut")
    ]
    found = read_mteb(tmp_path)
    assert {(r.model, r.revision, r.split, r.subset, r.task_type, r.languages) for r in found} == {
        ("org/model", REVISION, "test", "default", "Clustering", ("zxx-Latn",))
    }
    assert benchmark_scores(found) == {
        "org/model": {
            "EmbarcPaperClustering": row["silhouette_true"],
            "EmbarcLargeClustering": row["suites"]["large"]["silhouette_true"],
            "EmbarcHeldOutClustering": row["suites"]["held-out"]["silhouette_true"],
        }
    }


def test_a_file_has_what_mteb_checks_when_it_loads_one(tmp_path, make_row):
    """`TaskResult`: required keys and their types; `get_score`: a main score that is a number."""
    row = make_row(davies_bouldin_true=None, davies_bouldin_true_reason="collapsed", dimensions=8)
    (file,) = write_mteb(tmp_path, row, revision=None, suites={"paper": TEXTS["paper"]})
    content = json.loads(file.read_text())
    assert file.parent.name == "no_revision_available"
    assert content["dataset_revision"] == hashlib.sha256(b"1, 2\n2, 4").hexdigest()[:40]
    assert content["task_name"] == file.stem
    for key in ("mteb_version", "evaluation_time", "kg_co2_emissions"):
        assert content[key] is None
    (scores,) = content["scores"]["test"]
    assert scores["main_score"] == scores["silhouette_true"] == row["silhouette_true"]
    assert scores["null_z"] == 7.3
    assert scores["retention_cka"] == 1.0
    assert scores["languages"] == ["zxx-Latn"]
    assert "davies_bouldin_true" not in scores
    assert not any(key.endswith("reason") for key in scores)


def test_an_undefined_silhouette_has_no_file_and_takes_the_earlier_away(tmp_path, make_row):
    suites = {key: TEXTS[key] for key in ("paper", "large")}
    assert len(write_mteb(tmp_path, make_row("m"), revision="1", suites=suites)) == 2
    collapsed = make_row("m", suites={"large": {"silhouette_true": None, "silhouette_true_reason": "collapsed"}})
    (kept,) = write_mteb(tmp_path, collapsed, revision="1", suites=suites)
    assert sorted(file.name for file in kept.parent.iterdir()) == ["EmbarcPaperClustering.json", "model_meta.json"]
    failed = make_row("failed", silhouette_true=None, suites={"large": None, "large_reason": "failed"})
    assert write_mteb(tmp_path, failed, revision="1", suites=suites) == []
    assert not (tmp_path / "failed").exists()


@pytest.mark.parametrize(
    ("changes", "suites", "message"),
    [
        ({"source": "published"}, TEXTS, "expected a measured one, got 'published'"),
        ({}, {"broad": ["1"]}, "suite 'broad': expected one of row 'base'"),
        ({"suites": {"selection": {"silhouette_true": 0.5}}}, {"selection": ["1"]}, "suite 'selection'.*leave it out"),
        (
            {"suites": {"a b": {}, "a-b": {}}},
            {"a b": ["1"], "a-b": ["1"]},
            "suite 'a-b': expected a task of its own, got EmbarcABClustering as for suite 'a b'",
        ),
    ],
)
def test_what_must_not_be_written_is_refused(tmp_path, make_row, changes, suites, message):
    with pytest.raises(ValueError, match=message):
        write_mteb(tmp_path, make_row(**changes), revision="1", suites=suites)
    assert not list(tmp_path.iterdir())


def test_two_models_that_mteb_calls_alike_do_not_share_a_folder(tmp_path, make_row):
    names = ["a/b", "a/b", "a__b", "a b", "a_b", "a_/b", "a/_b"]
    files = {name: write_mteb(tmp_path, make_row(name), revision="1", suites={"paper": ["1"]}) for name in names}
    assert len(list(tmp_path.iterdir())) == len(files) == 6
    files["a_b"][0].parents[1].rename(tmp_path / "c")
    with pytest.raises(ValueError, match="expected the model 'c' at '1', got 'a_b' at '1'"):
        write_mteb(tmp_path, make_row("c"), revision="1", suites={"paper": ["1"]})


def test_a_suite_without_ascii_letters_has_a_task_of_its_own(tmp_path, make_row):
    suites = {"素数": {"silhouette_true": 0.5}, "奇数": {"silhouette_true": 0.25}}
    texts = {suite: ["1", "3"] for suite in suites}
    files = write_mteb(tmp_path, make_row("m", suites=suites), revision="1", suites=texts)
    assert len({file.name for file in files}) == 2
    assert all(re.fullmatch(r"Embarc[0-9A-Fa-f]{8}Clustering\.json", file.name) for file in files)


@pytest.mark.parametrize(("name", "usual"), [("org/model", "org__model"), ("a_b", "a_b"), ("e5-v1.5+x", "e5-v1.5+x")])
def test_plain_names_follow_mtebs_rule(name, usual):
    assert file_name(name) == usual


@given(st.text(min_size=1, max_size=300), st.text(max_size=50))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leaves_the_folder_and_every_name_is_read_back(tmp_path_factory, name, revision):
    folder = tmp_path_factory.mktemp("mteb")
    row = {"name": name, "source": "measured", "silhouette_true": 0.5, "suites": {}}
    if any("\ud800" <= character <= "\udfff" for character in name + revision):
        return
    (file,) = write_mteb(folder, row, revision=revision, suites={"paper": ["1"]})
    assert file.resolve().parents[2] == folder.resolve()
    if name.strip():
        assert [(r.model, r.revision) for r in read_mteb(folder)] == [(name, revision or "no_revision_available")]


@given(st.text(max_size=40), st.text(max_size=40))
def test_names_that_were_made_safe_stay_apart(one, other):
    assert one == other or file_name(one) != file_name(other)
