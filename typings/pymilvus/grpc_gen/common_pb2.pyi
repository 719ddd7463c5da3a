from collections.abc import Sequence

from google.protobuf.message import Message

class PlaceholderType:
    FloatVector: int

class PlaceholderValue(Message):
    def __init__(self, *, tag: str, type: int, values: Sequence[bytes]) -> None: ...

class PlaceholderGroup(Message):
    def __init__(self, *, placeholders: Sequence[PlaceholderValue]) -> None: ...

class KeyValuePair(Message):
    def __init__(self, *, key: str, value: str) -> None: ...
