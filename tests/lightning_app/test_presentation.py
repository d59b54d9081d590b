"""The terminal's table says what the rows say."""

from lightning_app.presentation import show_rows

ROW = {
    "name": "base",
    "source": "measured",
    "silhouette_true": 0.1234,
    "davies_bouldin_true": None,
    "davies_bouldin_true_reason": "coinciding centroids",
    "silhouette_kmeans": 0.2,
    "davies_bouldin_kmeans": 1.5,
    "null": {"z": 7.25},
    "suites": {
        "large": {"silhouette_true": 0.4567},
        "held-out": {"silhouette_true": None},
        "own": None,
        "own_reason": "no numbers",
    },
    "retention": {"cka": 0.9876, "knn": None, "knn_reason": "too few"},
}


def test_the_table_keeps_the_order_of_the_suites_and_shows_what_is_undefined(capsys):
    longer = ROW | {"name": "runs/main/stages/2-six[x]", "retention": None}
    show_rows([ROW, longer, ROW | {"name": "theirs", "source": "published"}], title="t")
    lines = capsys.readouterr().err.splitlines()
    head = next(line for line in lines if "model" in line)
    assert head.split() == ["model", "silh.", "z", "DBI", "large", "held-out", "own", "CKA", "kNN"]
    base = next(line for line in lines if "base" in line)
    assert base.split() == ["base", "0.123", "7.2", "–", "0.457", "–", "–", "0.988", "–"]
    assert any(line.split()[:1] == ["…" + "runs/main/stages/2-six[x]"[-16:]] for line in lines)
    assert not any("theirs" in line for line in lines)
