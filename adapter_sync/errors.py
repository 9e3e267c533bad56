"""Every error that adapter_sync and the gateway raise on purpose.

    LoraServerError
    ├── PermanentError              asking again the same way can't help
    │   ├── InvalidAdapterError     the upload is not an adapter that its base model can serve
    │   ├── AdapterTooLargeError    more bytes than the tenant's tier allows
    │   ├── AdapterLimitError       as many adapters as the tenant's tier allows
    │   ├── AdapterExistsError      the tenant has an adapter of that name on that base model
    │   ├── AdapterNotFoundError    no such adapter, or another tenant's: the same words for both
    │   ├── BaseModelNotFoundError  no such base model
    │   ├── InvalidNameError        a name that does not follow its pattern
    │   ├── InvalidApiKeyError      no key, or one that was never issued
    │   ├── TenantExistsError
    │   ├── TenantNotFoundError
    │   ├── UnknownTierError        no tier of that name
    │   ├── TierMissingError        a tenant's tier is not, or no more, among the tiers
    │   └── ConfigurationError      a setting or a file of the installation is wrong
    └── TransientError              may succeed later, with nothing changed by the caller
        ├── TritonUnavailableError  Triton does not answer, or not in time
        └── TritonRefusedError      Triton answered with an error

Imports nothing of the project.
"""

from collections.abc import Sequence


class LoraServerError(Exception):
    """The root. `code` is the OpenAI envelope's `code`; `param` names the field at fault."""

    code: str | None = "server_error"
    param: str | None = None


class PermanentError(LoraServerError):
    """Asking again the same way can't help."""


class TransientError(LoraServerError):
    """May succeed later, with nothing changed by the caller."""


class InvalidAdapterError(PermanentError):
    """The upload is not an adapter that its base model can serve.

    `message` names what is wrong, what was found and what was expected; `param` is the form
    field at fault: `file`, `config` or `lora_alpha`.
    """

    code = "invalid_adapter"

    def __init__(self, message: str, *, param: str = "file") -> None:
        super().__init__(message)
        self.param = param


class AdapterTooLargeError(PermanentError):
    """The adapter has more bytes than the tenant's tier allows."""

    code = "adapter_too_large"
    param = "file"

    def __init__(self, *, limit_bytes: int, tier: str) -> None:
        megabytes = limit_bytes / 1_000_000
        super().__init__(
            f"The adapter is larger than {megabytes:.0f} MB ({limit_bytes} bytes), the limit of "
            f"the tier '{tier}'. Train with a smaller rank or fewer target modules."
        )


class AdapterLimitError(PermanentError):
    """The tenant has as many adapters as its tier allows."""

    code = "adapter_limit_reached"

    def __init__(self, *, limit: int, tier: str) -> None:
        super().__init__(
            f"The tier '{tier}' allows {limit} adapters and all are in use. Delete one first."
        )


class AdapterExistsError(PermanentError):
    """The tenant already has an adapter of that name on that base model."""

    code = "adapter_exists"
    param = "name"

    def __init__(self, *, name: str, base_model: str, adapter_id: str) -> None:
        super().__init__(
            f"There is already an adapter '{name}' on '{base_model}' ({adapter_id}). Delete it "
            "first or choose another name."
        )


class AdapterNotFoundError(PermanentError):
    """No such adapter for this tenant; another tenant's adapter is not told apart."""

    code = "adapter_not_found"

    def __init__(self, *, adapter_id: str) -> None:
        super().__init__(f"There is no adapter '{adapter_id}'.")


class BaseModelNotFoundError(PermanentError):
    """No such base model."""

    code = "model_not_found"
    param = "base_model"

    def __init__(self, *, base_model: str, known: Sequence[str]) -> None:
        names = ", ".join(f"'{name}'" for name in sorted(known)) or "none yet"
        super().__init__(f"There is no base model '{base_model}'. The base models are: {names}.")


class InvalidNameError(PermanentError):
    """A name does not follow its pattern."""

    code = "invalid_name"

    def __init__(self, *, name: str, param: str, rule: str) -> None:
        super().__init__(f"'{name}' is not a valid {param.replace('_', ' ')}: {rule}")
        self.param = param


class InvalidApiKeyError(PermanentError):
    """No key was given, or one that was never issued."""

    code = "invalid_api_key"


class TenantExistsError(PermanentError):
    """A tenant of that name exists."""

    code = "tenant_exists"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"There is already a tenant '{name}'.")


class TenantNotFoundError(PermanentError):
    """No tenant of that name."""

    code = "tenant_not_found"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"There is no tenant '{name}'. `loractl tenant create` makes one.")


class UnknownTierError(PermanentError):
    """No tier of that name."""

    code = "unknown_tier"

    def __init__(self, *, tier: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no tier '{tier}'. The tiers are: {', '.join(sorted(known))}.")


class TierMissingError(PermanentError):
    """A tenant has a tier that the installation's tiers file does not have."""

    code = "tier_missing"

    def __init__(self, *, tier: str) -> None:
        super().__init__(
            f"Your tier '{tier}' is not configured on this server. Ask its operator to add it to "
            "the tiers file."
        )


class ConfigurationError(PermanentError):
    """A setting or a file of the installation is wrong; the message says which and how."""

    code = "configuration_error"


class TritonUnavailableError(TransientError):
    """Triton does not answer, or not in time."""

    code = "server_is_overloaded"


class TritonRefusedError(TransientError):
    """Triton answered a control call with an error; the message is Triton's."""

    code = "server_error"
