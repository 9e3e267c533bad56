"""loractl on a real registry, real blobs and real adapter files."""

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import adapter_sync
from adapter_sync.blobs import FolderBlobStore
from adapter_sync.engine_status import EngineStatus
from adapter_sync.errors import AdapterTooLargeError, InvalidApiKeyError
from adapter_sync.loractl import main
from adapter_sync.loractl.upload import stage
from adapter_sync.node import ThisNode
from adapter_sync.record import AdapterStatus, BaseModel
from adapter_sync.registry import Registry
from adapter_sync.settings import Settings
from adapter_sync.tiers import load_tiers

WIDTH, RANK = 16, 4
BAD_PERIODS = ("0d", "-1d", "90", "d", "1.5h", "90d ", "1w", "٩d", "123456d")
MODULE = "model.layers.0.self_attn.q_proj"
KEY_FIELDS = (
    *("id", "tenant", "name", "created_at", "expires_at", "revoked_at"),
    "last_used_at",
)
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own, with nothing set from outside."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("LORA_HOME", str(tmp_path))
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The installation's registry, with one base model."""
    with closing(Registry.open(Settings().registry_url)) as opened:
        opened.put_base_model(
            BaseModel(
                name="tiny",
                max_lora_rank=8,
                max_model_len=512,
                tensor_shapes={f"{MODULE}.weight": (WIDTH, WIDTH)},
            )
        )
        yield opened


@pytest.fixture
def acme(registry: Registry) -> str:
    return registry.create_tenant("acme", "shared").name


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "finance"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(0)
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": random.random((RANK, WIDTH), np.float32),
        f"base_model.model.{MODULE}.lora_B.weight": random.random((WIDTH, RANK), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def upload(file: Path, *more: str, tenant: str = "acme", name: str = "finance") -> list[str]:
    options = ("--tenant", tenant, "--name", name, "--base-model", "tiny")
    return ["adapters", "upload", str(file), *options, *more]


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The one JSON document on stdout."""
    parsed = json.loads(capsys.readouterr().out)
    assert isinstance(parsed, dict)
    return parsed


def data_of(listing: dict[str, object]) -> Sequence[dict[str, object]]:
    assert listing["object"] == "list"
    assert isinstance(listing["data"], list)
    return listing["data"]


@contextmanager
def engine_that_answers(
    registry: Registry, status: AdapterStatus, message: str | None = None
) -> Iterator[None]:
    """Gives each adapter that is loading this status, as adapter_sync would."""
    stop = threading.Event()

    def answer() -> None:
        while not stop.wait(0.02):
            for adapter in registry.desired_adapters("tiny"):
                if adapter.status is AdapterStatus.LOADING:
                    registry.set_adapter_status(
                        adapter.id,
                        adapter.newest.digest,
                        status,
                        error_code=message and "engine_refused",
                        error_message=message,
                    )

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_new_tenant_gets_a_key_that_works(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tenant", "create", "acme", "--tier", "reserved", "--json"]) == 0
    made = document(capsys)
    assert made.keys() == {*KEY_FIELDS, "api_key"}
    tenant = registry.caller(str(made["api_key"])).tenant
    assert (made["tenant"], tenant.name, tenant.tier) == ("acme", "acme", "reserved")


def test_the_text_says_that_the_key_is_shown_only_now(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tenant", "create", "acme", "--tier", "shared"]) == 0
    printed = capsys.readouterr()
    assert "shown only now" in printed.out
    assert registry.caller(printed.out.split()[-1]).tenant.name == "acme"
    assert printed.err == ""


def test_a_second_key_works_beside_the_first(
    registry: Registry, acme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = registry.create_key(acme)
    assert main(["key", "create", "acme", "--json"]) == 0
    made = document(capsys)
    assert made["tenant"] == "acme"
    assert made["api_key"] != first
    for key in (first, str(made["api_key"])):
        assert registry.caller(key).tenant.name == "acme"
    with pytest.raises(InvalidApiKeyError):
        registry.caller("pk-made-up")


@pytest.mark.parametrize(
    ("period", "seconds"), [("90d", 90 * 86_400), ("12h", 12 * 3600), ("30m", 1800)]
)
@pytest.mark.usefixtures("registry", "acme")
def test_a_key_may_have_a_name_and_an_end(
    period: str, seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["key", "create", "acme", "--name", "my laptop", "--expires-in", period, "--json"]
    assert main(command) == 0
    made = document(capsys)
    assert made["name"] == "my laptop"
    assert isinstance(made["expires_at"], int)
    assert abs(made["expires_at"] - time.time() - seconds) < 60
    assert made["id"] == str(made["api_key"]).split("-")[1]


def test_keys_are_listed_newest_first_with_their_state_and_no_secret(
    registry: Registry, acme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    over = registry.issue_key(acme, name="an old one", expires_at=past)
    revoked, valid = registry.issue_key(acme), registry.issue_key(acme)
    registry.revoke_key(revoked.key.id)
    assert main(["key", "list", acme]) == 0
    printed = capsys.readouterr().out
    header, *lines = printed.splitlines()
    assert header.split() == ["ID", "STATE", "CREATED", "EXPIRES", "LAST", "USED", "NAME"]
    assert [line.split()[:2] for line in lines] == [
        [valid.key.id, "valid"],
        [revoked.key.id, "revoked"],
        [over.key.id, "expired"],
    ]
    assert "never" in lines[0]
    assert lines[2].endswith("an old one")
    assert main(["key", "list", acme, "--json"]) == 0
    listed = capsys.readouterr().out
    assert all(tuple(each) == KEY_FIELDS for each in data_of(json.loads(listed)))
    for issued in (over, revoked, valid):
        assert issued.text.split("-", 2)[2] not in printed + listed


def test_a_revoked_key_opens_nothing_and_its_sister_still_does(
    registry: Registry, acme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, kept = registry.issue_key(acme), registry.issue_key(acme)
    for _ in range(2):
        assert main(["key", "revoke", lost.key.id, "--json"]) == 0
        assert document(capsys) == {"id": lost.key.id, "object": "api_key", "revoked": True}
    with pytest.raises(InvalidApiKeyError):
        registry.caller(lost.text)
    assert registry.caller(kept.text).tenant.name == acme


def test_a_tenant_s_tier_is_changed(
    registry: Registry, acme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = registry.create_key(acme)
    assert main(["tenant", "set-tier", acme, "dedicated", "--json"]) == 0
    assert document(capsys)["tier"] == "dedicated"
    assert registry.caller(key).tenant.tier == "dedicated"


def test_a_tenant_with_adapters_is_deleted_only_with_them(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = registry.create_key(acme)
    assert main(upload(peft_folder, "--wait", "0")) == 0
    capsys.readouterr()
    assert main(["tenant", "delete", acme]) == 1
    assert "--with-adapters" in capsys.readouterr().err
    assert registry.caller(key).tenant.name == acme
    tenant_id = registry.tenant(acme).id
    assert main(["tenant", "delete", acme, "--with-adapters", "--json"]) == 0
    assert document(capsys) == {"id": tenant_id, "object": "tenant", "deleted": True}
    assert main(["tenant", "list", "--json"]) == 0
    assert data_of(document(capsys)) == []
    assert [adapter.status for adapter in registry.desired_adapters("tiny")] == ["deleting"]


def test_what_loractl_changes_is_in_the_audit_as_its_own(
    registry: Registry, peft_folder: Path
) -> None:
    assert main(["tenant", "create", "acme", "--tier", "shared"]) == 0
    assert main(upload(peft_folder, "--wait", "0")) == 0
    assert main(["tenant", "delete", "acme", "--with-adapters"]) == 0
    entries = registry.audit().items
    assert {entry.actor for entry in entries} == {"loractl"}
    assert [entry.action for entry in reversed(entries)] == [
        "tenant.created",
        "key.created",
        "adapter.created",
        "adapter.deleted",
        "key.revoked",
        "tenant.deleted",
    ]


def test_tenants_are_listed_in_aligned_columns(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.create_tenant("a-longer-name", "dedicated")
    registry.create_tenant("b", "shared")
    assert main(["tenant", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["TENANT", "TIER"],
        ["a-longer-name", "dedicated"],
        ["b", "shared"],
    ]
    assert len({line.index(word) for line, word in zip(lines, _tiers(lines), strict=True)}) == 1
    assert main(["tenant", "list", "--json"]) == 0
    listed = data_of(document(capsys))
    assert [(each["tenant"], each["tier"]) for each in listed] == [
        ("a-longer-name", "dedicated"),
        ("b", "shared"),
    ]


def _tiers(lines: Sequence[str]) -> list[str]:
    return [line.split()[1] for line in lines]


def test_a_peft_folder_is_uploaded_and_waited_for(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine_that_answers(registry, AdapterStatus.READY):
        assert main(upload(peft_folder, "--json")) == 0
    uploaded = document(capsys)
    [adapter] = registry.adapters()
    weights = peft_folder / "adapter_model.safetensors"
    assert uploaded == {
        "id": adapter.id,
        "tenant": acme,
        "name": "finance",
        "base_model": "tiny",
        "model": "tiny:finance",
        "status": "ready",
        "error": None,
        "size_bytes": adapter.revision.size_bytes,
        "rank": RANK,
        "created_at": int(adapter.created_at.timestamp()),
        "warnings": list(adapter.revision.warnings),
    }
    assert adapter.revision.lora_alpha == 8
    assert adapter.revision.weights_blob == hashlib.sha256(weights.read_bytes()).hexdigest()
    blobs = FolderBlobStore(Settings().blobs_folder)
    assert blobs.path(adapter.revision.weights_blob).read_bytes() == weights.read_bytes()
    assert blobs.path(adapter.revision.config_blob).is_file()


def test_an_adapter_is_replaced_only_when_told_to(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(upload(peft_folder, "--wait", "0")) == 0
    assert main(upload(peft_folder, "--wait", "0")) == 1
    assert "There is already an adapter 'finance'" in capsys.readouterr().err
    assert [each.revision.number for each in registry.adapters()] == [1]
    with engine_that_answers(registry, AdapterStatus.READY):
        assert main(upload(peft_folder, "--replace")) == 0
    [adapter] = registry.adapters(registry.tenant(acme).id)
    assert (adapter.revision.number, adapter.serving) == (2, adapter.revision)


def test_a_config_that_lies_beside_a_file_is_used_only_when_given(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = peft_folder / "adapter_model.safetensors", peft_folder / "adapter_config.json"
    assert main(upload(weights, "--wait", "0", "--lora-alpha", "3", name="without")) == 0
    assert main(upload(weights, "--wait", "0", "--config", str(config), name="with")) == 0
    assert capsys.readouterr().out.count("loading") == 2
    tenant_id = registry.tenant(acme).id
    assert registry.find_adapter(tenant_id, "tiny", "without").revision.lora_alpha == 3
    assert registry.find_adapter(tenant_id, "tiny", "with").revision.lora_alpha == 8


def test_what_was_assumed_is_warned_of_on_stderr(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(upload(peft_folder / "adapter_model.safetensors", "--wait", "0", "--json")) == 0
    printed = capsys.readouterr()
    [adapter] = registry.adapters(registry.tenant(acme).id)
    assert adapter.revision.warnings
    assert json.loads(printed.out)["warnings"] == list(adapter.revision.warnings)
    assert printed.err.splitlines() == [
        f"loractl: warning: {warning}" for warning in adapter.revision.warnings
    ]


@pytest.mark.usefixtures("acme")
def test_an_adapter_that_the_engine_refuses_ends_in_its_reason(
    registry: Registry, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine_that_answers(registry, AdapterStatus.FAILED, "the engine\nsaid no"):
        assert main(upload(peft_folder, "--json")) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"] == {
        "code": "engine_refused",
        "message": "the engine\nsaid no",
    }
    assert printed.err == "loractl: tiny:finance failed: the engine said no\n"
    assert main(["adapters", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("  the engine said no")


@pytest.mark.usefixtures("registry", "acme")
def test_an_adapter_that_nobody_loads_is_not_waited_for_for_ever(
    peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert main(upload(peft_folder, "--wait", "0.3", "--json")) == 1
    assert 0.3 <= time.monotonic() - began < 30
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "loading"
    assert re.fullmatch(
        r"loractl: tiny:finance is added, but not ready after 0\.3 s.*\n", printed.err
    )


def test_a_zip_is_uploaded_like_a_folder(
    registry: Registry, acme: str, peft_folder: Path, tmp_path: Path
) -> None:
    # Told by its content: the name is the operator's.
    archive = tmp_path / "customerA"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in peft_folder.iterdir():
            bundle.write(file, f"finance/{file.name}")
    assert main(upload(peft_folder, "--wait", "0", name="folder")) == 0
    assert main(upload(archive, "--wait", "0", name="zip")) == 0
    of_folder, of_zip = (
        registry.find_adapter(registry.tenant(acme).id, "tiny", name) for name in ("folder", "zip")
    )
    assert of_zip.revision == of_folder.revision
    assert list((Settings().staging_folder / "uploads").iterdir()) == []


def test_a_config_beside_a_zip_that_has_one_is_refused(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, archive = peft_folder / "adapter_config.json", peft_folder / "a.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for file in (peft_folder / "adapter_model.safetensors", config):
            bundle.write(file, file.name)
    assert main(upload(archive, "--config", str(config))) == 1
    assert "Leave out the one beside it" in capsys.readouterr().err
    assert registry.adapters(registry.tenant(acme).id) == []
    assert list((Settings().staging_folder / "uploads").iterdir()) == []


def test_a_bad_upload_leaves_nothing_behind(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = peft_folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert main(upload(peft_folder)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"loractl: [^\n]+\n", printed.err)
    assert registry.adapters(registry.tenant(acme).id) == []
    assert list(FolderBlobStore(Settings().blobs_folder).digests()) == []
    assert list((Settings().staging_folder / "uploads").iterdir()) == []


@pytest.mark.usefixtures("registry", "acme")
def test_a_file_over_the_limit_is_refused_before_it_is_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, staged = tmp_path / "huge.safetensors", tmp_path / "staged"
    with file.open("wb") as sparse:
        sparse.truncate(500_000_001)
    assert main(upload(file)) == 1
    assert "larger than 500 MB" in capsys.readouterr().err
    with pytest.raises(AdapterTooLargeError):
        stage(file, staged, load_tiers().named("shared"))
    assert not staged.exists()


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.usefixtures("registry", "acme")
def test_a_folder_without_both_files_is_refused(
    peft_folder: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (peft_folder / missing).unlink()
    assert main(upload(peft_folder)) == 1
    assert missing in capsys.readouterr().err


def test_adapters_are_listed_for_one_tenant_or_for_all(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.create_tenant("rival", "shared")
    assert main(upload(peft_folder, "--wait", "0")) == 0
    assert main(upload(peft_folder, "--wait", "0", tenant="rival")) == 0
    capsys.readouterr()
    assert main(["adapters", "list", "--json"]) == 0
    listed = data_of(document(capsys))
    assert [each["tenant"] for each in listed] == ["rival", "acme"]
    assert main(["adapters", "list", "--tenant", acme, "--json"]) == 0
    [mine] = data_of(document(capsys))
    assert mine.keys() == {
        "id",
        "tenant",
        "name",
        "base_model",
        "model",
        "status",
        "error",
        "size_bytes",
        "rank",
        "created_at",
    }
    assert main(["adapters", "list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "TENANT", "MODEL", "STATUS", "RANK", "SIZE", "CREATED", "ERROR"]
    assert [line[header.index("MODEL") :].split()[0] for line in lines] == ["tiny:finance"] * 2


def test_an_adapter_is_deleted_only_with_its_own_tenant_s_name(
    registry: Registry, acme: str, peft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.create_tenant("rival", "shared")
    assert main(upload(peft_folder, "--wait", "0")) == 0
    [adapter] = registry.adapters()
    capsys.readouterr()
    assert main(["adapters", "delete", adapter.id, "--tenant", "rival"]) == 1
    assert capsys.readouterr().err == f"loractl: There is no adapter '{adapter.id}'.\n"
    assert registry.adapters() == [adapter]
    assert main(["adapters", "delete", adapter.id, "--tenant", acme, "--json"]) == 0
    assert document(capsys) == {"id": adapter.id, "object": "adapter", "deleted": True}
    assert registry.adapters() == []


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["tenant", "create", "acme", "--tier", "shared"], "already a tenant 'acme'"),
        (["tenant", "create", "Acme", "--tier", "shared"], "'Acme' is not a valid tenant"),
        (["tenant", "create", "other", "--tier", "golden"], "no tier 'golden'"),
        (["key", "create", "nobody"], "no tenant 'nobody'"),
        (["key", "create", "acme", "--name", ""], "'' is not a valid key name"),
        (["key", "list", "nobody"], "no tenant 'nobody'"),
        (["key", "revoke", "0" * 20], "no key '00000000000000000000'"),
        (["tenant", "set-tier", "nobody", "shared"], "no tenant 'nobody'"),
        (["tenant", "set-tier", "acme", "golden"], "no tier 'golden'"),
        (["tenant", "delete", "nobody"], "no tenant 'nobody'"),
        (["adapters", "list", "--tenant", "nobody"], "no tenant 'nobody'"),
        (upload(Path("missing.safetensors")), "missing.safetensors: No such file or directory"),
        (upload(Path("missing.safetensors"), tenant="nobody"), "no tenant 'nobody'"),
    ],
)
@pytest.mark.usefixtures("registry", "acme")
def test_a_refusal_is_one_line_on_stderr(
    argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"loractl: [^\n]+\n", printed.err)
    assert reason in printed.err


def test_a_wrong_setting_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "hunter2")
    assert main(["tenant", "list"]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"loractl: A setting is wrong: GATEWAY_PORT: [^\n]+\n", printed.err)
    assert "hunter2" not in printed.err


def test_tiers_come_from_the_file_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = "\n".join(
        f"{name} = 1"
        for name in (
            "max_adapters",
            "max_adapter_bytes",
            "requests_per_minute",
            "tokens_per_minute",
            "max_streams",
        )
    )
    (tmp_path / "tiers.toml").write_text(f"[golden]\n{limits}\n")
    monkeypatch.setenv("LORA_TIERS_FILE", "tiers.toml")
    assert main(["tenant", "create", "acme", "--tier", "golden"]) == 0
    assert main(["tenant", "create", "other", "--tier", "shared"]) == 1
    assert "The tiers are: golden." in capsys.readouterr().err
    (tmp_path / "tiers.toml").write_text(f"[golden]\n{limits}0\nmax_stream = 1\n")
    assert main(["tenant", "list"]) == 1
    assert re.fullmatch(r"loractl: [^\n]+golden\.max_stream: [^\n]+\n", capsys.readouterr().err)


def test_a_registry_that_can_t_be_opened_is_one_line(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir.write_text("a file in the folder's place")
    assert main(["tenant", "list"]) == 1
    assert re.fullmatch(r"loractl: [^\n]+registry\.db[^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["tenant"],
        ["tenant", "create", "acme"],
        ["tenant", "set-tier", "acme"],
        ["tenant", "delete"],
        ["key", "revoke"],
        *(["key", "create", "acme", "--expires-in", period] for period in BAD_PERIODS),
        ["adapters", "upload", "x"],
        ["adapters", "delete", "adp_0"],
        upload(Path("x"), "--wait", "-1"),
        upload(Path("x"), "--wait", "nan"),
        upload(Path("x"), "--wait", "soon"),
        ["frobnicate"],
    ],
)
def test_wrong_usage_is_status_2_and_makes_nothing(argv: list[str], data_dir: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert not data_dir.exists()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["tenant"],
        ["tenant", "create"],
        ["tenant", "list"],
        ["tenant", "set-tier"],
        ["tenant", "delete"],
        ["key"],
        ["key", "create"],
        ["key", "list"],
        ["key", "revoke"],
        ["adapters"],
        ["adapters", "list"],
        ["adapters", "upload"],
        ["adapters", "delete"],
    ],
)
def test_help_needs_none_of_the_installed_packages(argv: list[str]) -> None:
    # -S and -E: no site-packages, nothing from the environment.
    command = [sys.executable, "-S", "-E", "-m", "adapter_sync.loractl", *argv, "--help"]
    answer = subprocess.run(
        command,
        cwd=Path(adapter_sync.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith("usage: loractl")
    assert len(argv) == 1 or "example: loractl" in answer.stdout


def test_it_runs_as_a_module_and_prints_nothing_but_its_document(
    data_dir: Path, peft_folder: Path, registry: Registry, acme: str
) -> None:
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "adapter_sync.loractl",
            *upload(peft_folder, "--wait", "0", "--json"),
        ],
        cwd=Path(adapter_sync.__file__).parents[1],
        env={"LORA_HOME": str(data_dir.parent), "LORA_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr == ""
    assert json.loads(answer.stdout)["id"] == registry.adapters(registry.tenant(acme).id)[0].id


def test_nodes_are_listed_with_the_maps_that_their_engines_have(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = EngineStatus(companion_revision=7, revision=7, adapters={}, max_loras=4)
    node = ThisNode.load(tmp_path, "127.0.0.1:8000")
    registry.announce_node(node.announcement(registry.base_models(), {"tiny": engine}))
    assert main(["node", "list"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["ID", "STATUS", "HOST"]
    assert line.split()[:4] == [node.id, "up", node.host, "127.0.0.1:8000"]
    assert line.endswith("tiny@7")
    assert main(["node", "list", "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)["data"]
    assert (shown["id"], shown["status"]) == (node.id, "up")
    assert shown["base_models"][0]["max_loras"] == 4


def test_a_base_model_is_reserved_and_released(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    owners = [registry.create_tenant(name, "dedicated") for name in ("big", "corp")]
    words = ["base-model", "reserve", "tiny", "--tenant", "corp", "--tenant", "big"]
    assert main(words) == 0
    assert capsys.readouterr().out == "The base model tiny is reserved to big, corp.\n"
    assert registry.base_model("tiny").reserved_for == frozenset(each.id for each in owners)
    assert registry.audit(limit=1).items[0].actor == "loractl"
    assert main(["base-model", "release", "tiny", "--json"]) == 0
    assert document(capsys)["reserved_for"] is None
    assert registry.base_model("tiny").reserved_for is None
