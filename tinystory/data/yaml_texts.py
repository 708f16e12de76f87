"""Read a YAML list of texts. It knows texts only, no file.

The events of YAML's parser are read, not the objects that they would make. So there are no aliases, merges and tags, by
which a few bytes become gigabytes or objects of other types.
"""

from collections.abc import Iterator
from typing import Any

from tinystory.errors import one_line

__all__ = ["yaml_texts"]


def yaml_texts(document: str) -> list[str]:
    """Return the texts of a YAML list: plain, quoted or in blocks. A plain text is never a number or a date.

    Raises:
        ValueError: the document is not YAML, or is anything else than one list of texts.
    """
    import yaml

    try:
        return list(_texts(yaml, yaml.parse(document, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error


def _texts(yaml: Any, events: Iterator[Any]) -> Iterator[str]:
    """Yield the text of each item of the list."""
    content = (yaml.SequenceStartEvent, yaml.MappingStartEvent, yaml.ScalarEvent, yaml.AliasEvent)
    n_items = 0
    begun = ended = False
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            ended = True
        if not isinstance(event, content):
            continue
        if ended:
            raise ValueError("it has something after the list")
        if not begun:
            if not isinstance(event, yaml.SequenceStartEvent):
                raise ValueError("write `- ` before each text")
            _check_plain(event, "the list")
            begun = True
            continue
        n_items += 1
        item = f"its item {n_items}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{item} is an alias (*), which is not allowed; put quotes around such a text")
        if not isinstance(event, yaml.ScalarEvent):
            raise ValueError(
                f"{item} is not a text; put quotes around a text with `: `, or one that begins with [ or {{"
            )
        _check_plain(event, item)
        yield event.value.encode(errors="replace").decode()  # an escape can write half of a surrogate pair
    if not begun:
        raise ValueError("it is empty")


def _check_plain(event: Any, what: str) -> None:
    if event.anchor is not None or event.tag is not None:
        raise ValueError(f"{what} has an anchor (&) or a tag (!), which is not allowed; put quotes around such a text")
