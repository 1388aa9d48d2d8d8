"""How an engine loads a model, beside the number of threads: what changes its speed and its memory, never its answers."""

import msgspec


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of one loaded model; an engine that does not know one leaves it.

    Attributes:
        arena: Keep memory for the next call rather than give it back after each (onnxruntime).
        prepack: Keep the weights a second time, laid out as the CPU likes them (onnxruntime): faster, and more memory.
        memory_pattern: Plan the memory of a call ahead, for each shape that comes (onnxruntime); ``None``: where the file takes a
            fixed number of rows, because the plans of shapes that vary grow without limit (onnxruntime #11118).
    """

    arena: bool = True
    prepack: bool = True
    memory_pattern: bool | None = None

    @property
    def words(self) -> str:
        """Those that are not as usual, for people."""
        found = [
            "" if self.arena else "no arena",
            "" if self.prepack else "no prepacking",
            "" if self.memory_pattern is None else "memory pattern" if self.memory_pattern else "no memory pattern",
        ]
        return ", ".join(filter(None, found)) or "as usual"
