"""A vendor for a JSON index of models: "shelf:NAME" is the model of that name in the index that the setting "index" names."""

import json
import os

import apiary

# What the plugin says about itself. It is packed beside this file, and lies beside the program for whoever installs it.
MANIFEST = json.loads(__loader__.get_data(os.path.join(os.path.dirname(__file__), "manifest.json")))


class Shelf:
    """One type with a method for each of the contract. Requests and answers are dicts with the fields of the messages."""

    def __init__(self, host):
        self.host = host
        self.index = ""

    def get_info(self, _):
        return MANIFEST["info"]

    def get_schema(self, _):
        return MANIFEST["schema"]

    def configure(self, request):
        try:
            self.index = json.loads(request.get("configJson") or "{}")["index"]
        except (ValueError, KeyError, TypeError):
            self.index = ""
        if not self.index or not isinstance(self.index, str):
            raise apiary.Error("invalid", "no_index", "The setting index must be the URL of an index of models.", param="index")
        return {}

    def resolve(self, request):
        reference = request.get("reference", "")
        name = reference.removeprefix("shelf:")
        index = self.fetch()
        try:
            for model in json.loads(index)["models"]:
                if model["name"] == name:
                    return {"reference": reference, "format": model.get("format", "gguf"), "files": [self.file(f) for f in model["files"]]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # what servers answer has any shape
            raise unreadable() from None
        raise apiary.Error("not_found", "model_not_found", f"The index has no model {name}; check its name.")

    @staticmethod
    def file(f):
        return {
            "path": f["path"], "role": "weights", "size": int(f.get("size", -1)), "digests": {"sha256": f.get("sha256", "")},
            "sources": [{"url": f["url"], "ranges": True}],
        }

    def fetch(self):
        """The index. The host makes the request, and refuses servers that were not granted."""
        answer = self.host.call("HttpDo", {"method": "GET", "url": self.index})
        if answer.get("status") != 200:
            raise unreadable()
        return answer.get("body", b"")


def unreadable():
    return apiary.Error("unavailable", "no_index", "The index of models could not be read; check the setting index, or try again later.")


if __name__ == "__main__":
    apiary.serve(Shelf)
