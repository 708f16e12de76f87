"""Any logits processor of transformers as a stage (the classes of `transformers.generation.logits_process`).

What stands after the name is a call as in Python: the class, and in brackets its arguments, which are plain data. The
class gets the story's ids and the logits as `generate` would hand them over, (1, T) and (1, V), and a fresh instance
serves each story. It differs from `generate` in one rule that every stage here keeps: a token that an earlier stage
has removed never comes back.

The few classes that keep something from token to token in themselves (SynthIDTextWatermarkLogitsProcessor) do not
know of an undone token or of another beam: use those in plain chains only.
"""

import ast
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.errors import UsageError, nearest
from tinystory.safe.reading import shown

if TYPE_CHECKING:
    from torch import Tensor

_MAX_TEXT, _MAX_SIZE = 10_000, 2**20
_OBJECTS = {"encoder_input_ids", "generate_config", "model", "prefix_allowed_tokens_fn", "tokenizer"}
"""Parameters that no text can give."""


@dataclass(frozen=True)
class HF(LogitsProcessor):
    """Run a logits processor class of transformers."""

    name = "hf"
    example = "hf TopKLogitsWarper(40)"
    call: str = option(help="a class with its arguments: TopKLogitsWarper(40), in double quotes where it has , or =")

    def __post_init__(self) -> None:
        """Check the options and the form of the call; whether there is such a class shows at `start`."""
        super().__post_init__()
        _parse(self.call)

    def start(self, request: Request) -> Any:
        """A fresh instance of the class.

        Raises:
            UsageError: there is no such class, it takes no plain data, or other arguments.
        """
        return _instance(self.call)

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> what the class makes of them, on the CPU; tokens removed before stay removed."""
        import torch

        ids = torch.tensor([step.token_ids])
        scores: Tensor = step.state(ids, logits.cpu()[None].clone())[0].to(logits)
        return scores.masked_fill(logits == -math.inf, -math.inf)


def _parse(call: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The class's name and the arguments of `Name(1, two=[3, 4])`."""
    wrong = f"hf: {shown(call)} is no class with plain arguments: numbers, texts, True, False, None and lists of these"
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
    """The value, if it is plain data."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float | str | None):
        return value
    raise ValueError(value)


def _instance(call: str) -> Any:
    from transformers.generation import logits_process

    name, positional, named = _parse(call)
    classes = {
        one.__name__: one
        for one in vars(logits_process).values()
        if inspect.isclass(one)
        and issubclass(one, logits_process.LogitsProcessor)
        and one is not logits_process.LogitsProcessor
        and one.__module__ == logits_process.__name__
    }
    if name not in classes:
        near = nearest(name, classes)
        hint = f"did you mean `{near}`?" if near else "they are listed in transformers' pages on generation"
        raise UsageError(f"hf: transformers has no logits processor {shown(name)}: {hint}")
    signature = inspect.signature(classes[name])
    objects = _OBJECTS & {p.name for p in signature.parameters.values() if p.default is p.empty}
    if objects:
        raise UsageError(f"hf: {name} needs {', '.join(sorted(objects))}, which no text can give")
    try:
        arguments = signature.bind(*positional, **named).arguments
        if any(key.endswith("_size") and not 0 < value <= _MAX_SIZE for key, value in arguments.items()):
            raise ValueError(f"a size must be from 1 to {_MAX_SIZE}")
        return classes[name](*positional, **named)
    except Exception as error:  # whatever the constructor raises for arguments that it does not take
        summary = " ".join(str(error).split())[:200]
        raise UsageError(f"hf: {name} does not take that: {summary}; it has {_parameters(signature)}") from error


def _parameters(signature: inspect.Signature) -> str:
    names = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in signature.parameters.values()]
    return ", ".join(names)
