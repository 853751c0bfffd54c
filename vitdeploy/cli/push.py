"""`vitdeploy push`."""

from __future__ import annotations

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import PATH, json_option, print_json, print_text
from vitdeploy.cli.progress import CommandProgress

_CARDS = {
    "written": "README.md: written from the manifest",
    "own": "README.md: taken from the bundle's folder",
    "kept": "README.md: the repository's own was kept; --replace-card overwrites it",
}


@command(examples=("push vit my-name/vit-onnx", "push vit my-org/vit-onnx --private --message 'int8 added'"))
@click.argument("bundle", type=PATH)
@click.argument("name")
@option("--revision", help="Branch; created if missing.  [default: main]")
@option(
    "--private/--public", "private", default=None,
    help="Visibility of a new repository. Default: the Hub's setting for the owner.",
)  # fmt: skip
@option("--token", envvar="HF_TOKEN", help="Hub token with write permission.  [env: HF_TOKEN; default: hf auth login]")
@option("--message", help="Commit message.")
@option("--replace-card", is_flag=True, help="Overwrite the repository's README.md with the model card.")
@json_option
def push(
    bundle: str,
    name: str,
    revision: str | None,
    private: bool | None,
    token: str | None,
    message: str | None,
    replace_card: bool,
    as_json: bool,
) -> None:
    """Push BUNDLE to the model repository NAME on the Hugging Face Hub, in one commit.

    NAME is ORG/NAME. Every file is verified first. A model card (README.md) is written from the manifest. An earlier
    bundle in the repository is replaced.
    """
    from vitdeploy.delivery.hub_upload import push as push_bundle

    with CommandProgress("files") as progress:
        pushed = push_bundle(
            bundle, name, revision=revision, private=private, token=token, message=message, replace_card=replace_card,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({"bundle": bundle, **pushed.to_dict()})
        return
    print_text(f"{pushed.url}: {len(pushed.files)} files in commit {pushed.commit}")
    print_text(_CARDS[pushed.card])
