"""What loractl takes, with its help. Imports nothing outside the standard library by itself."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_WAIT_S = 30.0
_PERIOD = re.compile(r"([1-9][0-9]{0,4})([dhm])", re.ASCII)
_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 with one line on stderr. Raises SystemExit(2) for wrong usage."""
    arguments = _parser().parse_args(argv)
    # --help has to work on a python3 that has none of the project's packages.
    from adapter_sync.loractl.commands import run

    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loractl",
        description="Makes, lists and ends tenants, their keys and their adapters; backs them up.",
        epilog="example: loractl tenant create acme --tier shared",
    )
    areas = parser.add_subparsers(required=True, metavar="AREA")
    _add_tenant(areas.add_parser("tenant", help="the owners of keys and adapters"))
    _add_key(areas.add_parser("key", help="the tenants' API keys"))
    _add_adapters(areas.add_parser("adapters", help="the tenants' LoRA adapters"))
    _add_node(areas.add_parser("node", help="the machines: each Triton with its adapter_sync"))
    _add_base_model(areas.add_parser("base-model", help="whom each base model is for"))
    _command(
        areas,
        "adopt-blobs",
        runs="adopt-blobs",
        summary="make the blobs folder the registry's, though a start refuses the two",
        example="loractl adopt-blobs",
    )
    _add_backup(areas)
    return parser


def _add_backup(areas: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    backup = _command(
        areas,
        "backup",
        runs="backup",
        summary="back the registry and the secret key up, also while serving",
        example="loractl backup /backups/monday --with-blobs",
    )
    backup.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder")
    backup.add_argument(
        "--with-blobs",
        action="store_true",
        help="the adapters' files too: hard links on the same file system, else copies",
    )
    restore = _command(
        areas,
        "restore",
        runs="restore",
        summary="put a back-up in place of what the installation has, while it is not served",
        example="loractl restore /backups/monday",
    )
    restore.add_argument("folder", metavar="FOLDER", type=Path, help="what `backup` made")
    restore.add_argument(
        "--force",
        action="store_true",
        help="also over a registry that is not empty, and without the blobs that are missing",
    )


def _add_base_model(area: argparse.ArgumentParser) -> None:
    commands = area.add_subparsers(required=True, metavar="COMMAND")
    reserve = _command(
        commands,
        "reserve",
        runs="base-model reserve",
        summary="reserve a base model to some tenants alone, whoever it was for before",
        example="loractl base-model reserve llama-acme --tenant acme",
    )
    reserve.add_argument("name", metavar="BASE", help="the base model's name")
    reserve.add_argument(
        "--tenant",
        required=True,
        action="append",
        metavar="NAME",
        help="a tenant whose tier allows own base models; may be given several times",
    )
    release = _command(
        commands,
        "release",
        runs="base-model release",
        summary="let all tenants have a base model again",
        example="loractl base-model release llama-acme",
    )
    release.add_argument("name", metavar="BASE", help="the base model's name")


def _add_node(area: argparse.ArgumentParser) -> None:
    _command(
        area.add_subparsers(required=True, metavar="COMMAND"),
        "list",
        runs="node list",
        summary="list the nodes; one that has been silent for 30 s is lost",
        example="loractl node list --json",
    )


def _add_tenant(area: argparse.ArgumentParser) -> None:
    commands = area.add_subparsers(required=True, metavar="COMMAND")
    create = _command(
        commands,
        "create",
        runs="tenant create",
        summary="make a tenant and its first API key, which is shown only once",
        example="loractl tenant create acme --tier shared",
    )
    create.add_argument("name", metavar="NAME", help="lower-case letters, digits and '-'")
    create.add_argument(
        "--tier",
        required=True,
        metavar="TIER",
        help="shared, reserved or dedicated, unless LORA_TIERS_FILE has others",
    )
    _command(
        commands,
        "list",
        runs="tenant list",
        summary="list the tenants",
        example="loractl tenant list --json",
    )
    set_tier = _command(
        commands,
        "set-tier",
        runs="tenant set-tier",
        summary="give a tenant another tier, at once",
        example="loractl tenant set-tier acme reserved",
    )
    set_tier.add_argument("name", metavar="NAME", help="the tenant's name")
    set_tier.add_argument("tier", metavar="TIER", help="shared, reserved or dedicated")
    delete = _command(
        commands,
        "delete",
        runs="tenant delete",
        summary="delete a tenant; its keys end at once, and its name is free again",
        example="loractl tenant delete acme --with-adapters",
    )
    delete.add_argument("name", metavar="NAME", help="the tenant's name")
    delete.add_argument(
        "--with-adapters",
        action="store_true",
        help="delete its adapters too; without this a tenant that has any is not deleted",
    )


def _add_key(area: argparse.ArgumentParser) -> None:
    commands = area.add_subparsers(required=True, metavar="COMMAND")
    create = _command(
        commands,
        "create",
        runs="key create",
        summary="make another API key of a tenant, which is shown only once",
        example="loractl key create acme --name laptop --expires-in 90d",
    )
    create.add_argument("tenant", metavar="TENANT", help="the tenant's name")
    create.add_argument("--name", metavar="NAME", help="what the key is for, to tell it by")
    create.add_argument(
        "--expires-in",
        metavar="PERIOD",
        type=_period,
        help="how long it is valid: days, hours or minutes as in 90d, 12h or 30m; else for ever",
    )
    listing = _command(
        commands,
        "list",
        runs="key list",
        summary="list a tenant's keys, the newest first, without their secrets",
        example="loractl key list acme",
    )
    listing.add_argument("tenant", metavar="TENANT", help="the tenant's name")
    revoke = _command(
        commands,
        "revoke",
        runs="key revoke",
        summary="end a key at once",
        example="loractl key revoke 0123456789abcdef0123",
    )
    revoke.add_argument("id", metavar="KEY_ID", help="the key's id: of pk-ID-SECRET the ID")


def _add_adapters(area: argparse.ArgumentParser) -> None:
    commands = area.add_subparsers(required=True, metavar="COMMAND")
    listing = _command(
        commands,
        "list",
        runs="adapters list",
        summary="list the adapters, the newest first",
        example="loractl adapters list --tenant acme",
    )
    listing.add_argument("--tenant", metavar="NAME", help="only this tenant's")
    _add_upload(commands)
    delete = _command(
        commands,
        "delete",
        runs="adapters delete",
        summary="delete an adapter; requests in flight finish",
        example="loractl adapters delete adp_0123456789abcdef0123 --tenant acme",
    )
    delete.add_argument("id", metavar="ID", help="the adapter's id, adp_…")
    delete.add_argument("--tenant", required=True, metavar="NAME", help="its tenant's name")


def _add_upload(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    upload = _command(
        commands,
        "upload",
        runs="adapters upload",
        summary="check an adapter, add it and wait until the engine serves it",
        example="loractl adapters upload --tenant acme --name finance "
        "--base-model smollm2-135m-instruct adapters/finance",
    )
    upload.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="adapter_model.safetensors, or a PEFT folder or a .zip with it and its "
        "adapter_config.json",
    )
    upload.add_argument("--tenant", required=True, metavar="NAME", help="the owner's name")
    upload.add_argument("--name", required=True, metavar="NAME", help="the adapter's name")
    upload.add_argument(
        "--base-model", required=True, metavar="BASE", help="the model it was trained on"
    )
    upload.add_argument(
        "--config",
        metavar="JSON",
        type=Path,
        help="its adapter_config.json; without one, rank and modules are read from FILE",
    )
    upload.add_argument(
        "--lora-alpha", metavar="X", type=float, help="where no config says it; else the rank"
    )
    upload.add_argument(
        "--replace",
        action="store_true",
        help="make it a new revision of the adapter of that name, which serves until this one does",
    )
    upload.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_WAIT_S,
        help="how long to wait until it is ready, 0 for not at all (default: %(default)g)",
    )


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    *,
    runs: str,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example: {example}",
    )
    command.add_argument("--json", action="store_true", help="print one JSON document")
    command.set_defaults(command=runs)
    return command


def _period(text: str) -> timedelta:
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not a period such as 90d, 12h or 30m")
    return int(match.group(1)) * _UNITS[match.group(2)]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, 0 or more")
    return seconds
