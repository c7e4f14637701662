"""Whether there are layouts for quantised weights."""

_CK_AVAILABLE = True
