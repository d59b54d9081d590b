from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import locate
from models.backbones import BACKBONES
from models.locate import UnreachableModel, base_folder, check_reachable, hub_origin
from tests.models.fake_hub import CLOSED, FakeHub, empty_cache, fill_cache, use_hub

E5 = "intfloat/e5-mistral-7b-instruct"
PINNED = BACKBONES["e5-mistral"].revision


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, CLOSED)


def one_line_with_the_way_out(message: str, repo_id: str = E5) -> bool:
    return "\n" not in message and repo_id in message and "tiny-llm, tiny-encoder" in message


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["e5-mistral", E5, "nobody/has-this-model", f"{E5}@main", "e5-mistral@v1"])
@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("look", [base_folder, check_reachable])
def test_a_hub_model_without_network_is_one_line(
    look: Callable[..., object], name: str, offline: bool, tmp_path: Path
) -> None:
    with pytest.raises(UnreachableModel) as caught:
        look(name, cache=tmp_path, offline=offline)
    assert one_line_with_the_way_out(str(caught.value), "nobody/has-this-model" if "nobody" in name else E5)
    assert empty_cache(tmp_path)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["e5-mistral", E5, "E5-Mistral-7B"])
def test_another_cached_commit_serves_with_a_warning_of_both(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, E5, tiny_folder, commit="c0ffee")
    with pytest.warns(UserWarning, match=f"pins the commit {PINNED}.* the cached commit c0ffee is used"):
        found = base_folder(name, cache=tmp_path)
    assert found == snapshot
    assert hub_origin(found) == (E5, "c0ffee")


@pytest.mark.usefixtures("no_hub")
def test_the_pinned_commit_goes_before_the_main_branch(tiny_folder: Path, tmp_path: Path) -> None:
    assert PINNED is not None
    other = fill_cache(tmp_path, E5, tiny_folder, commit="c0ffee")
    shutil.copytree(other, other.parent / PINNED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert base_folder("e5-mistral", cache=tmp_path) == other.parent / PINNED
        assert base_folder("e5-mistral@main", cache=tmp_path) == other
        assert base_folder(f"{E5}@c0ffee", cache=tmp_path) == other
        assert base_folder(E5, revision=PINNED[:9], cache=tmp_path) == other.parent / PINNED
    with pytest.raises(UnreachableModel, match=f"has not 'v9' but {PINNED[:12]}, c0ffee"):
        base_folder("e5-mistral@v9", cache=tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_a_commit_that_is_asked_for_is_never_another(tiny_folder: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path, E5, tiny_folder)
    with pytest.raises(UnreachableModel, match=f"the cache has not '{PINNED}'"):
        base_folder(f"e5-mistral@{PINNED}", cache=tmp_path, offline=True)
    with pytest.raises(ValueError, match="expected one revision, got 'a' and 'b'"):
        base_folder(f"{E5}@a", revision="b", cache=tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_an_interrupted_download_is_not_taken_for_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, "owner/name", tiny_folder)
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "ab12.incomplete").touch()
    for look in (base_folder, check_reachable):
        with pytest.raises(UnreachableModel, match=r"lacks model-00002-of-00002\.safetensors .*ab12\.incomplete"):
            look("owner/name", cache=tmp_path, offline=True)
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UnreachableModel, match=r"lacks its \*\.safetensors"):
        base_folder("owner/name", cache=tmp_path, offline=True)
    shutil.copyfile(tiny_folder / "model.safetensors", snapshot / "model.safetensors")
    assert base_folder("owner/name", cache=tmp_path, offline=True) == snapshot
    (snapshot / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UnreachableModel, match=r"lacks 1_Pooling/config\.json"):
        base_folder("owner/name", cache=tmp_path, offline=True)


def test_what_is_fetched_is_pinned_and_whole_and_then_needs_no_network(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PINNED is not None
    with FakeHub(E5, tiny_folder, commit=PINNED, more={"pytorch_model.bin": b"pickle", "README.md": b"card"}) as hub:
        use_hub(monkeypatch, hub.url)
        check_reachable("e5-mistral", cache=tmp_path)
        assert hub.asked == [f"/api/models/{E5}/revision/{PINNED}"]
        assert empty_cache(tmp_path)
        found = base_folder("e5-mistral", cache=tmp_path)
        assert hub.asked.count(f"/api/models/{E5}/revision/{PINNED}") == 1
    assert hub_origin(found) == (E5, PINNED)
    names = {file.relative_to(found).as_posix() for file in found.rglob("*") if file.is_file()}
    wanted = {file.relative_to(tiny_folder).as_posix() for file in tiny_folder.rglob("*") if file.is_file()}
    assert names == {name for name in wanted if not name.endswith(".md")}
    use_hub(monkeypatch, CLOSED)
    check_reachable("e5-mistral", cache=tmp_path)
    assert base_folder("e5-mistral", cache=tmp_path) == found


def test_a_branch_that_was_fetched_is_found_without_network(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub("owner/name", tiny_folder, commit="1" * 40) as hub:
        use_hub(monkeypatch, hub.url)
        found = base_folder("owner/name", cache=tmp_path)
    use_hub(monkeypatch, CLOSED)
    assert base_folder("owner/name", cache=tmp_path) == base_folder("owner/name@main", cache=tmp_path) == found


def test_weights_that_are_only_pickled_are_told_with_the_flag(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(tiny_folder / "config.json", source / "config.json")
    with FakeHub("owner/name", source, commit="1" * 40) as hub:
        use_hub(monkeypatch, hub.url)
        with pytest.raises(ValueError, match="give --pickled-weights"):
            base_folder("owner/name", cache=tmp_path / "cache")


@pytest.mark.usefixtures("no_hub")
def test_an_adapter_is_followed_to_its_base(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text('{"base_model_name_or_path": "owner/name", "revision": "v1"}')
    with pytest.raises(UnreachableModel, match="model owner/name"):
        check_reachable(tmp_path, cache=tmp_path)
    file.write_text(f'{{"base_model_name_or_path": "{tmp_path}"}}')
    check_reachable(tmp_path, cache=tmp_path)


def test_a_model_drawn_from_its_seed_is_within_reach() -> None:
    check_reachable("tiny-encoder", offline=True)


def test_a_folder_with_an_at_sign_is_a_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "me" / "run@home")
    monkeypatch.chdir(tmp_path)
    for name in ("me/run@home", "./me/run@home", tmp_path / "me" / "run@home"):
        assert base_folder(name) == tmp_path / "me" / "run@home"


def test_a_folder_is_taken_as_it_is(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_folder(tiny_folder) == tiny_folder
    monkeypatch.chdir(tiny_folder.parent)
    assert base_folder("./tiny-llm") == tiny_folder
    assert hub_origin(tiny_folder) is None


def test_the_built_in_model_is_found_in_the_project(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "PROJECT", tmp_path)
    with pytest.raises(ValueError, match=r"backbone tiny-llm: expected its weights in models/pretrained/tiny-llm"):
        base_folder("tiny-llm")
    shutil.copytree(tiny_folder, tmp_path / "models/pretrained/tiny-llm")
    assert base_folder("tiny-llm") == tmp_path / "models/pretrained/tiny-llm"


def test_the_small_real_encoder_comes_from_its_package() -> None:
    assert (base_folder("all-minilm") / "modules.json").is_file()
    assert base_folder("sentence-transformers/all-MiniLM-L6-v2") == base_folder("all-minilm")


def test_a_model_drawn_from_its_seed_has_no_folder() -> None:
    with pytest.raises(ValueError, match="backbone tiny-encoder: expected a model with stored weights"):
        base_folder("tiny-encoder")


@pytest.mark.parametrize("name", ["./absent", "/absent/too", "~/absent", "../absent"])
def test_an_absent_folder_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="model: expected a folder, found none at") as caught:
        base_folder(name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tiny-lm", "a/b/c", "with space/name", ""])
def test_what_is_neither_name_nor_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of BACKBONES, a local folder or a hub id"):
        base_folder(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected config\.json, modules\.json or adapter_config\.json in"):
        base_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected weights as \*\.safetensors in"):
        base_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "[]"), ("modules.json", "{}"), ("modules.json", "[]"), ("modules.json", "[3]")],
)
def test_settings_of_another_shape_are_named(name: str, content: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: expected a.*, got "):
        base_folder(folder)
