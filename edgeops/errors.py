"""Every error that EdgeOps raises, in one tree; branches say what the caller can do next.

::

    EdgeOpsError
    ├── InputError            fix the input
    │   ├── ManifestError     a bundle or its manifest is wrong, damaged or incomplete
    │   ├── RecipeError       conversion settings or data cannot work
    │   ├── ExportError       the source model does not export
    │   ├── TensorError       a tensor has the wrong name, dtype or shape
    │   ├── MessageError      a message cannot be decoded
    │   ├── ConfigError       a configuration file or option is wrong
    │   └── NotFoundError     what is asked for does not exist
    ├── RefusedError          the input is well formed and the answer is no
    │   ├── UntrustedError    a signature, a generation or a version floor forbids it
    │   ├── GateError         a compressed model is not faithful or not faster
    │   └── ConflictError     it exists already, or something else is in the way
    ├── TransientError        try again later
    │   ├── LinkError         the broker is away
    │   ├── DownloadError     bytes did not arrive, or not the right ones
    │   ├── OverloadedError   too many requests wait already
    │   └── DeadlineError     the answer would have come too late
    ├── EngineError           an inference engine cannot load or run a model
    │   └── NotFiniteError    it ran, and answered NaN or infinity
    └── MissingExtraError     an optional dependency is not installed

Adapters translate: no exception of paho, onnxruntime, SQLAlchemy or the operating system passes a public function.
Messages say what was expected, what came, and where.
"""


class EdgeOpsError(Exception):
    """Root of the tree."""


class InputError(EdgeOpsError):
    """Something that the caller gave is wrong; the same call will fail again."""


class ManifestError(InputError):
    """A bundle or its manifest is wrong, damaged or incomplete."""


class RecipeError(InputError):
    """Conversion settings, or the data that came with them, cannot work."""


class ExportError(InputError):
    """The source model does not export; the message says what to change."""


class TensorError(InputError):
    """A tensor has the wrong name, dtype or shape."""


class MessageError(InputError):
    """A message on the wire cannot be decoded."""


class ConfigError(InputError):
    """A configuration file or option is wrong."""


class NotFoundError(InputError):
    """What is asked for does not exist."""


class RefusedError(EdgeOpsError):
    """The input is well formed, and the answer is no."""


class UntrustedError(RefusedError):
    """A signature, a generation or a version floor forbids it."""


class GateError(RefusedError):
    """A compressed model is not faithful enough, or not faster."""


class ConflictError(RefusedError):
    """It exists already, or something else is in the way."""


class TransientError(EdgeOpsError):
    """It may work later."""


class LinkError(TransientError):
    """The MQTT broker is away or refused the connection."""


class DownloadError(TransientError):
    """Bytes did not arrive, or not the right ones."""


class OverloadedError(TransientError):
    """Too many requests wait already.

    Args:
        message: What is full.
        retry_after_s: When it is worth another try, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(TransientError):
    """The answer would have come after its request's deadline; the model was not asked."""


class EngineError(EdgeOpsError):
    """An inference engine cannot load or run a model."""


class NotFiniteError(EngineError):
    """A model answered NaN or infinity to an input that was finite."""


class MissingExtraError(EdgeOpsError):
    """An optional dependency is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of the ``edgeops`` distribution that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; install it with: pip install 'edgeops[{extra}]'")
        self.module = module
        self.extra = extra
