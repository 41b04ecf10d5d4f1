"""Texts → token ids that fit the base model's window beside the prefix.

A decoder reads a source and writes the target behind it, in one window with the prefix (`Encoder`). An encoder-decoder
has a window for the source and one for the target, and its prefix takes nothing of either (`SourceTargetEncoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import BaseModelError, PrefixError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example's token ids.

    Attributes:
        input_ids: classification: the text with special tokens; generation: the prompt, or an encoder-decoder's source.
        target_ids: one list per target, each ended by EOS; none for classification.
        length: what must fit the limit, before any truncation: tokens of the input and its longest target together, in
            an encoder-decoder of the longer of the two.
        content: tokens of the shortest of its texts without special tokens; 0 is an example of nothing.
    """

    input_ids: list[int]
    target_ids: list[list[int]]
    length: int
    content: int


class Encoder:
    """A fast tokenizer without padding, truncation or the wrappers' cost; batches run on all cores.

    Ids equal `tokenizer(text)["input_ids"]` (tested). The tokenizer passed in is not changed: this works on a copy,
    because a saved tokenizer.json may carry its own truncation (all-MiniLM's stops at 128) and padding.

    Args:
        tokenizer: the base model's.
        window: the base model's positions.
        prefix_length: positions that the prefix takes.
        max_tokens: a lower limit, if wanted.

    Raises:
        PrefixError: prefix and special tokens fill the window.
    """

    example = "source with its longest target"
    """What of a source and its targets `Encoded.length` counts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, window: int, prefix_length: int, max_tokens: int | None
    ) -> None:
        from tokenizers import Tokenizer

        self._fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._fast.no_padding()
        self._fast.no_truncation()
        self._eos = tokenizer.eos_token_id
        self.specials = len(self._fast.encode("").ids)
        self.window, self.taken = window, prefix_length
        room = window - prefix_length
        self.limit = min(room, max_tokens or room)
        less = f" less the prefix's {prefix_length}" if prefix_length else ""
        self.reason = "data.max_tokens" if self.limit < room else f"the base's window of {window}{less}"
        if self.limit <= self.specials:
            advice = "shorten prefix.length" if self.limit == room else "raise data.max_tokens"
            raise PrefixError(
                f"a prefix of {prefix_length} in a window of {window} leaves {self.limit} tokens, of which"
                f" {self.specials} are special; expected room for text: {advice}"
            )
        bos = tokenizer.bos_token_id
        # A post-processor may put BOS in front of every text; the prompt then starts with it too.
        self._lead = [bos] if bos is not None and self._fast.encode("a").ids[:1] == [bos] else []

    def texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Classification: each text with special tokens."""
        return [
            Encoded(ids, [], len(ids), len(ids) - self.specials)
            for ids in (encoding.ids for encoding in self._fast.encode_batch_fast(list(texts)))
        ]

    def sources(self, sources: Sequence[str], targets: Sequence[Sequence[str]]) -> list[Encoded]:
        """Generation: BOS where the tokenizer adds one, source and newline; each target and EOS.

        Raises:
            BaseModelError: the tokenizer has no EOS, without which no output would end.
        """
        self._check_eos()
        prompts = self._plain([f"{source}\n" for source in sources])
        ends = iter(self._plain([target for group in targets for target in group]))
        encoded = []
        for prompt, group in zip(prompts, targets, strict=True):
            target_ids = [[*next(ends), self._eos] for _ in group]
            lengths = [len(ids) for ids in target_ids]
            length = len(self._lead) + len(prompt) + max(lengths)
            encoded.append(
                Encoded([*self._lead, *prompt], target_ids, length, min(len(prompt), min(lengths) - 1))
            )
        return encoded

    def cut_text(self, text: str) -> list[int]:
        """The first tokens of `text` that fit, special tokens kept: for classification, and an encoder-decoder's source."""
        return self._cut_to(self.limit, text)

    def cut_source(
        self, encoded: Encoded, source: str, targets: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Generation: prompt and targets shortened at their texts' ends until each target fits behind the prompt.

        The prompt gives way first, down to half of the limit; then targets are cut. Newline and EOS stay.
        """
        room = max(self.limit - len(encoded.input_ids), self.limit // 2)
        shorter = [
            ids if len(ids) <= room else [*self._cut(text, "", room - 1), self._eos]
            for ids, text in zip(encoded.target_ids, targets, strict=True)
        ]
        left = self.limit - max(len(ids) for ids in shorter) - len(self._lead)
        prompt = encoded.input_ids[len(self._lead) :]
        if len(prompt) > left:
            prompt = self._cut(source, "\n", left)
        return [*self._lead, *prompt], shorter

    @property
    def longest_prompt(self) -> int:
        """Generation: the most tokens of a prompt for which anything can be written."""
        return self.limit - 1

    def cut_prompt(self, input_ids: list[int], source: str) -> list[int]:
        """Generation: the prompt of `source` without a target, shortened where that helps.

        A decoder's is left as it is: the room that it takes from its answer would have to be guessed.
        """
        return input_ids

    def _cut_to(self, limit: int, text: str) -> list[int]:
        self._fast.enable_truncation(limit)
        try:
            ids: list[int] = self._fast.encode(text).ids
        finally:
            self._fast.no_truncation()
        return ids

    def _check_eos(self) -> None:
        if self._eos is None:
            raise BaseModelError(
                "the base model's tokenizer has no end-of-sequence token; generation needs one: set eos_token in it"
            )

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._fast.encode_batch_fast(texts, add_special_tokens=False)]

    def _cut(self, text: str, ending: str, room: int) -> list[int]:
        """Tokens of the longest beginning of `text` that fits in `room` with `ending`, cut between tokens."""
        offsets: list[tuple[int, int]] = self._fast.encode(text, add_special_tokens=False).offsets
        kept = min(room, len(offsets))
        while True:
            beginning = text[: offsets[kept - 1][1]] if kept else ""
            ids: Any = self._fast.encode(beginning + ending, add_special_tokens=False).ids
            if len(ids) <= room or not kept:
                return list(ids[:room])
            kept -= 1


class SourceTargetEncoder(Encoder):
    """The `Encoder` for an encoder-decoder: each of source and target may be as long as the limit.

    Both have the tokenizer's own special tokens (T5's `</s>`, BART's `<s> … </s>`), as in the base's own training; the
    decoder reads a target shifted right, behind the token that starts it.

    Args:
        tokenizer: the base model's.
        window: what its encoder and its decoder hold.
        max_tokens: a lower limit, if wanted.

    Raises:
        PrefixError: special tokens fill the window.
    """

    example = "source or its longest target"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, window: int, max_tokens: int | None) -> None:
        super().__init__(tokenizer, window=window, prefix_length=0, max_tokens=max_tokens)
        # A tokenizer without a template of its own leaves the target open.
        self._ending = [] if self._eos in self._fast.encode("").ids else [self._eos]
        if self.limit <= self.specials + len(self._ending):
            raise PrefixError(
                f"a target of at most {self.limit} tokens has no room for text beside its special tokens; raise "
                "data.max_tokens"
            )

    def sources(self, sources: Sequence[str], targets: Sequence[Sequence[str]]) -> list[Encoded]:
        """Source and targets with special tokens, each target ended by EOS.

        Raises:
            BaseModelError: the tokenizer has no EOS, without which no output would end.
        """
        self._check_eos()
        inputs = [encoding.ids for encoding in self._fast.encode_batch_fast(list(sources))]
        ends = iter(self._fast.encode_batch_fast([target for group in targets for target in group]))
        encoded = []
        for ids, group in zip(inputs, targets, strict=True):
            target_ids = [[*next(ends).ids, *self._ending] for _ in group]
            lengths = [len(target) for target in target_ids]
            content = min(len(ids), min(lengths) - len(self._ending)) - self.specials
            encoded.append(Encoded(ids, target_ids, max(len(ids), *lengths), content))
        return encoded

    def cut_source(
        self, encoded: Encoded, source: str, targets: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Source and targets, each shortened at its text's end where it does not fit; special tokens stay."""
        open_limit = self.limit - len(self._ending)
        return self.cut_text(source), [
            [*self._cut_to(open_limit, target), *self._ending] for target in targets
        ]

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a source."""
        return self.limit

    def cut_prompt(self, input_ids: list[int], source: str) -> list[int]:
        """The source's first tokens that fit, special tokens kept."""
        return input_ids if len(input_ids) <= self.limit else self.cut_text(source)


def encoder_for(
    tokenizer: PreTrainedTokenizerFast,
    *,
    window: int | None,
    prefix_length: int,
    max_tokens: int | None,
    encoder_decoder: bool,
) -> Encoder:
    """The encoder for a base; arguments as of `Encoder`.

    Args:
        window: None where nothing limits the base; `max_tokens` does then.
        encoder_decoder: whether it is one.

    Raises:
        BaseModelError: there is no limit at all.
        PrefixError: prefix and special tokens fill the window.
    """
    if window is None and max_tokens is None:
        raise BaseModelError(
            "neither the base's config nor its tokenizer names a window; expected n_positions in config.json, "
            "model_max_length in tokenizer_config.json, or data.max_tokens: set data.max_tokens to the most tokens that "
            "a source or a target may have"
        )
    if window is None:
        window, max_tokens = max_tokens, None
    assert window is not None
    if encoder_decoder:
        return SourceTargetEncoder(tokenizer, window=window, max_tokens=max_tokens)
    return Encoder(tokenizer, window=window, prefix_length=prefix_length, max_tokens=max_tokens)
