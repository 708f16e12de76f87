"""Look inside a loaded model, whatever engine writes with it: our own families in plain torch, others by transformers.

The engine that writes has fused, packed or rounded weights. So a model of our own families is loaded once more, in
float32 on the CPU, when it is first looked into.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tinystory.checkpoint import CheckpointHeader, load_model
from tinystory.decoding import Session
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.inside.forward_pass import ForwardPass, Part, Replacement
    from tinystory.inside.removal import Effect
    from tinystory.model.transformer import Transformer

__all__ = ["Inspector"]


class Inspector:
    """The inside of one model.

    Attributes:
        header: the checkpoint of the model.
        session: a session of the model; it is not changed.
    """

    def __init__(self, header: CheckpointHeader, session: Session) -> None:
        self.header = header
        self.session = session

    def run(self, token_ids: Sequence[int]) -> "ForwardPass":
        """Run the model over a story, and keep what is inside.

        Args:
            token_ids: 1 to max_seq_len ids.

        Raises:
            UsageError: the story is empty or too long, or the architecture does not show its layers.
            CheckpointError: the files of the model have changed.
            TinystoryError: there is not enough memory.
        """
        if self.header.config is not None:
            from tinystory.inside.forward_pass import forward_pass

            return forward_pass(self._transformer, token_ids)
        from tinystory.inside.transformers_pass import transformers_pass
        from tinystory.session.hf_session import HFSession

        assert isinstance(self.session, HFSession)
        return transformers_pass(self.session.model, token_ids)

    def effects(
        self,
        before: Sequence[int],
        token_id: int,
        replacement: "Replacement" = "zero",
        cancel: Callable[[], bool] = lambda: False,
    ) -> "Iterator[Effect]":
        """Leave out each part of the model in turn; see `removal.effects`.

        Raises:
            UsageError: as there, or the model is of another family than Llama and GPT-2.
            CheckpointError, TinystoryError: as `run`.
        """
        from tinystory.inside.removal import effects

        return effects(self._of_our_own(), before, token_id, replacement, cancel)

    def effects_on_all(self, token_ids: Sequence[int]) -> "Iterator[tuple[Part, Tensor]]":
        """Leave out each part of the model in turn; see `removal.effects_on_all`.

        Raises:
            UsageError, CheckpointError, TinystoryError: as `effects`.
        """
        from tinystory.inside.removal import effects_on_all

        return effects_on_all(self._of_our_own(), token_ids)

    def _of_our_own(self) -> "Transformer":
        """Return the model, if it is of one of our families."""
        if self.header.config is None:
            kind = self.header.hf_config.get("model_type")
            raise UsageError(f"parts can be left out of Llama and GPT-2 models only; this is a {kind}")
        return self._transformer

    @cached_property
    def _transformer(self) -> "Transformer":
        return load_model(self.header)
