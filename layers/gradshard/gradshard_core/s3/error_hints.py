"""Advice that is added to errors of S3."""

import os


def explain_denial(code: str) -> str:
    """Return what S3's error does not say: who is denied something, or what to do."""
    if code == "AccessDenied":
        function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
        if function:
            return f"; that is denied to the role of function {function}"
        return "; `aws sts get-caller-identity` says to whom that is denied"
    if code == "RequestTimeTooSkewed":
        return "; the clock of this machine is more than 15 minutes off: set it"
    return ""
