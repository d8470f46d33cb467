"""What a message of another library may hold and nobody else may read."""

import re

_RULES = (
    (re.compile(r"//[^/@\s]+@"), "//***@"),
    # The signature of a storage address: behind the question mark, also of an address without its host.
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*"), r"\1?***"),
    (re.compile(r"\?[\w.%~-]+=[^\s'\")>]*"), "?***"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer |basic )?)[^\s'\",}]+"), r"\1***"),
    (re.compile(r"(?i)\bbearer [\w.~+/=-]{8,}"), "Bearer ***"),
    (re.compile(r"\bhf_\w{6,}"), "hf_***"),
)


def without_secrets(text: str) -> str:
    """``text`` without passwords in addresses, signatures of storage addresses, and what looks like a token."""
    for pattern, shown in _RULES:
        text = pattern.sub(shown, text)
    return text
