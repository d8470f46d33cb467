"""The chat page at ``/``: one document without anything from elsewhere, and the policy that keeps it so."""

import base64
import hashlib
import re
from pathlib import Path

HTML = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _digest(tag: str) -> str:
    """Of the one script or style, as a policy names it."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    if found is None:
        raise RuntimeError(f"page.html has no <{tag}>")
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_digest('script')}",
        f"style-src {_digest('style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
