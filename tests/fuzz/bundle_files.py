"""A bundle whose manifest, configuration or artifacts are not what they were."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from fuzz.cases import DAMAGED, PASSED, UNAVAILABLE, USAGE, Case
from fuzz.damage import choose, damaged, odd_json
from fuzz.special_files import copy_tree, replace, rewrite
from vitdeploy.runtimes.choice import TunedElsewhereWarning

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_MANIFEST_SHARE = 0.5


class BundleFiles:
    """manifest.json, and each file that it names.

    Oracle: a file that it names and that is altered is refused with 4 by whoever reads it, and by verify always. A
    manifest that can be read may say that there is no such artifact (2), or that it is for another machine (3); what
    predicts nevertheless predicts as the undamaged bundle.
    """

    def __init__(self, base: Path) -> None:
        self._bundle, self._image = base / "bundle", str(base / "data" / "cat" / "0.png")
        self._manifest = json.loads((self._bundle / "manifest.json").read_bytes())
        self._predictions = _predictions(self._bundle, self._image)
        self._files = sorted(path for path in self._bundle.rglob("*") if path.is_file())

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        bundle = copy_tree(self._bundle, folder / "bundle")
        command = choose(rng, ("verify", "predict", "predict torch", "inspect"))
        if rng.random() < _MANIFEST_SHARE:
            note, text, _ = odd_json(rng, self._manifest)
            rewrite(bundle / "manifest.json", text)
            return self._case(f"manifest: {note}", command, frozenset({PASSED, USAGE, UNAVAILABLE, DAMAGED}))
        file = bundle / choose(rng, self._files).relative_to(self._bundle)
        kind = choose(rng, ("damaged", "special", "swapped", "folder", "extra"))
        content, same = file.read_bytes(), False
        if kind == "damaged":
            kind, content = damaged(rng, content)
            rewrite(file, content)
        elif kind == "special":
            kind, same = replace(rng, file)
        elif kind == "swapped":
            other = bundle / choose(rng, self._files).relative_to(self._bundle)
            rewrite(file, other.read_bytes())
        elif kind == "folder" and file.parent != bundle:  # a folder that is a link, or a file
            kind, same = _replace_folder(rng, file.parent)
        else:
            extra = choose(rng, ("processor_config.json", "x", "onnx/x.onnx", "adapter_config.json", ".hidden"))
            (bundle / extra).parent.mkdir(exist_ok=True)
            (bundle / extra).write_text("{}")
            kind, same, file = f"extra {extra}", extra != "processor_config.json", bundle / extra
        source = self._bundle / file.relative_to(bundle)
        plain = file.is_file() and not file.is_symlink()
        whole = same or (plain and source.is_file() and file.read_bytes() == source.read_bytes())
        name = file.relative_to(bundle).as_posix()
        allowed = frozenset({PASSED}) if whole else frozenset({DAMAGED})
        if not whole and not self._is_read(command, name):
            allowed = frozenset({PASSED, DAMAGED})
        return self._case(f"file: {name} {kind}", command, allowed)

    @staticmethod
    def _is_read(command: str, name: str) -> bool:
        if command == "verify" or (name in ("manifest.json", "processor_config.json") and command != "inspect"):
            return name != "x"
        reads = {"predict": "onnx/", "predict torch": "model.safetensors", "inspect": "onnx/"}[command]
        configs = ("config.json", "preprocessor_config.json")
        return name.startswith(reads) or (name in configs and command != "inspect") or name == "manifest.json"

    def _case(self, note: str, command: str, allowed: frozenset[int]) -> Case:
        if command in ("verify", "inspect"):
            return Case(f"{note} ({command})", (command, "bundle", "--json"), allowed)
        backend = ("--backend", "torch") if command.endswith("torch") else ()

        def check(out: str) -> str | None:
            scores = [one["score"] for one in json.loads(out)["results"][0]["predictions"]]
            worst = max((abs(a - b) for a, b in zip(scores, self._predictions, strict=False)), default=1.0)
            return None if len(scores) == len(self._predictions) and worst < 1e-4 else f"other scores: {scores}"

        return Case(f"{note} ({command})", ("predict", "bundle", self._image, *backend, "--json"), allowed, check)


class TunedBundles:
    """The tuned choice in a manifest, and its evidence.

    Oracle: refused; or, opened by default, it predicts as the undamaged bundle, with whatever setting.
    """

    def __init__(self, base: Path) -> None:
        self._bundle, self._image = base / "tuned", str(base / "data" / "cat" / "0.png")
        self._manifest = json.loads((self._bundle / "manifest.json").read_bytes())
        self._predictions = _predictions(self._bundle, self._image)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        bundle = copy_tree(self._bundle, folder / "bundle")
        tuned, note = self._manifest["tuned"], ""
        if rng.random() < 0.9:
            note, text, _ = odd_json(rng, tuned, more_keys=tuple(tuned))
            whole = json.dumps({**self._manifest, "tuned": 0}).encode()
            rewrite(bundle / "manifest.json", whole.replace(b'"tuned": 0', b'"tuned": ' + text))
        else:
            note, content = damaged(rng, (bundle / "tuning.json").read_bytes())
            rewrite(bundle / "tuning.json", content)

        def call() -> list[float]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TunedElsewhereWarning)
                return _predictions(bundle, self._image)

        def check(scores: list[float]) -> str | None:
            worst = max((abs(a - b) for a, b in zip(scores, self._predictions, strict=False)), default=1.0)
            return None if len(scores) == len(self._predictions) and worst < 1e-4 else f"other scores: {scores}"

        allowed = frozenset({PASSED, USAGE, UNAVAILABLE, DAMAGED})
        return Case(f"tuned: {note}", ("predict", "bundle", self._image, "--json"), allowed, check, call)


def _replace_folder(rng: np.random.Generator, folder: Path) -> tuple[str, bool]:
    kind = choose(rng, ("file", "link", "gone"))
    elsewhere = folder.rename(folder.parent.parent / "elsewhere")
    if kind == "file":
        folder.write_bytes(b"x")
    elif kind == "link":
        folder.symlink_to(elsewhere, target_is_directory=True)
    return f"folder: {kind}", kind == "link"


def _predictions(bundle: Path, image: str) -> list[float]:
    import vitdeploy

    with vitdeploy.load(bundle) as predictor:
        (best,) = predictor.predict([image])
    found: list[Any] = [prediction.score for prediction in best]
    return found
