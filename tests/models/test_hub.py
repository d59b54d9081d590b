"""What the hub says, by a hub on this machine; and a hub that says nothing."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from models import hub as hub_module
from models.hub import HubModel, SilentHubError, UnreachableModel, ask_hub, reason_of
from models.locate import base_folder, check_reachable
from tests.models.fake_hub import FakeHub, empty_cache, silent_hub, use_hub

GEMMA = "google/embeddinggemma-300m"
MODEL = HubModel(repo_id="owner/name")


@pytest.mark.parametrize(
    ("status", "code", "name", "said"),
    [
        (401, "GatedRepo", "owner/name", "https://huggingface.co/owner/name and log in with `hf auth login`"),
        (
            403,
            "GatedRepo",
            "embeddinggemma",
            f"terms at https://huggingface.co/{GEMMA} and log in with `hf auth login`",
        ),
        (401, "RepoNotFound", "embeddinggemma", f"terms at https://huggingface.co/{GEMMA} and log in"),
        (401, "RepoNotFound", "owner/name", "got a missing or private one; check the name, log in"),
        (404, "RepoNotFound", "owner/name", "got a missing or private one"),
        (403, "", "owner/name", r"the hub refuses it \(403\); log in again with `hf auth login`"),
        (404, "RevisionNotFound", "owner/name@v9", "expected a revision of this repository, got 'v9'; give a branch"),
        (404, "RevisionNotFound", "embeddinggemma", rf"which BACKBONES pins; give {GEMMA}@main"),
        (503, "", "owner/name", r"not in the cache and the hub cannot be reached \(HfHubHTTPError"),
        (429, "", "owner/name", "the hub cannot be reached"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    status: int, code: str, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo_id = GEMMA if name == "embeddinggemma" else "owner/name"
    with FakeHub(repo_id, refuses=(status, code)) as hub:
        use_hub(monkeypatch, hub.url)
        for look in (check_reachable, base_folder):
            with pytest.raises(UnreachableModel, match=said) as caught:
                look(name, cache=tmp_path)
            assert "\n" not in str(caught.value)
            assert repo_id in str(caught.value)
        assert len(hub.asked) == 1
    assert empty_cache(tmp_path)


def test_a_gated_model_is_refused_before_the_download_where_nobody_is_logged_in(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with FakeHub("owner/name", tiny_folder, gated="manual") as hub:
        use_hub(monkeypatch, hub.url)
        with pytest.raises(UnreachableModel, match="accept the terms at https://huggingface.co/owner/name"):
            check_reachable("owner/name", cache=tmp_path)
        monkeypatch.setenv("HF_TOKEN", "hf_of_someone_who_accepted")
        monkeypatch.setattr(hub_module, "_answers", {})
        check_reachable("owner/name", cache=tmp_path)
        assert base_folder("owner/name", cache=tmp_path).is_dir()


def test_a_download_that_is_refused_is_not_taken_for_a_lost_network(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub("owner/name", tiny_folder, files_refused=(403, "GatedRepo")) as hub:
        use_hub(monkeypatch, hub.url)
        with pytest.raises(UnreachableModel, match="expected access to a gated repository"):
            base_folder("owner/name", cache=tmp_path)


def test_a_hub_that_never_answers_is_left_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 0.05)
    with silent_hub() as url:
        use_hub(monkeypatch, url)
        with pytest.raises(SilentHubError, match="no answer within 0.1 s|Timeout"):
            ask_hub(MODEL)
        monkeypatch.setattr(hub_module, "_ask", lambda model: pytest.fail("it was asked again"))
        for model in (MODEL, HubModel(repo_id="another/name")):
            with pytest.raises(SilentHubError):
                ask_hub(model)


def test_an_answer_is_kept_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub("owner/name", commit="a" * 40) as hub:
        use_hub(monkeypatch, hub.url)
        assert [ask_hub(MODEL), ask_hub(MODEL)] == ["a" * 40] * 2
        assert len(hub.asked) == 1
        monkeypatch.setattr(hub_module, "KEPT_SECONDS", -1.0)
        assert ask_hub(MODEL) == "a" * 40
        assert len(hub.asked) == 2


def test_no_request_is_made_where_the_environment_forbids_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub("owner/name", tiny_folder) as hub:
        use_hub(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for look in (check_reachable, base_folder):
            with pytest.raises(UnreachableModel, match="the hub is not asked"):
                look("owner/name", cache=tmp_path)
        assert hub.asked == []


def test_a_reason_is_one_line_with_its_kind() -> None:
    assert reason_of(ValueError("\n first \n second")) == "ValueError: first"
    assert reason_of(TimeoutError()) == "TimeoutError"
