"""Read a YAML list of texts. It knows texts only, no file.

The events of YAML's parser are read, not the objects that they would make. So there are no aliases, merges and tags, by
which a few bytes become gigabytes or objects of other types.
"""

from collections.abc import Iterator
from typing import Any

from tinystory.errors import one_line

__all__ = ["yaml_texts"]

_TEXT_TAG = "tag:yaml.org,2002:str"
_LONGEST_VALUE = 100
"""Characters of the longest plain text that may be a number or a date instead."""


def yaml_texts(document: str) -> list[str]:
    """Return the texts of a YAML list: plain, quoted or in blocks. An item without any text is an empty text.

    Raises:
        ValueError: the document is anything else than one list of texts. The message goes on from its name.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return list(_texts(yaml, yaml.parse(document, Loader=loader)))
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {one_line(error)}") from error


def _texts(yaml: Any, events: Iterator[Any]) -> Iterator[str]:
    """Yield the text of each item of the list."""
    content = (yaml.SequenceStartEvent, yaml.MappingStartEvent, yaml.ScalarEvent, yaml.AliasEvent)
    resolver = yaml.resolver.Resolver()
    n_items = 0
    begun = ended = False
    for event in events:
        ended = ended or isinstance(event, yaml.SequenceEndEvent)
        if not isinstance(event, content):
            continue
        if not begun:
            if not isinstance(event, yaml.SequenceStartEvent):
                raise _no_list("write `- ` before each text")
            _check_plain(event, "the list")
            begun = True
            continue
        if ended:
            raise _no_list("it has something after the list")
        n_items += 1
        item = f"its item {n_items}"
        _check_plain(event, item)
        if not isinstance(event, yaml.ScalarEvent):
            raise _not_plain(f"{item} is not a text; put quotes around a text that has `: ` or begins with [ or {{")
        may_be_other = event.implicit[0] and 0 < len(event.value) <= _LONGEST_VALUE
        if may_be_other and resolver.resolve(yaml.ScalarNode, event.value, (True, False)) != _TEXT_TAG:
            raise _no_list(f"{item} is a number, a date or a word like yes for YAML; put quotes around it")
        yield event.value.encode(errors="replace").decode()  # an escape can write half of a surrogate pair
    if not begun:
        raise _no_list("it is empty")


def _check_plain(event: Any, what: str) -> None:
    """Refuse an alias, which has an anchor as well, an anchor and a tag."""
    if event.anchor is not None or getattr(event, "tag", None) is not None:
        raise _not_plain(f"{what} begins with an alias (*), an anchor (&) or a tag (!); put quotes around such a text")


def _not_plain(problem: str) -> ValueError:
    return ValueError(f"is not YAML of plain texts: {problem}")


def _no_list(problem: str) -> ValueError:
    return ValueError(f"is not a YAML list of texts: {problem}")
