"""The built-in language model: a byte-level tokenizer that keeps digits apart, and a small causal decoder.

Dimension names: n texts or sequences, t tokens, d hidden size, v vocabulary.
"""

from __future__ import annotations

import tempfile

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from models.quiet import quiet_loading

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# The byte-level alphabet writes a space as "Ġ", so this is the token of ", ".
SEPARATOR = ",Ġ"


def build_tiny_tokenizer(*, max_tokens: int = 1024) -> PreTrainedTokenizerFast:
    """A fast tokenizer of 260 tokens: 256 bytes, the separator ``", "``, and begin, end and padding.

    Every byte is a token of its own, hence every digit (``2024`` is four tokens: number magnitude stays visible
    as length); only ``", "``, which stands between the terms of a sequence, is one token. Any UTF-8 text can be
    tokenized and decoded back, and text that spells a special token (``"<s>"``) is read as plain bytes.
    The begin token is prepended, nothing is appended, and padding is on the right.

    Example:
        >>> tokenizer = build_tiny_tokenizer()
        >>> tokenizer.convert_ids_to_tokens(tokenizer("10, 7")["input_ids"])
        ['<s>', '1', '0', ',Ġ', '7']
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, SEPARATOR, BOS, EOS, PAD]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(SEPARATOR[0], SEPARATOR[1])]))
    # Without the regular expression the text is one piece, so that the merge of "," and " " can see both.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=max_tokens,
        split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_tiny_llm(
    *,
    hidden_size: int = 128,
    layers: int = 5,
    heads: int = 4,
    intermediate_size: int = 384,
    max_tokens: int = 1024,
    seed: int = 0,
) -> SentenceTransformer:
    """A randomly initialised causal decoder (transformers' Qwen3, about 1.1 M parameters) as an embedder.

    Modules: the decoder, mean pooling over all tokens (the begin token included), and L2 normalisation, so that
    Euclidean distances compare across models. The weights are a pure function of the arguments; the global
    random state is left as it was. `lm_logits` reads the decoder as a language model with tied embeddings.

    Raises:
        ValueError: when `heads` does not divide `hidden_size`.

    Example:
        >>> build_tiny_llm(hidden_size=16, layers=1, heads=2, intermediate_size=16).encode(["1, 2"]).shape
        (1, 16)
    """
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size: expected a multiple of heads = {heads}, got {hidden_size}; change one of the two"
        )
    tokenizer = build_tiny_tokenizer(max_tokens=max_tokens)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3Model(config)
    return as_embedder(model, tokenizer)


def as_embedder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> SentenceTransformer:
    """Put a transformers model and its tokenizer under mean pooling and L2 normalisation, on the CPU.

    sentence-transformers builds its Transformer module from a folder only, so the pair takes one trip through a
    temporary one; the weights come back bit-equal.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_loading():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, processor_kwargs={"model_max_length": tokenizer.model_max_length})
    transformer.model.config._name_or_path = ""
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def lm_logits(hidden: Float[Tensor, "n t d"], embedding: Float[Tensor, "v d"]) -> Float[Tensor, "n t v"]:
    """Next-token logits of a language model whose head is its token embedding.

    `hidden` are the decoder's last states (``features["token_embeddings"]``), `embedding` is
    ``model.get_input_embeddings().weight``. Logits at position i are about token i + 1.
    """
    return hidden @ embedding.T
