"""Any logits processor of transformers as a stage (the classes of `transformers.generation.logits_process`).

After the name comes a call as in Python: the class, and its arguments in brackets. The arguments are plain data. As in
`generate`, the class gets the ids of the story, (1, T), and the logits, (1, V). Each story has a new instance. One rule
differs from `generate`, because every stage here keeps it: a token that an earlier stage has removed stays removed.

A few classes, such as SynthIDTextWatermarkLogitsProcessor, keep data from token to token inside themselves. They do not
notice that a token was undone or that a beam was copied, so use them only in decoders without a search.
"""

import ast
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinystory.decoding import LogitsProcessor, Request, Step, option, shown
from tinystory.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

_MAX_TEXT, _MAX_SIZE = 10_000, 2**20
_OBJECTS = {"encoder_input_ids", "generate_config", "model", "prefix_allowed_tokens_fn", "tokenizer"}
"""Parameters whose values cannot be written as text."""


@dataclass(frozen=True)
class HF(LogitsProcessor):
    """Change the logits with a logits processor of transformers."""

    name = "hf"
    example = "hf TopKLogitsWarper(40)"
    call: str = option(
        help="a class with its arguments, such as TopKLogitsWarper(40); in double quotes if it has a comma or ="
    )

    def __post_init__(self) -> None:
        """Check the options and the form of the call. `start` checks that the class exists."""
        super().__post_init__()
        _parse(self.call)

    def start(self, request: Request) -> Any:
        """Return a new instance of the class.

        Raises:
            UsageError: the class does not exist, needs more than plain data, or takes other arguments.
        """
        return _instance(self.call)

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return the (V,) logits as the class changes them, on the CPU. Removed tokens stay removed."""
        import torch

        ids = torch.tensor([step.token_ids])
        scores: Tensor = step.state(ids, logits.cpu()[None].clone())[0].to(logits)
        return scores.masked_fill(logits == -math.inf, -math.inf)


def _parse(call: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name of the class and the arguments of a call such as `Name(1, two=[3, 4])`."""
    wrong = (
        f"hf: {shown(call)} is not a class with plain arguments: numbers, texts, True, False, None and lists of these"
    )
    try:
        if len(call) > _MAX_TEXT:
            raise ValueError(call)
        tree = ast.parse(call.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, [], {}
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError(call)
        positional = [_plain(ast.literal_eval(argument)) for argument in tree.args]
        return tree.func.id, positional, {str(k.arg): _plain(ast.literal_eval(k.value)) for k in tree.keywords if k.arg}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise UsageError(wrong) from None


def _plain(value: Any) -> Any:
    """Return the value, with lists for tuples. Raise ValueError if it is not plain data."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float | str | None):
        return value
    raise ValueError(value)


def _instance(call: str) -> Any:
    from transformers.generation import logits_process

    name, positional, named = _parse(call)
    classes = {
        cls.__name__: cls
        for cls in vars(logits_process).values()
        if inspect.isclass(cls)
        and issubclass(cls, logits_process.LogitsProcessor)
        and cls is not logits_process.LogitsProcessor
        and cls.__module__ == logits_process.__name__
    }
    if name not in classes:
        near = nearest(name, classes)
        hint = f"did you mean `{near}`?" if near else "the pages of transformers about generation list them"
        raise UsageError(f"hf: transformers has no logits processor {shown(name)}: {hint}")
    signature = inspect.signature(classes[name])
    objects = _OBJECTS & {p.name for p in signature.parameters.values() if p.default is p.empty}
    if objects:
        raise UsageError(f"hf: {name} needs {', '.join(sorted(objects))}, which cannot be written as text")
    try:
        arguments = signature.bind(*positional, **named).arguments
        if any(key.endswith("_size") and not 0 < value <= _MAX_SIZE for key, value in arguments.items()):
            raise ValueError(f"a size must be from 1 to {_MAX_SIZE}")
        return classes[name](*positional, **named)
    except Exception as error:  # a constructor may raise anything for wrong arguments
        summary = " ".join(str(error).split())[:200]
        raise UsageError(
            f"hf: {name} does not take these arguments: {summary}; it has {_parameters(signature)}"
        ) from error


def _parameters(signature: inspect.Signature) -> str:
    names = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in signature.parameters.values()]
    return ", ".join(names)
