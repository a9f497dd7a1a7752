"""Errors that CoDA raises on purpose, by whose fault they are.

CodaError
 +- InputError            the caller's data or arguments                  exit status 2
 +- EngineError           an engine is missing, or refuses a graph        exit status 3
 |   +- EngineUnavailable
 |   +- GraphInputError   a tensor does not fit the graph
 |   +- SelfTestFailed    the engine runs but does not train
 +- TransportError        the peer or the network                         exit status 4
 |   +- Unreachable       no answer, or an answer cut short
 |   +- Refused           an answer, and it is "no"
 +- TrustError            something that must be authentic is not         exit status 5
 +- WireError             bytes that do not decode                        exit status 5
 +- StoreError            local storage                                   exit status 6
 +- Yielded               the device is needed otherwise; goes on later   exit status 7
"""


class CodaError(Exception):
    """Base of all deliberate errors; its text is one sentence for a person: what, where, and what to do."""

    exit_status = 1


class InputError(CodaError):
    """The caller's data or arguments cannot be used."""

    exit_status = 2


class EngineError(CodaError):
    """An engine cannot do what is asked."""

    exit_status = 3


class EngineUnavailable(EngineError):
    """The engine is not installed, or not usable on this machine."""


class GraphInputError(EngineError):
    """A tensor given to a graph has the wrong name, dtype or shape, or an index outside its table."""


class SelfTestFailed(EngineError):
    """The engine ran the graphs and they did not train as they should; it must not be used."""


class TransportError(CodaError):
    """The peer or the network failed."""

    exit_status = 4


class Unreachable(TransportError):
    """No answer, or one that was cut short. Trying again later may help."""


class Refused(TransportError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TrustError(CodaError):
    """A signature, hash or key is not what it must be. Nothing of the offered data was used."""

    exit_status = 5


class WireError(CodaError):
    """Bytes do not decode: truncated, damaged, of an unknown version, or out of bounds."""

    exit_status = 5


class StoreError(CodaError):
    """The local store is full, unreadable, or of another version."""

    exit_status = 6


class Yielded(CodaError):
    """Work was put aside because the device is needed otherwise, or a budget is used up; the next call goes on."""

    exit_status = 7
