"""An adapter's upload form, parsed as it streams: the file to disk and hashed, once.

Nothing here knows asyncio: it writes files, so it runs in a thread.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from streaming_form_data import ParseFailedException, StreamingFormDataParser
from streaming_form_data.parser import UnexpectedPartException
from streaming_form_data.targets import BaseTarget

from adapter_sync.errors import AdapterTooLargeError
from adapter_sync.record import ADAPTER_NAME
from adapter_sync.sources.write_back import WriteBack
from adapter_sync.tiers import Tier
from gateway.errors import InvalidRequestError
from gateway.limits import Limits

_FLAGS: Mapping[str, bool] = MappingProxyType({"true": True, "1": True, "false": False, "0": False})
FORM_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {
        "type": "object",
        "required": ["name", "base_model", "file"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": f"^{ADAPTER_NAME.pattern}$"},
            "base_model": {"type": "string", "minLength": 1},
            "file": {
                "type": "string",
                "format": "binary",
                "description": "adapter_model.safetensors, or a zip of it and its config.",
            },
            "config": {
                "type": "object",
                "description": "adapter_config.json; without it rank and modules are the tensors'.",
            },
            "lora_alpha": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Without a config; the rank without it.",
            },
            "replace": {
                "type": "string",
                "enum": list(_FLAGS),
                "description": "Make this the next revision of the adapter of that name.",
            },
        },
    }
)
"""The form in the OpenAPI document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedAdapter:
    """The form's fields, the file's SHA-256 (hex) in place of the file."""

    name: str
    base_model: str
    weights_sha256: str
    config: bytes | None
    lora_alpha: float | None
    replace: bool


class UploadForm:
    """The form as it arrives. `close` it in any case, `finish` it when the body has ended."""

    def __init__(self, content_type: str, weights: Path, *, tier: Tier, limits: Limits) -> None:
        self._file = _FileField("file", weights, tier)
        self._texts = {
            name: _TextField(name, max_bytes)
            for name, max_bytes in (
                ("name", limits.max_field_bytes),
                ("base_model", limits.max_field_bytes),
                ("config", limits.max_config_bytes),
                ("lora_alpha", limits.max_field_bytes),
                ("replace", limits.max_field_bytes),
            )
        }
        self._fields: Mapping[str, _Field] = {"file": self._file, **self._texts}
        self._parser = _parser(content_type, self._fields)
        self._max_overhead_bytes = limits.max_form_overhead_bytes
        self._fed_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises InvalidRequestError, AdapterTooLargeError."""
        self._fed_bytes += len(data)
        try:
            self._parser.data_received(data)
        except UnexpectedPartException as error:
            raise InvalidRequestError(
                f"Unknown parameter: '{error.part_name}'.",
                param=error.part_name,
                code="unknown_parameter",
            ) from error
        except (ParseFailedException, UnicodeDecodeError) as error:
            raise _malformed() from error
        # The parser keeps a part's headers in memory for as long as they go on.
        taken = sum(one.size_bytes for one in self._fields.values())
        if self._fed_bytes - taken > self._max_overhead_bytes:
            raise _malformed()

    def finish(self) -> UploadedAdapter:
        """The fields. Raises InvalidRequestError when one is missing, empty or wrong."""
        for one in self._fields.values():
            one.check_complete()
        if not self._file.present:
            raise _missing("file")
        return UploadedAdapter(
            name=self._required_text("name"),
            base_model=self._required_text("base_model"),
            weights_sha256=self._file.sha256,
            config=self._texts["config"].value,
            lora_alpha=_positive("lora_alpha", self._text("lora_alpha")),
            replace=_flag("replace", self._text("replace")),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _required_text(self, name: str) -> str:
        text = self._text(name)
        if text is None:
            raise _missing(name)
        return text

    def _text(self, name: str) -> str | None:
        value = self._texts[name].value
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"Invalid '{name}': not UTF-8.", param=name) from error


class _Field(BaseTarget):  # type: ignore[misc]  # the library has no types
    """A field of the form, at most once and at most so large."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.present = False
        self.size_bytes = 0

    def on_start(self) -> None:
        if self.present:
            raise InvalidRequestError(f"The field '{self.name}' is there twice.", param=self.name)
        self.present = True

    def on_data_received(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        self.take(chunk)

    def take(self, chunk: bytes) -> None:
        raise NotImplementedError

    def check_complete(self) -> None:
        if not self.present:
            return
        if not self._finished:
            raise _malformed()
        if self.size_bytes == 0:
            raise InvalidRequestError(
                f"Invalid '{self.name}': it is empty.", param=self.name, code="empty_field"
            )


class _TextField(_Field):
    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__(name)
        self._max_bytes = max_bytes
        self._content = bytearray()

    @property
    def value(self) -> bytes | None:
        return bytes(self._content) if self.present else None

    def take(self, chunk: bytes) -> None:
        if self.size_bytes > self._max_bytes:
            raise InvalidRequestError(
                f"Invalid '{self.name}': it is larger than {self._max_bytes} bytes, the limit.",
                param=self.name,
                code="field_too_large",
            )
        self._content += chunk


class _FileField(_Field):
    def __init__(self, name: str, path: Path, tier: Tier) -> None:
        super().__init__(name)
        self._path = path
        self._tier = tier
        self._hash = sha256()
        self._file: BinaryIO | None = None
        self._target: WriteBack | None = None

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def on_start(self) -> None:
        super().on_start()
        self._file = self._path.open("wb")
        self._target = WriteBack(self._file)

    def take(self, chunk: bytes) -> None:
        if self.size_bytes > self._tier.max_adapter_bytes:
            raise AdapterTooLargeError(
                limit_bytes=self._tier.max_adapter_bytes, tier=self._tier.name
            )
        if self._target is not None:
            self._target.write(chunk)
        self._hash.update(chunk)

    def on_finish(self) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _parser(content_type: str, fields: Mapping[str, _Field]) -> StreamingFormDataParser:
    try:
        parser = StreamingFormDataParser(headers={"Content-Type": content_type}, strict=True)
    except ParseFailedException as error:
        raise InvalidRequestError(
            "Send the adapter as multipart/form-data, with a boundary in the content type.",
            param=None,
            code="invalid_content_type",
        ) from error
    for name, one in fields.items():
        parser.register(name, one)
    return parser


def _positive(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InvalidRequestError(
            f"Invalid '{name}': expected a number above 0, but got '{text}' instead.",
            param=name,
            code="invalid_value",
        )
    return number


def _flag(name: str, text: str | None) -> bool:
    flag = False if text is None else _FLAGS.get(text.lower())
    if flag is None:
        raise InvalidRequestError(
            f"Invalid '{name}': expected true or false, but got '{text}' instead.",
            param=name,
            code="invalid_value",
        )
    return flag


def _missing(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
    )


def _malformed() -> InvalidRequestError:
    return InvalidRequestError(
        "The body is not well-formed multipart/form-data, or ends before its last boundary.",
        param=None,
        code="invalid_form",
    )
