"""Every error that adapter_sync and the gateway raise on purpose.

    LoraServerError
    ├── PermanentError              asking again the same way can't help
    │   ├── InvalidAdapterError     the upload is not an adapter that its base model can serve
    │   ├── AdapterTooLargeError    more bytes than the tenant's tier allows
    │   ├── AdapterLimitError       as many adapters as the tenant's tier allows
    │   ├── AdapterExistsError      the tenant has an adapter of that name on that base model
    │   ├── AdapterNotFoundError    no such adapter, or another tenant's: the same words for both
    │   ├── RevisionNotFoundError   the adapter has no such revision, or none any more
    │   ├── NoEarlierRevisionError  the adapter has nothing to go back to
    │   ├── PreconditionFailedError the adapter is not what If-Match says
    │   ├── BaseModelNotFoundError  no such base model
    │   ├── FetchInProgressError    an adapter of that name is on its way from a repo
    │   ├── FetchGoneError          somebody deleted the fetch that is being done
    │   ├── InvalidRepoError        what can't name a Hugging Face repo, revision or folder
    │   ├── RepoNotFoundError       no such repo or revision, or none that may be read
    │   ├── AdaptersNotSupportedError  the base model takes no adapters
    │   ├── AliasNotFoundError      no such alias, or another tenant's: the same words for both
    │   ├── AliasNameTakenError     a base model has that name
    │   ├── AliasLimitError         as many aliases as a tenant may have
    │   ├── InvalidNameError        a name that does not follow its pattern
    │   ├── InvalidApiKeyError      no key, or one that is not valid (any more)
    │   ├── TenantExistsError
    │   ├── TenantNotFoundError
    │   ├── TenantHasAdaptersError  a tenant can't be deleted before its adapters
    │   ├── KeyNotFoundError
    │   ├── UnknownCursorError      a list can't go on after something that isn't there
    │   ├── UnknownTierError        no tier of that name
    │   ├── OwnBaseModelError       a tenant whose tier allows no base model of its own
    │   ├── TierMissingError        a tenant's tier is not, or no more, among the tiers
    │   └── ConfigurationError      a setting or a file of the installation is wrong
    └── TransientError              may succeed later, with nothing changed by the caller
        ├── HubUnavailableError     the Hugging Face hub does not answer as it should
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
            f"There is already an adapter '{name}' on '{base_model}' ({adapter_id}). Send "
            "replace=true to make this its new revision, or choose another name."
        )


class AdapterNotFoundError(PermanentError):
    """No such adapter for this tenant; another tenant's adapter is not told apart."""

    code = "adapter_not_found"

    def __init__(self, *, adapter_id: str) -> None:
        super().__init__(f"There is no adapter '{adapter_id}'.")


class RevisionNotFoundError(PermanentError):
    """The adapter has no revision of that number, or keeps it no longer."""

    code = "revision_not_found"
    param = "revision"

    def __init__(self, *, number: int, kept: Sequence[int]) -> None:
        numbers = ", ".join(str(each) for each in sorted(kept, reverse=True))
        super().__init__(f"There is no revision {number}. The revisions kept are: {numbers}.")


class NoEarlierRevisionError(PermanentError):
    """The adapter's newest revision is the only one kept."""

    code = "no_earlier_revision"

    def __init__(self, *, adapter_id: str, number: int) -> None:
        super().__init__(
            f"The adapter '{adapter_id}' has only its revision {number}, so there is nothing to "
            "go back to."
        )


class PreconditionFailedError(PermanentError):
    """The adapter is not what If-Match says: somebody changed it, or there is none."""

    code = "precondition_failed"

    def __init__(self) -> None:
        super().__init__(
            "The adapter is not the one that If-Match names: it was changed or deleted since. "
            "Read the adapter again and send its etag."
        )


class BaseModelNotFoundError(PermanentError):
    """No such base model."""

    code = "model_not_found"
    param = "base_model"

    def __init__(self, *, base_model: str, known: Sequence[str]) -> None:
        names = ", ".join(f"'{name}'" for name in sorted(known)) or "none yet"
        super().__init__(f"There is no base model '{base_model}'. The base models are: {names}.")


class FetchInProgressError(PermanentError):
    """An adapter of that name is on its way here from a repo."""

    code = "fetch_in_progress"
    param = "name"

    def __init__(self, *, name: str, base_model: str, adapter_id: str) -> None:
        super().__init__(
            f"The adapter '{name}' on '{base_model}' ({adapter_id}) is being fetched already. "
            "Wait for it, or delete it first."
        )


class FetchGoneError(PermanentError):
    """Somebody deleted the fetch that is being done: there is nobody to tell."""

    def __init__(self, *, adapter_id: str) -> None:
        super().__init__(f"The fetch of '{adapter_id}' was deleted.")


class InvalidRepoError(PermanentError):
    """What can't name a Hugging Face repo, a revision or a folder in it."""

    code = "invalid_repo"

    def __init__(self, *, param: str, found: str, expected: str) -> None:
        super().__init__(f"Invalid '{param}': expected {expected}, but got {found!r}.")
        self.param = param


class RepoNotFoundError(PermanentError):
    """No such repo or revision, or none that the sender's token may read."""

    code = "repo_not_found"

    def __init__(self, message: str, *, param: str = "repo") -> None:
        super().__init__(message)
        self.param = param


class AdaptersNotSupportedError(PermanentError):
    """The base model takes no adapters: an embedding model, or one served without LoRA."""

    code = "adapters_not_supported"
    param = "base_model"

    def __init__(self, *, base_model: str, taking: Sequence[str]) -> None:
        names = ", ".join(f"'{name}'" for name in sorted(taking)) or "none yet"
        super().__init__(
            f"The base model '{base_model}' takes no adapters: it is an embedding model or is "
            f"served without LoRA. The base models that take adapters are: {names}."
        )


class AliasNotFoundError(PermanentError):
    """No such alias for this tenant; another tenant's alias is not told apart."""

    code = "alias_not_found"

    def __init__(self, *, alias: str) -> None:
        super().__init__(f"There is no alias '{alias}'.")


class AliasNameTakenError(PermanentError):
    """A base model has the name that the alias is to have."""

    code = "model_exists"
    param = "alias"

    def __init__(self, *, alias: str) -> None:
        super().__init__(
            f"'{alias}' is a base model's name and can't be an alias. Choose another name."
        )


class AliasLimitError(PermanentError):
    """The tenant has as many aliases as it may have."""

    code = "alias_limit_reached"

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"A tenant may have {limit} aliases and all are in use. Delete one first.")


class InvalidNameError(PermanentError):
    """A name does not follow its pattern."""

    code = "invalid_name"

    def __init__(self, *, name: str, param: str, rule: str, kind: str | None = None) -> None:
        super().__init__(f"'{name}' is not a valid {kind or param.replace('_', ' ')}: {rule}")
        self.param = param


class InvalidApiKeyError(PermanentError):
    """No key was given, or one that was never issued, was revoked or has expired."""

    code = "invalid_api_key"


class TenantExistsError(PermanentError):
    """A tenant of that name exists."""

    code = "tenant_exists"
    param = "name"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"There is already a tenant '{name}'.")


class TenantNotFoundError(PermanentError):
    """No tenant of that name."""

    code = "tenant_not_found"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"There is no tenant '{name}'. `loractl tenant create` makes one.")


class TenantHasAdaptersError(PermanentError):
    """A tenant can't be deleted while it has adapters."""

    code = "tenant_has_adapters"

    def __init__(self, *, name: str, count: int) -> None:
        super().__init__(
            f"The tenant '{name}' has adapters: {count}. Delete them first, or with it: "
            "`loractl tenant delete --with-adapters`, or `?with_adapters=true` over HTTP."
        )


class KeyNotFoundError(PermanentError):
    """No key of that id."""

    code = "key_not_found"

    def __init__(self, *, key_id: str) -> None:
        super().__init__(
            f"There is no key '{key_id}'. A key's id are the 20 digits between the dashes of "
            "pk-…-…, as `loractl key list` shows them."
        )


class UnknownCursorError(PermanentError):
    """A list can't go on after something that isn't there."""

    code = "invalid_cursor"
    param = "after"

    def __init__(self, *, after: str) -> None:
        super().__init__(
            f"Nothing in this list has the id '{after}'. Send the `last_id` of the page before."
        )


class UnknownTierError(PermanentError):
    """No tier of that name."""

    code = "unknown_tier"
    param = "tier"

    def __init__(self, *, tier: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no tier '{tier}'. The tiers are: {', '.join(sorted(known))}.")


class OwnBaseModelError(PermanentError):
    """A base model can't be reserved to a tenant of that tier."""

    code = "own_base_model_not_allowed"
    param = "tenants"

    def __init__(self, *, tenant: str, tier: str) -> None:
        super().__init__(
            f"The tenant '{tenant}' has the tier '{tier}', which allows no base models of its own. "
            "Give it a tier with `own_base_models = true` first."
        )


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


class HubUnavailableError(TransientError):
    """The Hugging Face hub does not answer as it should."""

    code = "hub_unavailable"


class TritonUnavailableError(TransientError):
    """Triton does not answer, or not in time."""

    code = "server_is_overloaded"


class TritonRefusedError(TransientError):
    """Triton answered a control call with an error; the message is Triton's."""

    code = "server_error"


class RegistryReplacedError(TransientError):
    """The registry's file is gone, or another one is in its place."""

    code = "registry_unavailable"

    def __init__(self, *, place: str) -> None:
        super().__init__(
            f"The registry {place} was removed or replaced while it was in use. Put it back, or "
            "restore it from a back-up; the processes that use it start again by themselves."
        )


class RegistryUnavailableError(TransientError):
    """The registry's database is locked, or away, or does not answer in time."""

    code = "registry_unavailable"

    def __init__(self) -> None:
        super().__init__("The server's registry can't be used right now. Please try again shortly.")


class StorageUnavailableError(TransientError):
    """The server's disk can't be read or written to."""

    code = "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("The server's storage can't be used right now. Please try again shortly.")


class StorageFullError(TransientError):
    """The server's disk is full."""

    code = "insufficient_storage"

    def __init__(self) -> None:
        super().__init__(
            "The server's disk is full, and nothing was kept. Ask its operator for room, or delete "
            "adapters that you don't need, then try again."
        )
