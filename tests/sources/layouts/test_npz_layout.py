"""Google's `.npz` checkpoints: every spelling is the model that it was, and every fault is named."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from limited import ERRORS_OF, MIB, run_limited
from npz_files import NPZ_CONFIG, SPELLINGS, array_of, save_arrays, write_npz
from numpy.lib import format as npy
from raising import raises

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.layouts.npz_layout import read_npz
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from npz_files import Arrays
    from torch import Tensor, nn

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
FEATURES = re.compile("--task image-feature-extraction")
BLOCK = "Transformer/encoderblock_1"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_1"
POSITIONS = "Transformer/posembed_input/pos_embedding"


@pytest.fixture(scope="module")
def make(spread: Callable[[nn.Module, int], None]) -> Callable[..., Any]:
    """Make one of transformers' models of 17 tokens with spread weights."""

    def make_model(architecture: str = "ViTForImageClassification", **changes: Any) -> Any:
        options = {"add_pooling_layer": changes.pop("pooler")} if "pooler" in changes else {}
        config = transformers.ViTConfig(**{**SIZES, **NPZ_CONFIG, **changes})
        model = getattr(transformers, architecture)(config, **options)
        spread(model, 0)
        return model.eval().requires_grad_(False)

    return make_model


@pytest.fixture(scope="module")
def classifier(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.npz"


@pytest.fixture
def arrays(path: Path, classifier: Any) -> Arrays:
    """Those of a sound checkpoint, which stands at `path`."""
    return write_npz(path, classifier)


def reload(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Any:
    """Transformers' model of what was read; no weight may be missing, left over or of another shape."""
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    architecture = getattr(transformers, config["architectures"][0])
    pooler = {"add_pooling_layer": "pooler.dense.weight" in tensors} if architecture is transformers.ViTModel else {}
    model, info = architecture.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **pooler)
    assert not any(info.values()), info
    return model.eval()


def images(model: Any) -> Tensor:
    size = model.vit.config.image_size if hasattr(model, "vit") else model.config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same_logits(path: Path, model: Any) -> dict[str, Any]:
    """Transposing is exact and the model is transformers' in both cases: not near, but equal."""
    config, tensors = read_npz(path)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    with torch.no_grad():
        got, want = (each(images(model)).logits for each in (reload(config, tensors, path.parent), model))
    assert torch.equal(got, want)
    return config


def refuse(path: Path, task: Task | None = None, **fields: object) -> None:
    with raises(CheckpointError, where=path, **fields):
        read_npz(path, task)


# What is read.


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_model_that_it_was(path: Path, classifier: Any, spelling: str, prefix: str) -> None:
    write_npz(path, classifier, spelling, prefix=prefix)
    config = assert_same_logits(path, classifier)
    assert config == {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        **SIZES,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "qkv_bias": True,
    }


@pytest.mark.parametrize("spelling", ["vision_transformer", "big_vision", "big_vision-stacked"])
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 12},
        {"num_attention_heads": 1},
        {"image_size": [32, 16], "patch_size": [8, 4]},
        {"patch_size": 32},  # one patch
        {"image_size": 8, "patch_size": 1, "num_labels": 2},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 12},
    ],
    ids=str,
)
def test_sizes_come_from_the_shapes(path: Path, make: Callable[..., Any], changes: Any, spelling: str) -> None:
    model = make(**changes)
    write_npz(path, model, spelling)
    config = assert_same_logits(path, model)
    assert {name: config[name] for name in changes} == changes
    assert ("head_dim" in config) is ("head_dim" in changes)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", ">f4"])
def test_every_float_is_kept_as_it_is(path: Path, classifier: Any, dtype: str, spelling: str) -> None:
    write_npz(path, classifier, spelling, dtype=dtype)
    _, tensors = read_npz(path)
    kind = torch.float32 if dtype == ">f4" else getattr(torch, dtype)
    exact = path.with_name("exact.npz")
    write_npz(exact, classifier, spelling)
    _, want = read_npz(exact)
    assert tensors.keys() == want.keys()
    assert all(tensor.dtype == kind for tensor in tensors.values())
    assert all(torch.equal(tensors[name], want[name].to(kind)) for name in want)


@pytest.mark.parametrize("spelling", ["vision_transformer", "big_vision-stacked"])
def test_bfloat16_loads_in_transformers(path: Path, make: Callable[..., Any], spelling: str) -> None:
    model = make().to(torch.bfloat16).to(torch.float32)
    if spelling != "vision_transformer":  # cls and its position are summed there, which rounds
        model.vit.embeddings.position_embeddings[:, 0] = 0
    write_npz(path, model, spelling, dtype="bfloat16")
    assert_same_logits(path, model)


def test_arrays_may_be_compressed_and_in_fortran_order(path: Path, classifier: Any, arrays: Arrays) -> None:
    np.savez_compressed(path, **{key: np.asfortranarray(array) for key, array in arrays.items()})  # type: ignore[arg-type]
    assert_same_logits(path, classifier)


@pytest.mark.parametrize("spelling", ["vision_transformer", "big_vision", "big_vision-stacked"])
@pytest.mark.parametrize("width", [None, 24])
def test_pre_logits_are_the_pooler(path: Path, make: Callable[..., Any], width: int | None, spelling: str) -> None:
    model = make("ViTModel", pooler_output_size=width)
    arrays = write_npz(path, model, spelling)
    head = {"head/kernel": np.ones((width or 32, 7), "f4"), "head/bias": np.ones(7, "f4")}
    for each in (arrays, arrays | head):
        save_arrays(path, each)
        for task in (None, Task.FEATURES):
            config, tensors = read_npz(path, task)
            assert config["architectures"] == ["ViTModel"]
            with torch.no_grad():
                got, want = (m(images(model)) for m in (reload(config, tensors, path.parent), model))
            assert torch.equal(got.pooler_output, want.pooler_output)
            assert torch.equal(got.last_hidden_state, want.last_hidden_state)
        refuse(path, Task.CLASSIFICATION, what="task", hint=FEATURES)


def test_features_leave_the_head_out(path: Path, classifier: Any, arrays: Arrays) -> None:
    config, tensors = read_npz(path, Task.FEATURES)
    assert config["architectures"] == ["ViTModel"]
    with torch.no_grad():
        got, want = (m(images(classifier)) for m in (reload(config, tensors, path.parent), classifier.vit))
    assert got.pooler_output is None
    assert torch.equal(got.last_hidden_state, want.last_hidden_state)
    save_arrays(path, {key: array for key, array in arrays.items() if not key.startswith("head/")})
    bare_config, bare = read_npz(path)
    assert bare_config == config
    assert bare.keys() == tensors.keys()
    refuse(path, Task.CLASSIFICATION, what="task", hint=FEATURES)


def test_the_state_of_the_training_is_no_weight(path: Path, classifier: Any) -> None:
    arrays: dict[str, Any] = dict(write_npz(path, classifier, prefix="opt/target/"))
    state = {"opt/state/step": np.int64(7), "opt/state/param_states/cls/momentum": arrays["opt/target/cls"]}
    save_arrays(path, arrays | state | {"extra/accum_train_time": np.float64(1.0)})
    assert_same_logits(path, classifier)
    save_arrays(path, {key.removeprefix("opt/target/"): array for key, array in arrays.items()} | state)
    refuse(path, found="unexpected 'opt/state/step', 'opt/state/param_states/cls/momentum'")


def test_tensors_do_not_share_memory(path: Path, classifier: Any) -> None:
    write_npz(path, classifier, "big_vision-stacked")
    _, tensors = read_npz(path)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors.values())


# What is refused: the weights are not those of a plain Vision Transformer.


def without(*keys: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: array for key, array in arrays.items() if key not in keys}


def having(**changes: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | changes


def to(key: str, change: Callable[[Any], Any]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {key: change(arrays[key])}


def moved(old: str, new: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {re.sub(old, new, key): array for key, array in arrays.items()}


ONE = np.ones((1,), np.float32)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without("cls"), "missing 'cls'"),
        (without("head/bias"), "missing 'head/bias'"),
        (without("head/kernel"), "missing 'head/kernel'"),
        (having(**{"pre_logits/kernel": ONE}), "missing 'pre_logits/bias'"),
        (without(POSITIONS), f"missing '{POSITIONS}'"),
        (without(f"{ATTENTION}/out/bias"), f"missing '{ATTENTION}/out/bias'"),
        (without("Transformer/encoder_norm/scale"), "missing 'Transformer/encoder_norm/scale'"),
        (having(conv_root=ONE, **{"block1/unit1/conv1/kernel": ONE}), "unexpected 'conv_root', 'block1/unit1"),
        (having(**{f"MAPHead_0/{i}": ONE for i in range(9)}), "'MAPHead_0/3' and 5 more"),
        (having(**{f"{BLOCK}/LayerNorm_3/scale": ONE}), f"unexpected '{BLOCK}/LayerNorm_3/scale'"),
        (having(**{"Transformer/encoderblock_01/x": ONE}), "unexpected 'Transformer/encoderblock_01/x'"),
        (having(**{"head/scale": ONE}), "unexpected 'head/scale'"),
        (having(**{"a\nb" * 99: ONE}), r"unexpected 'a\nba\nb"),
        (having(**{f"{BLOCK}/LayerNorm_1/scale": ONE}), f"{BLOCK}/LayerNorm_1/scale"),
        (having(pos_embedding=ONE), "pos_embedding"),
        (moved("encoderblock_1/", "encoderblock_7/"), "0, 2, 7"),
        (moved("encoderblock_0/", "encoderblock_3/"), "1, 2, 3"),
        (moved("encoderblock_0/", "encoderblock/"), "1, 2 and stacked ones"),
        (moved("encoderblock_[0-9]", "layer"), "none"),
        (lambda arrays: {}, "none"),
        (moved("^", "img/"), "none"),
        (lambda a: a | {f"params/{key}": array for key, array in a.items()}, "cls.npy"),
        (lambda a: {p + key: a[key] for key in a for p in ("params/", "opt/target/")}, "['params/', 'opt/target/']"),
    ],
)
def test_other_models_are_refused(path: Path, arrays: Arrays, change: Callable[[Arrays], Arrays], found: str) -> None:
    save_arrays(path, change(arrays))
    refuse(path, found=re.compile(re.escape(found)))


def test_a_missing_key_is_in_the_spelling_of_the_file(path: Path, classifier: Any) -> None:
    arrays = write_npz(path, classifier, "big_vision", prefix="params/")
    key = "params/Transformer/encoderblock_2/MlpBlock_0/Dense_1/bias"
    save_arrays(path, without(key)(arrays))
    refuse(path, found=f"missing '{key}'")


@pytest.mark.parametrize(
    ("key", "change", "found"),
    [
        (POSITIONS, lambda a: a[:, 1:], 16),
        (POSITIONS, lambda a: a[:, :1], 1),
        (POSITIONS, lambda a: a[:, :12], 12),
        (POSITIONS, lambda a: a[0], "one 1, rows, hidden 32"),
        ("cls", lambda a: a.repeat(2, 1), (1, 2, 32)),
        ("cls", lambda a: a[..., :31], (1, 1, 31)),
        ("cls", lambda a: a.sum(), ()),
        ("embedding/kernel", lambda a: a.reshape(-1, 32), "height, width, channels, hidden"),
        ("embedding/kernel", lambda a: a[:, :, :0], (8, 8, 0, 32)),
        ("embedding/bias", lambda a: a[:-1], (31,)),
        (f"{ATTENTION}/query/kernel", lambda a: a.reshape(32, 32), "hidden 32, heads 4, head_dim 8"),
        (f"{ATTENTION}/key/kernel", lambda a: a.reshape(32, 2, 16), (32, 2, 16)),
        (f"{ATTENTION}/value/bias", lambda a: a.ravel(), "heads 4, head_dim 8"),
        (f"{ATTENTION}/out/kernel", lambda a: a[:, :7], (4, 7, 32)),
        (f"{BLOCK}/MlpBlock_3/Dense_0/kernel", lambda a: a[:, :40], "hidden 32, mlp 48"),
        (f"{BLOCK}/MlpBlock_3/Dense_1/kernel", lambda a: a.T, "mlp 48, hidden 32"),
        (f"{BLOCK}/LayerNorm_2/scale", lambda a: a[None], (1, 32)),
        ("head/kernel", lambda a: a[:, :0], (32, 0)),
        ("head/bias", lambda a: a[:4], "classes 5"),
        ("cls", lambda a: a.astype(np.int32), "int32"),
        ("cls", lambda a: a.astype(np.complex64), "complex64"),
        ("cls", lambda a: a.view("V4"), "void32"),
        ("cls", lambda a: a.view([("re", "<f2"), ("im", "<f2")]), "void32"),
        ("cls", lambda a: np.array(["cls"]), "str96"),
    ],
)
def test_other_shapes_and_types_are_refused(
    path: Path, arrays: Arrays, key: str, change: Callable[[Any], Any], found: object
) -> None:
    """`found` is the shape, the rows or the type that the error tells, or the axes that it expects."""
    save_arrays(path, to(key, change)(arrays))
    name = "expected" if isinstance(found, str) and " " in found else "found"
    refuse(path, None, what=key, **{name: found})


@pytest.mark.parametrize("rows", [0, 3, 5, 18])
def test_a_table_above_the_encoder_is_a_square_with_or_without_one(path: Path, classifier: Any, rows: int) -> None:
    arrays = write_npz(path, classifier, "big_vision")
    save_arrays(path, arrays | {"pos_embedding": np.zeros((1, rows, 32), np.float32)})
    if rows == 5:
        assert read_npz(path)[0]["image_size"] == 16
    else:
        refuse(path, what="pos_embedding")


@pytest.mark.parametrize(
    ("leaf", "key", "axes"),
    [
        ("LayerNorm_0/scale", "LayerNorm_0/bias", "layers 2, hidden 32"),  # the first that disagrees
        ("MlpBlock_0/Dense_1/kernel", "MlpBlock_0/Dense_1/kernel", "layers 3, mlp 48, hidden 32"),
    ],
)
def test_a_stack_has_one_depth(path: Path, classifier: Any, leaf: str, key: str, axes: str) -> None:
    arrays = write_npz(path, classifier, "big_vision-stacked")
    save_arrays(path, to(f"Transformer/encoderblock/{leaf}", lambda a: a[:-1])(arrays))
    refuse(path, what=f"Transformer/encoderblock/{key}", expected=axes)


def test_google_has_no_masked_image_models(path: Path, arrays: Arrays) -> None:
    refuse(path, Task.MASKED_IMAGE_MODELING, what="task", found=Task.MASKED_IMAGE_MODELING)


# What is refused: the file is damaged, or something else.


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file_is_refused(path: Path, arrays: Arrays, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refuse(path)


def test_a_file_that_is_no_archive_is_refused(path: Path) -> None:
    refuse(path, found="No such file or directory")
    for content in (b"", b"\x93NUMPY\x01\x00", random.Random(0).randbytes(5000)):
        path.write_bytes(content)
        refuse(path)
    path.unlink()
    path.mkdir()
    refuse(path, found="Is a directory")


def test_a_pickle_is_not_opened(path: Path, arrays: Arrays) -> None:
    marker = path.with_name("ran")

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return marker.touch, ()

    save_arrays(path, arrays | {"cls": np.array([Attack()], dtype=object)})
    refuse(path, what="cls", found=re.compile("Python objects"))
    torch.save({"cls": torch.ones(1)}, path)
    refuse(path)
    assert not marker.exists()


def repack(path: Path, key: str, change: Callable[[bytes], bytes], **options: Any) -> None:
    """Rewrite the archive with other bytes in one member."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{key}.npy"] = change(members[f"{key}.npy"])
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"PK" + content[2:],
        lambda content: content[:6] + b"\x09" + content[7:],
        lambda content: content.replace(b"(1, 1, 32)", b"(1, 1, 32e"),
        lambda content: content.replace(b"(1, 1, 32)", b"(1, -1,-32"),
        lambda content: content.replace(b"(1, 1, 32)", b"(9**9,9,9)"),
        lambda content: content.replace(b"(1, 1, 32), }  ", b"(1, 1, 2**99)} "),
        lambda content: content.replace(b"(1, 1, 32), }    ", b"(1,1,99999999)}  "),
        lambda content: content.replace(b"<f4", b"<q9"),
    ],
)
def test_a_damaged_array_is_refused(path: Path, arrays: Arrays, change: Callable[[bytes], bytes]) -> None:
    repack(path, "cls", change)
    refuse(path, what="cls")


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused(path: Path, arrays: Arrays, seed: int, compression: int) -> None:
    """Any 16 bytes in the middle are covered by a checksum, or by nothing that is read."""
    repack(path, "cls", lambda content: content, compression=compression)
    sound = path.read_bytes()
    _, want = read_npz(path)
    generator = random.Random(seed)
    refused = 0
    for _ in range(40):
        start = generator.randrange(len(sound) - 16)
        path.write_bytes(sound[:start] + generator.randbytes(16) + sound[start + 16 :])
        try:
            _, tensors = read_npz(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(tensors[name], want[name]) for name in want)
    assert refused > 20


def test_an_array_twice_is_refused(path: Path, arrays: Arrays) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cls.npy", archive.read("cls.npy"))
    refuse(path, what="cls", found="cls")


def test_bfloat16_of_the_helper_is_torchs() -> None:
    tensor = torch.tensor([1.0, -2.5, float("inf"), 1e-40])
    array = array_of(tensor, "bfloat16")
    assert array.dtype == np.dtype("V2")
    assert torch.equal(torch.from_numpy(array.view(np.int16)).view(torch.bfloat16), tensor.to(torch.bfloat16))


def test_a_compressed_array_that_explodes_is_refused_unread(path: Path, arrays: Arrays) -> None:
    """A head of 512 MiB in a file of 0.6 MB: more than a small file may hold, and far more than its bytes."""
    classes = 2**22
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, shape in {"head/kernel": (arrays["head/kernel"].shape[0], classes), "head/bias": (classes,)}.items():
            header = io.BytesIO()
            npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                file.write(header.getvalue())
                for _ in range(shape[0] if len(shape) > 1 else 1):
                    file.write(bytes(4 * classes))
        for key in arrays.keys() - {"head/kernel", "head/bias"}:
            content = io.BytesIO()
            np.save(content, arrays[key])
            archive.writestr(f"{key}.npy", content.getvalue())
    imports = "import torch; from vitdeploy.sources.layouts.npz_layout import read_npz; from pathlib import Path"
    done = run_limited(f"{imports}{ERRORS_OF}read_npz(Path(sys.argv[1]))", path)
    assert (done.code, done.errors.split()[0]) == (4, "CheckpointError"), done.errors
    assert done.peak_bytes < 450 * MIB  # 235 MiB of them torch's


def test_a_codec_that_numpy_does_not_write_is_refused(path: Path, arrays: Arrays) -> None:
    """LZMA asks for a dictionary of up to 4 GiB by its first bytes."""
    with zipfile.ZipFile(path) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    refuse(path)
