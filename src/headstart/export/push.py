"""Pushes a bundle to the Hugging Face hub: checked, then one commit of the files that its manifest lists.

``HfApi.upload_folder`` would be shorter, but with hf_xet it splits large folders into several commits
(huggingface_hub 2.4), so that the repository would have one model's weights beside another's config for a while.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    get_token,
    metadata_load,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from headstart.core.errors import UserError
from headstart.inference import bundle

HUB_TIMEOUT = 120.0
"""Seconds to wait for the hub; huggingface_hub itself waits for ever."""
OPTIONAL_FILES = {bundle.ONNX_FP16, bundle.ONNX_INT8, bundle.ONNX_DATA, bundle.EXPORTED_PROGRAM, bundle.REFERENCE}
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP client that huggingface_hub is built on


class Pushed(NamedTuple):
    """The commit's URL, and the name by which timm loads the model: ``hf-hub:owner/name``, maybe with ``@revision``."""

    commit: str
    name: str


def push_bundle(folder: Path, repository: str, *, private: bool, revision: str | None) -> Pushed:
    """Commit the bundle's files to a repository and a branch, which are created where they are missing.

    Optional files of an earlier push that this bundle lacks are deleted in the same commit: they are another model's.
    Other files of the repository stay. Without ``revision`` the branch is ``main``. Raises UserError where the bundle
    is damaged, there is no token, a repository that should be private is public, or the hub refuses or can't be
    reached.
    """
    opened = bundle.open_bundle(folder)
    paths = [*(opened.path(name) for name in opened.files), folder / bundle.BUNDLE_MANIFEST]
    with _as_user_errors(repository):
        if get_token() is None:
            raise UserError("there is no token for the hub: run `hf auth login`, or set HF_TOKEN to one that may write")
        session = get_session()
        set_client_factory(
            partial(type(session), event_hooks=session.event_hooks, follow_redirects=True, timeout=HUB_TIMEOUT)
        )
        api = HfApi(library_name="headstart")
        name = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(name, timeout=HUB_TIMEOUT).private:
            raise UserError(f"{name} is there already and is public, so nothing was pushed: choose another name")
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        siblings = api.model_info(name, revision=revision, timeout=HUB_TIMEOUT).siblings or []
        stale = OPTIONAL_FILES.intersection(file.rfilename for file in siblings).difference(opened.files)
        operations: list[CommitOperationDelete | CommitOperationAdd] = [
            *(CommitOperationDelete(path_in_repo=file) for file in sorted(stale)),
            *(CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths),
        ]
        message = "The model, exported by headstart"
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
    return Pushed(commit.commit_url, f"hf-hub:{name}" + (f"@{revision}" if revision else ""))


def stated_license(folder: Path) -> str | None:
    """Return the licence in the front matter of the bundle's model card; None where it is missing or unknown."""
    stated = (metadata_load(folder / bundle.CARD) or {}).get("license")
    return None if stated in (None, "unknown") else str(stated)


@contextmanager
def _as_user_errors(repository: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into UserErrors that say what to do."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repository} can't be a repository's name: {error} Name it owner/name") from error
    except HfHubHTTPError as error:
        hint = ""
        if error.response.status_code in (401, 403):
            hint = f". The token must be one that may write to {repository}: `hf auth login`, or HF_TOKEN"
        raise UserError(f"the hub refuses: {str(error).strip()}{hint}") from error
    except (OSError, HTTP_ERROR, RuntimeError, ValueError) as error:  # RuntimeError: from the threads that upload
        cause = error.__cause__ or error
        raise UserError(f"the push to {repository} broke off ({type(cause).__name__}: {cause}). Try again") from error
