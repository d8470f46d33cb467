"""Every error edgekit raises on purpose, and the exit code of the ``edge`` command for each kind.

EdgekitError                1   (never raised itself; catch it to catch them all)
 ├─ UsageError              2   an option or argument that cannot be meant
 ├─ ModelError              3   the model given cannot be built
 │   ├─ ModelNotFound           no such catalogue name, hub id or directory
 │   ├─ CheckpointError         a file or tensor is missing, cut short, of a wrong dtype, or not finite
 │   ├─ ConfigError             config.json is malformed or disagrees with its tensors
 │   └─ UnknownArchitecture     model_type is none of those known
 ├─ TargetError             4   a target, scheme or device is unknown, malformed, or cannot hold this model
 ├─ EngineMissing           5   the engine is not installed; says which extra brings it
 ├─ ArtifactError           6   a directory is no complete artifact, or its files do not match its manifest
 ├─ ContextOverflow         7   more tokens than the artifact's context holds
 ├─ TemplateError           8   the chat template is broken or reached for something it may not have
 ├─ OutputError             9   the output cannot be written: exists, in use, read-only, disk full
 ├─ DownloadError          10   the hub cannot be reached or sent something wrong
 ├─ EngineError            11   the engine refused or failed on a valid artifact
 ├─ FidelityError          12   an artifact is too far from its model, or two of one model do not agree
 ├─ SignatureError         14   an artifact is not signed by a trusted key, or is an older release
 ├─ PerformanceError       15   a measured figure is beyond a limit (edge profile --fail-if)
 ├─ DoesNotFit             16   a model does not fit a device; says what would
 └─ RemoteError            17   a device elsewhere cannot be reached, refuses, or cannot do what it is asked
     ├─ Unreachable             nobody answers there, or the program that would ask is missing here
     ├─ Untrusted               its host key is not the known one, or it does not take our key or token
     ├─ LinkBroken              the connection ended in the middle; what was measured is kept
     └─ DeviceUnfit             no Python, a full disk, no packages for it, in use, or a job that failed there

Ctrl-C ends the command with 130, SIGTERM with 143, a closed terminal with 129.

A message says what happened, to which tensor, key or file, and what to do next.
"""


class EdgekitError(Exception):
    """Base of all. ``exit_code`` is what the ``edge`` command exits with."""

    exit_code = 1


class UsageError(EdgekitError):
    exit_code = 2


class ModelError(EdgekitError):
    exit_code = 3


class ModelNotFound(ModelError):
    pass


class CheckpointError(ModelError):
    pass


class ConfigError(ModelError):
    pass


class UnknownArchitecture(ModelError):
    pass


class TargetError(EdgekitError):
    exit_code = 4


class EngineMissing(EdgekitError):
    exit_code = 5


class ArtifactError(EdgekitError):
    exit_code = 6


class ContextOverflow(EdgekitError):
    exit_code = 7


class TemplateError(EdgekitError):
    exit_code = 8


class OutputError(EdgekitError):
    exit_code = 9


class DownloadError(EdgekitError):
    exit_code = 10


class EngineError(EdgekitError):
    exit_code = 11


class FidelityError(EdgekitError):
    exit_code = 12


class SignatureError(EdgekitError):
    exit_code = 14


class PerformanceError(EdgekitError):
    exit_code = 15


class DoesNotFit(EdgekitError):
    exit_code = 16


class RemoteError(EdgekitError):
    exit_code = 17


class Unreachable(RemoteError):
    pass


class Untrusted(RemoteError):
    pass


class LinkBroken(RemoteError):
    pass


class DeviceUnfit(RemoteError):
    pass
