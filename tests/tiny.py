"""Tiny random base models with real tokenizers, built from configs: what the tests train on.

Nothing is downloaded. Every model is seeded, so two calls write the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (
    "the a red green blue cat dog bird tree river runs sees likes under over near big small "
    "old new one two three and or not is was name pub food area cheap fine city north south"
).split()


def tiny_encoder(
    folder: Path, *, layers: int = 2, positions: int = 64, seed: int = 0, scale: float = 0.02
) -> Path:
    """A BERT of `layers` × 32 with a WordPiece tokenizer over `WORDS`, saved to `folder`.

    Stands in for all-MiniLM: same architecture, a masked-language-model-free encoder with a pooler.
    With the usual `scale` of random weights its first token hardly sees the others; with 0.3 a task can be learnt.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    # Once each ("a" is a word and a letter): two tokens of one number are written in an order of no meaning.
    tokens = dict.fromkeys([*specials, *WORDS, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=positions,
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        pad_token_id=0,
        initializer_range=scale,
    )
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_decoder(folder: Path, *, layers: int = 2, positions: int = 128, seed: int = 0) -> Path:
    """A Llama of `layers` × 32 with grouped-query attention and a word tokenizer, saved to `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS, "\n", ".", "[", "]", ","])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=positions,
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_t5(folder: Path, *, positions: int | None = 64, seed: int = 0) -> Path:
    """A T5 of 2 × 32 with heads wider than 32 / 4, and a word tokenizer that ends a text with `</s>`, in `folder`.

    Args:
        positions: n_positions, as old configs have it; None leaves it out, and the tokenizer's limit too.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    specials = ["<pad>", "</s>", "<unk>"]
    more = {} if positions is None else {"n_positions": positions}
    config = T5Config(
        vocab_size=len(specials) + len(WORDS),
        d_model=32,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **more,
    )
    torch.manual_seed(seed)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    _words(specials, "$A </s>", positions, pad="<pad>", eos="</s>").save_pretrained(folder)
    return folder


def tiny_bart(folder: Path, *, positions: int = 64, seed: int = 0) -> Path:
    """A BART of 2 × 32 and a word tokenizer that puts a text between `<s>` and `</s>`, in `folder`.

    As of facebook/bart-base, its decoder begins with `</s>` and is forced to go on with `<s>`.
    """
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    config = BartConfig(
        vocab_size=len(specials) + len(WORDS),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=positions,
        init_std=0.3,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = 0
    model.save_pretrained(folder)
    _words(specials, "<s> $A </s>", positions, pad="<pad>", bos="<s>", eos="</s>").save_pretrained(folder)
    return folder


def _words(specials: list[str], template: str, positions: int | None, **names: str) -> Any:
    """A word tokenizer over `WORDS` whose texts have the special tokens of `template`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(token, vocabulary[token]) for token in specials if token in template],
    )
    limit = {} if positions is None else {"model_max_length": positions}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        **{f"{name}_token": token for name, token in names.items()},
        **limit,
    )
