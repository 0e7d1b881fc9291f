"""What a language model knows of grammar: minimal pairs, one sentence right and one wrong by a single change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from course_lib.data import files
from course_lib.errors import CourseError
from course_lib.objectives import IGNORE
from course_lib.tokenizer import encode_documents

GOOD, BAD = "sentence_good", "sentence_bad"


def minimal_pairs(
    model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, causal: bool, batch_rows: int = 32
) -> dict[str, float]:
    """Share of pairs whose good sentence is the likelier one, by file and in all; chance is 0.5.

    `folder` holds jsonl files in the format of BLiMP (Warstadt et al. 2020): `sentence_good`, `sentence_bad` a line.
    """
    paths = [path for path in files.find(str(folder)) if path.suffix == ".jsonl"]
    found: dict[str, float] = {}
    right = total = 0
    for path in paths:
        if not (pairs := list(files.rows(path))):
            continue
        if not all({GOOD, BAD} <= row.keys() for row in pairs):
            raise CourseError(f"{path} is not a file of minimal pairs: a line lacks '{GOOD}' or '{BAD}'.")
        good, bad = (
            log_likelihoods(model, tokenizer, [row[key] for row in pairs], causal, batch_rows) for key in (GOOD, BAD)
        )
        correct = int((good > bad).sum())
        found[path.stem] = correct / len(pairs)
        right, total = right + correct, total + len(pairs)
    if not total:
        raise CourseError(f"There are no minimal pairs in {folder}: it needs .jsonl files.")
    return {"all": right / total, **found}


@torch.no_grad()
def log_likelihoods(
    model: Any, tokenizer: PreTrainedTokenizerFast, sentences: list[str], causal: bool, batch_rows: int = 32
) -> torch.Tensor:
    """The log-likelihood of each sentence in nats, (sentences,) float64; for an encoder the pseudo-log-likelihood.

    A causal model gives the sum of log p(token | those before). An encoder hides one token after the other and gives
    the sum of log p(hidden | all others) (Salazar et al. 2020, *Masked language model scoring*).
    """
    model.eval()
    device = next(model.parameters()).device
    questions = list(_questions(tokenizer, sentences, causal))
    questions.sort(key=lambda question: len(question[1]))  # neighbours in length share a batch
    sums = torch.zeros(len(sentences), dtype=torch.float64)
    for at in range(0, len(questions), batch_rows):
        owners, rows, labels = zip(*questions[at : at + batch_rows], strict=True)
        ids = pad_sequence(list(rows), batch_first=True, padding_value=tokenizer.pad_token_id or 0).to(device)
        wanted = pad_sequence(list(labels), batch_first=True, padding_value=IGNORE).to(device)  # (rows, length)
        seen = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        asked = wanted != IGNORE
        # The model's own, whoever made it: some scale or cap their logits.
        logits = model(input_ids=ids, attention_mask=seen).logits[asked]  # (asked, vocab)
        logits = logits.cpu().double()  # not every device has 64 bits
        wanted, asked = wanted.cpu(), asked.cpu()
        scores = logits.log_softmax(-1).gather(1, wanted[asked][:, None]).squeeze(1)
        owner = torch.tensor(owners)[:, None].expand_as(wanted)[asked]
        sums.index_add_(0, owner, scores)
    return sums


def _questions(
    tokenizer: PreTrainedTokenizerFast, sentences: list[str], causal: bool
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(sentence, input ids, labels): labels are `IGNORE` where nothing is asked. One a sentence, or one a token."""
    longest = tokenizer.model_max_length
    for number, ids in enumerate(encode_documents(tokenizer, sentences)):
        row = torch.tensor(ids)
        if len(row) > longest:
            raise CourseError(f"A sentence has {len(row)} tokens, the model's context only {longest}.")
        if causal:
            yield number, row[:-1], row[1:]
            continue
        for position in range(1, len(row)):
            labels = torch.full_like(row, IGNORE)
            labels[position] = row[position]
            yield number, row.index_fill(0, torch.tensor([position]), tokenizer.mask_token_id), labels
