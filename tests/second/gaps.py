"""The tests that LocalStack 4.14 cannot pass, each with what it does otherwise than AWS."""

GAPS: dict[str, str] = {}
