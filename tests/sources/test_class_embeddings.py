"""Files of class embeddings: what is read of them, and what is refused."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raising import raises

from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import InputError
from vitdeploy.sources.class_embeddings import ClassEmbeddings

VECTORS = np.array([[3.0, 4.0], [0.0, -2.0], [1e-30, 1e-30]])
GIVEN: dict[str, Any] = {"names": np.array(["cat", "dog", "newt"]), "vectors": VECTORS, "logit_scale": np.array(2.0)}


def written(folder: Path, **changed: Any) -> Path:
    path = folder / "classes.npz"
    arrays = {name: value for name, value in {**GIVEN, **changed}.items() if value is not None}
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_vectors_become_rows_of_a_linear_layer(tmp_path: Path, dtype: Any) -> None:
    vectors = np.array([[3.0, 4.0], [0.0, -2.0], [1.0, 1.0]]).astype(dtype)
    read = ClassEmbeddings.read(written(tmp_path, vectors=vectors))
    assert (read.names, read.width, str(read.weight.dtype)) == (("cat", "dog", "newt"), 2, "float32")
    assert read.file.path == "classes.npz"
    wanted = math.exp(2) * np.array([[0.6, 0.8], [0, -1], [0.5**0.5, 0.5**0.5]])
    np.testing.assert_allclose(read.weight, wanted, rtol=1e-6)
    assert (read.bias.tolist(), read.problem_type) == ([0, 0, 0], ProblemType.SINGLE_LABEL)


def test_lengths_may_be_as_small_as_numbers_are(tmp_path: Path) -> None:
    read = ClassEmbeddings.read(written(tmp_path, vectors=VECTORS * 1e-200, logit_scale=np.zeros((1,), np.float32)))
    np.testing.assert_allclose(np.linalg.norm(read.weight, axis=1), 1, rtol=1e-6)


def test_a_bias_or_a_choice_makes_sigmoids(tmp_path: Path) -> None:
    with_bias = ClassEmbeddings.read(written(tmp_path, logit_bias=np.array([-16.5], np.float32)))
    assert (with_bias.bias.tolist(), with_bias.problem_type) == ([-16.5] * 3, ProblemType.PAIRWISE)
    softmax = ClassEmbeddings.read(written(tmp_path, logit_bias=np.array(-16.5), activation=np.array("softmax")))
    assert (softmax.bias.tolist(), softmax.problem_type) == ([-16.5] * 3, ProblemType.SINGLE_LABEL)
    sigmoid = ClassEmbeddings.read(written(tmp_path, activation=np.array(["sigmoid"])))
    assert sigmoid.problem_type is ProblemType.PAIRWISE
    one = written(tmp_path, names=np.array(["cat"]), vectors=VECTORS[:1], activation=np.array("sigmoid"))
    assert ClassEmbeddings.read(one).problem_type is ProblemType.MULTI_LABEL


def test_compressed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "classes.npz"
    np.savez_compressed(path, **GIVEN)
    assert ClassEmbeddings.read(path).names == ("cat", "dog", "newt")


@pytest.mark.parametrize(
    ("changed", "what", "found"),
    [
        ({"names": None}, "names", None),
        ({"vectors": None}, "vectors", None),
        ({"logit_scale": None}, "logit_scale", None),
        ({"logit_bais": np.array(1.0)}, "logit_bais", None),  # a typing error would change every score
        ({"names": np.array(["cat", "dog", "cat"])}, "names", "cat"),
        ({"names": np.array(["cat", "dog"])}, "vectors", (3, 2)),
        ({"names": np.array(["cat", " ", "newt"])}, "names", " "),
        ({"names": np.array(["cat", "a\nb", "newt"])}, "names", "a\nb"),
        ({"names": np.array([b"cat", b"dog", b"newt"])}, "names", "bytes32"),
        ({"names": np.array([["cat", "dog", "newt"]])}, "names", (1, 3)),
        ({"names": np.array([], "U1"), "vectors": VECTORS[:0]}, "names", (0,)),
        ({"names": np.array(["cat"]), "vectors": VECTORS[:1]}, "names", ("cat",)),  # its softmax is always 1
        ({"vectors": VECTORS[0]}, "vectors", (2,)),
        ({"vectors": np.ones((3, 2), np.int64)}, "vectors", "int64"),
        ({"vectors": np.array([[1, 0], [np.nan, 1], [0, 1]])}, "vectors", "dog"),
        ({"vectors": np.array([[1, 0], [np.inf, 1], [0, 1]])}, "vectors", "dog"),
        ({"vectors": np.array([[1.0, 0], [1, 1], [0, 0]])}, "vectors", "newt"),
        ({"vectors": np.ones((3, 0))}, "vectors", "cat"),
        ({"logit_scale": np.array(100.0)}, "logit_scale", 100.0),  # the factor, not its logarithm
        ({"logit_scale": np.array(-1e300)}, "logit_scale", -1e300),  # every logit would be 0
        ({"logit_scale": np.array(np.nan)}, "logit_scale", None),
        ({"logit_scale": np.array([1.0, 2.0])}, "logit_scale", [1.0, 2.0]),
        ({"logit_bias": np.array(np.inf)}, "logit_bias", math.inf),
        ({"logit_bias": np.array(1e300)}, "logit_bias", 1e300),  # infinite in float32
        ({"activation": np.array("relu")}, "activation", "relu"),
        ({"activation": np.array(1.0)}, "activation", "float64"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_what_is_refused(tmp_path: Path, changed: dict[str, Any], what: str, found: object) -> None:
    path = written(tmp_path, **changed)
    fields = {} if found is None else {"found": found}
    with raises(InputError, what=what, where=path, **fields):
        ClassEmbeddings.read(path)


def test_names_are_counted_in_one_pass(tmp_path: Path) -> None:
    names = np.arange(2**18).astype("U7")  # comparing each with all others would take minutes
    names[-1] = names[-2]
    path = written(tmp_path, names=names, vectors=np.ones((len(names), 1), np.float16))
    with raises(InputError, what="names", where=path, found=names[-1]):
        ClassEmbeddings.read(path)


def test_python_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "classes.npz"
    np.savez(path, **{**GIVEN, "names": np.array(["cat", "dog", "newt"], object)})
    with raises(InputError, what="names", where=path):
        ClassEmbeddings.read(path)


def test_an_array_in_two_places_or_without_its_ending_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("logit_bias", b"")
    with raises(InputError, what="logit_bias (not .npy)", where=path):
        ClassEmbeddings.read(path)
    path = written(tmp_path)
    content = io.BytesIO()
    np.save(content, np.array(1.0))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("logit_scale.npy", content.getvalue())
    with raises(InputError, what="logit_scale", where=path):
        ClassEmbeddings.read(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"names,vectors"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "classes.npz"
    path.write_bytes(content)
    with raises(InputError, where=path, expected="an .npz file"):
        ClassEmbeddings.read(path)
    with raises(InputError, where=tmp_path / "absent"):
        ClassEmbeddings.read(tmp_path / "absent")


def test_a_file_cut_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with raises(InputError, where=path):
            ClassEmbeddings.read(path)


def test_a_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    path = tmp_path / "changed.npz"
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = ClassEmbeddings.read(path)
        except InputError:
            continue
        assert read.names == ("cat", "dog", "newt")
        np.testing.assert_allclose(np.linalg.norm(read.weight, axis=1), math.exp(2), rtol=1e-6)
