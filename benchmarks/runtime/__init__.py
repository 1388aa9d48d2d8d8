"""The device runtime against its bars: what it survives, and what it costs."""
