"""One tokenizer of each kind of encoder-decoder, with a tiny vocabulary."""

import string

from tiny_seq2seq import closing_tokenizer
from transformers import BartTokenizer, BertTokenizer, PreTrainedTokenizerFast, T5Tokenizer

CHARACTERS = string.ascii_letters + string.digits + ".,:?'</>_-[]"
WORDS = "question title context user assistant the lamp was lit in".split()


def t5() -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer; its control tokens are pieces, as in T5, and no token opens a text."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in special] + [("▁", -3.0)] + [(character, -8.0) for character in CHARACTERS]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=2)


def bart() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes between <s> and </s>."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return BartTokenizer(vocab={token: id for id, token in enumerate([*special, *CHARACTERS, "Ġ"])}, merges=[])


def bert() -> PreTrainedTokenizerFast:
    """Return a tokenizer of lower-case letters between [CLS] and [SEP], without eos."""
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *".,:?'</>_-[]", *(f"##{c}" for c in letters)]
    return BertTokenizer(vocab={token: id for id, token in enumerate(vocabulary)})


TOKENIZERS = {make.__name__: make for make in (t5, bart, bert, closing_tokenizer)}
