"""Byte-level BPE, trained from scratch and saved so that `AutoTokenizer` loads it."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS = "<|bos|>"  # starts every document; also ends and pads, so a decoder needs no other special token
MIN_VOCAB = 256 + 1  # all bytes and BOS


def train_bpe(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Learn byte-level BPE merges (Sennrich et al. 2016; bytes as in GPT-2).

    Any text can be encoded, and decoding gives it back exactly. A small corpus may support fewer than `vocab_size`
    tokens: look at `len(tokenizer)`. `context` is stored as `model_max_length`.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
