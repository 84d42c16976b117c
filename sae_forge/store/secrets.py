"""What others say, repeated without the secrets in it."""

import os
import re
from urllib.parse import quote

_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASS|CREDENTIAL|CONNECTION|SAS|AUTH", re.IGNORECASE)
# in this order: a query may hold an @, and would be read as a login otherwise
_SECRETS = (
    (re.compile(r"\?\S+"), "?…"),
    (re.compile(r"//[^/\s]*@"), "//…@"),
    (re.compile(r"hf_[A-Za-z0-9]{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\b(?:Bearer|Basic) \S+"), "[secret]"),
)


def scrubbed(text: str, *secrets: str) -> str:
    """Foreign words on one line, without queries, logins, these secrets, and values of variables that hold some."""
    # short values are words that stand anywhere: to take them out would say more than to leave them
    held = {value for name, value in os.environ.items() if len(value) >= 6 and _SECRET_NAME.search(name)}
    spelled = {form for value in held.union(secrets) for form in (value, quote(value), quote(value, safe=""))}
    for form in sorted(spelled - {""}, key=len, reverse=True):  # one may begin another
        text = re.sub(re.escape(form), "[secret]", text, flags=re.IGNORECASE)
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return " ".join(text.split())[:160]
