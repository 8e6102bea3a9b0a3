"""What huggingface_hub gets from a hub: hub.py ENDPOINT REPO GATED TOKEN CACHE; prints JSON."""
import hashlib
import json
import os
import sys

endpoint, repo, gated, token, cache = sys.argv[1:]
os.environ["HF_ENDPOINT"] = endpoint
os.environ["HF_HOME"] = cache
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from huggingface_hub import HfApi, hf_hub_download, snapshot_download


def digests(folder):
    out = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            with open(path, "rb") as f:
                out[os.path.relpath(path, folder)] = hashlib.sha256(f.read()).hexdigest()
    return out


def failure(call):
    try:
        call()
    except Exception as e:
        return type(e).__name__
    return ""


api = HfApi(endpoint=endpoint, token=False)
info = api.model_info(repo, files_metadata=True)
print(json.dumps({
    "commit": info.sha,
    "listed": {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in api.list_repo_tree(repo, recursive=True) if hasattr(e, "blob_id")},
    "files": digests(snapshot_download(repo, endpoint=endpoint, token=False)),
    "pull_request": digests(snapshot_download(repo, revision="refs/pr/1", endpoint=endpoint, token=False)),
    "gated": failure(lambda: hf_hub_download(gated, "m-Q8_0.gguf", endpoint=endpoint, token=False)),
    "with_token": failure(lambda: hf_hub_download(gated, "m-Q8_0.gguf", endpoint=endpoint, token=token)),
    "no_repo": failure(lambda: hf_hub_download("test/none", "x", endpoint=endpoint, token=token)),
    "no_revision": failure(lambda: hf_hub_download(repo, "README.md", revision="v9", endpoint=endpoint, token=False)),
    "no_file": failure(lambda: hf_hub_download(repo, "none.gguf", endpoint=endpoint, token=False)),
}))
